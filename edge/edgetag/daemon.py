"""The data path: source → windows → tags → sink."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from edgetag.capture.source import Block, DamagedAudio, Source
from edgetag.capture.windows import Window, Windower
from edgetag.contract.errors import BundleError, EdgetagError
from edgetag.contract.event import Verdict
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.delivery.sink import Sink
from edgetag.health import HealthWatch
from edgetag.replacement import Replacement
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import Tagger

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.daemon")


@dataclass
class Summary:
    """What a run came to. `audio_s` is what was delivered, `not_finite` its frames that were no numbers."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    audio_s: float = 0.0
    not_finite: int = 0

    @property
    def n_windows(self) -> int:
        return self.verdicts.total()


def run(
    source: Source,
    stream: EventStream,
    sink: Sink,
    *,
    hop_samples: int,
    start_utc_s: float,
    label: str | None = None,
    observers: Sequence[Callable[[Block], None]] = (),
    watch: HealthWatch | None = None,
    replacement: Replacement | None = None,
) -> Summary:
    """Tag everything a source delivers, window by window, until it ends.

    Args:
        source: an open source.
        stream: numbers the events; goes on from one run to the next.
        sink: an open sink.
        hop_samples: from one window's start to the next, at 44.1 kHz.
        start_utc_s: when the source's frame 0 was heard, seconds since 1970.
        label: the events' `source`; None for a microphone.
        observers: called with each block before it is heard (pacing, progress).
        watch: of `stream`; a new one if absent.
        replacement: entered; whatever bundle it brings takes over between two windows.

    Raises:
        DamagedAudio: the source broke off; what came before has been tagged and delivered.
    """
    windower = Windower(source.rate_hz, hop_samples=hop_samples)
    summary, damage = Summary(), None
    watch = watch or HealthWatch(stream)

    def deliver(windows: Iterable[Window]) -> None:
        for window in windows:
            if replacement is not None:
                _take_over(replacement, stream, sink, watch, hop_samples / SAMPLE_RATE_HZ)
            event = stream.event(window, start_utc_s=start_utc_s, source=label)
            sink.deliver(event)
            summary.verdicts[event.verdict] += 1
            if watch.due:
                sink.report(watch.health())

    try:
        for block in source.blocks():
            for observe in observers:
                observe(block)
            deliver(windower.feed(block))
            summary.audio_s += len(block.frames) / source.rate_hz
    except DamagedAudio as error:
        damage = error
    deliver(windower.finish())
    summary.not_finite = windower.n_not_finite
    if damage is not None:
        raise damage
    return summary


def _take_over(
    replacement: Replacement, stream: EventStream, sink: Sink, watch: HealthWatch, hop_s: float
) -> None:
    """Hear with the bundle that was wished for, if it is ready; say so, or why it was refused."""
    outcome, was = replacement.outcome(), stream.tagger
    if isinstance(outcome, Tagger) and outcome.taxonomy != was.taxonomy:
        outcome = BundleError(f"{outcome.bundle.model} has another taxonomy; start edgetag anew to change it")
    if isinstance(outcome, EdgetagError):
        _log.error("bundle.refused", reason=str(outcome), still=was.bundle.model)
        sink.report(watch.refused(str(outcome)))
    elif outcome is not None:
        _log.warning("bundle.replaced", by=outcome.bundle.model, was=was.bundle.model)
        stream.tagger = outcome
        sink.announce(outcome.info(hop_s))
        sink.report(watch.took_over())


def real_time(rate_hz: int, sleep: Callable[[float], None] = time.sleep) -> Callable[[Block], None]:
    """Pace a replay: hold each block back until its last frame would have been heard."""
    started_s = time.monotonic()

    def hold(block: Block) -> None:
        due_s = started_s + (block.first_frame + len(block.frames)) / rate_hz
        sleep(max(0.0, due_s - time.monotonic()))

    return hold
