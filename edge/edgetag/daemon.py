"""The data path of a recording: source → windows → tags → sink. A microphone's is in `listener`."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from edgetag.capture.source import Block, Source
from edgetag.capture.windows import Window
from edgetag.contract.errors import BundleError, EdgetagError, InputError
from edgetag.contract.event import SoundEvent, Verdict
from edgetag.contract.frontend import MIN_VALID, SAMPLE_RATE_HZ, WINDOW_S
from edgetag.delivery.sink import Sink
from edgetag.health import HealthWatch
from edgetag.hearing import Ended, hear
from edgetag.loading import Loaded
from edgetag.replacement import Replacement
from edgetag.tagging.sounds import SoundEvents
from edgetag.tagging.stream import EventStream, Heard

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

    def check(self, name: str) -> None:
        """Whether a recording of this name was heard from its first sample to its last.

        Raises:
            InputError: it holds samples that are no numbers, or is too short.
        """
        if self.not_finite:
            reason = f"{self.not_finite} samples are not finite numbers; they were treated as lost audio"
            raise InputError(f"{name}: {reason}")
        if self.n_windows == self.verdicts["too_little_audio"]:
            raise InputError(
                f"{name}: {self.audio_s:.1f} s of audio; a {WINDOW_S}-s window needs "
                f"{MIN_VALID * WINDOW_S:.1f} s; not tagged"
            )


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
    sounds: SoundEvents | None = None,
    replacement: Replacement[Loaded] | None = None,
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
        sounds: told of each event, watches for sounds that begin and end; they end with the source.
        replacement: entered; whatever bundle it brings takes over between two windows.

    Raises:
        DamagedAudio: the source broke off; what came before has been tagged and delivered.
    """
    watch = watch or HealthWatch(stream)
    analyse = analyser(stream, sink, watch, sounds, replacement, hop_samples / SAMPLE_RATE_HZ)
    return tell(
        hear(source, analyse, hop_samples=hop_samples, observers=observers),
        stream,
        sink,
        hop_samples=hop_samples,
        start_utc_s=start_utc_s,
        label=label,
        watch=watch,
        sounds=sounds,
    )


def analyser(
    stream: EventStream,
    sink: Sink,
    watch: HealthWatch,
    sounds: SoundEvents | None,
    replacement: Replacement[Loaded] | None,
    hop_s: float,
) -> Callable[[Window], Heard]:
    """What hears a window: by the stream's bundle, or by another one that has come to take over."""

    def analyse(window: Window) -> Heard:
        if replacement is not None and (outcome := replacement.outcome()) is not None:
            take_over(outcome, stream, sounds, sink, watch, hop_s)
        return stream.hear(window)

    return analyse


def tell(
    heard: Iterable[Heard | Ended],
    stream: EventStream,
    sink: Sink,
    *,
    hop_samples: int,
    start_utc_s: float,
    label: str | None,
    watch: HealthWatch,
    sounds: SoundEvents | None = None,
) -> Summary:
    """Deliver what was heard in a source, as it comes: the second half of `run`, with the same arguments.

    Raises:
        InputError: as `heard` does; what came before has been delivered.
    """
    summary, damage = Summary(), None
    max_gap_s = max(0.0, hop_samples / SAMPLE_RATE_HZ - WINDOW_S)

    def publish(events: Iterable[SoundEvent]) -> None:
        for event in events:
            sink.sound(event)

    try:
        for said in heard:
            if isinstance(said, Ended):
                summary.audio_s, summary.not_finite = said
                continue
            if watch.due:
                sink.report(watch.health())
            event = stream.tell(said, start_utc_s=start_utc_s, source=label)
            sink.deliver(event)
            publish(sounds.take(event, max_gap_s=max_gap_s) if sounds else ())
            summary.verdicts[event.verdict] += 1
    except InputError as error:
        damage = error
    publish(sounds.end() if sounds else ())
    if damage is not None:
        raise damage
    return summary


def sounds_of(loaded: Loaded, stream: EventStream) -> SoundEvents:
    """What watches a stream's events for sounds, by the settings.

    Raises:
        InputError: the settings have a rule for a tag that the bundle does not have.
    """
    return SoundEvents(loaded.rules(), loaded.names, sensor=stream.sensor, boot=stream.boot)


def take_over(
    outcome: Loaded | EdgetagError,
    stream: EventStream,
    sounds: SoundEvents | None,
    sink: Sink,
    watch: HealthWatch,
    hop_s: float,
) -> bool:
    """Hear with the bundle and the settings that were read anew, from the next window on, or say why not.

    Returns whether that is so.
    """
    was = stream.tagger
    try:
        if isinstance(outcome, EdgetagError):
            raise outcome
        if outcome.tagger.taxonomy != was.taxonomy:
            model = outcome.tagger.bundle.model
            raise BundleError(f"{model} has another taxonomy; start edgetag anew to change it")
        rules = outcome.rules()
    except EdgetagError as error:
        _log.error("bundle.refused", reason=str(error), still=was.bundle.model)
        watch.refused(str(error))
        return False
    stream.tagger, stream.conditions = outcome.tagger, outcome.conditions
    stream.tagger.bundle = stream.tagger.bundle.without_windows()
    _log.warning("bundle.replaced", by=stream.tagger.bundle.model, was=was.bundle.model)
    for sound in sounds.change(rules, outcome.names) if sounds else ():
        sink.sound(sound)
    sink.announce(stream.tagger.info(hop_s))
    watch.took_over()
    return True


def real_time(rate_hz: int, sleep: Callable[[float], None] = time.sleep) -> Callable[[Block], None]:
    """Pace a replay: hold each block back until its last frame would have been heard."""
    started_s = time.monotonic()

    def hold(block: Block) -> None:
        due_s = started_s + (block.first_frame + len(block.frames)) / rate_hz
        sleep(max(0.0, due_s - time.monotonic()))

    return hold
