"""edgetag as a side: a bundle's variant hears, and the sensor's own code is timed where it runs.

```
blocks of 0.1 s ─ windows ─ level ─ log-mel ─ embedding ─ root ─ branches ─ event ─ outbox
```

Kinds: `quiet` (no branch fires) and `busy` (all do), of windows that follow each other; `reuse`, quiet
windows that share half their embedding with the one before; `48 kHz`, quiet windows of a microphone of that
rate.

    python -m bench.side_by_side.edgetag_side BUNDLE VARIANT STREET [KIND]
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `edgetag` itself does

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import edgetag.cli
import edgetag.listener
import edgetag.publishing  # noqa: F401 - what `edgetag run` imports before it hears
from bench.side_by_side.serving import Stages, serve
from bench.side_by_side.street import RATE_HZ, Street
from edgetag.capture.microphone import BLOCK_S
from edgetag.capture.source import Block
from edgetag.capture.windows import Window, Windower
from edgetag.config import Settings
from edgetag.contract.event import encode
from edgetag.contract.manifest import LOGMEL_INPUT, Variant
from edgetag.daemon import sounds_of
from edgetag.delivery.outbox import FILE_NAME, Outbox
from edgetag.delivery.sink import Forwarded, Settled
from edgetag.loading import Loaded
from edgetag.tagging.bundle import Bundle, load_bundle
from edgetag.tagging.measure import TimedTagger
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import Features, hop_samples


@dataclass(frozen=True)
class Kind:
    """How windows are heard; a branch fires above `threshold`."""

    threshold: float
    hop_s: float = 10.0
    rate_hz: int = RATE_HZ


KINDS = {
    "quiet": Kind(1.0),
    "busy": Kind(0.0),
    "reuse": Kind(1.0, hop_s=4.8),
    "48 kHz": Kind(1.0, rate_hz=48_000),
}


class _Ear(TimedTagger):
    """The sensor's own tagger; its steps are timed, and what its nets said last is kept."""

    def __init__(self, bundle: Bundle, stages: Stages, threshold: float) -> None:
        self.said: dict[str, list[float]] = {}
        self.logmel: NDArray[np.float32] | None = None
        self._stages = stages
        super().__init__(bundle, self._timed, threshold)

    def features(self, samples: NDArray[np.float32], start_sample: int | None = None) -> Features:
        features = super().features(samples, start_sample)
        self.logmel = features[LOGMEL_INPUT][0, 0]
        return features

    def _timed(self, step: str, call: Callable[..., Any]) -> Callable[..., Any]:
        is_branch = step.startswith("branch-")
        timed = self._stages.timed("branches" if is_branch else step, call)

        def heard(features: Features) -> NDArray[np.float32]:
            found = timed(features)
            self.said[step] = found[0].tolist()
            return found

        return heard if is_branch or step == "root" else timed


class _Stream:
    """Windows of one kind, one after the other, to what is published of them."""

    def __init__(self, kind: Kind, bundle: Bundle, street: Street, stages: Stages) -> None:
        self.tagger = _Ear(bundle, stages, kind.threshold)
        self._rate_hz, self._street, self._stages = kind.rate_hz, street, stages
        self._windower = Windower(kind.rate_hz, hop_samples=hop_samples(kind.hop_s))
        self._events = EventStream(self.tagger, sensor="bench")
        self._sounds = sounds_of(Loaded(self.tagger, Settings()), self._events)
        self._n_read = 0

    def next_window(self) -> Window:
        while True:
            n_frames = round(BLOCK_S * self._rate_hz)
            block = Block(self._n_read, self._street.read(self._n_read, n_frames)[:, None])
            self._n_read += n_frames
            with self._stages.of("windows"):
                if windows := self._windower.feed(block):
                    return windows[0]

    def messages(self, window: Window) -> list[tuple[Forwarded, bytes]]:
        event = self._events.event(window, start_utc_s=0.0)
        sounds = self._sounds.take(event)
        return [("tags", encode(event)), *(("events", encode(sound)) for sound in sounds)]


class EdgetagSystem:
    """What a sensor does with its audio, from the capture thread's blocks to the outbox.

    All kinds are heard by one set of nets; a kind has a front end and a stream of its own, `first` from the
    beginning, others once they are heard.
    """

    def __init__(self, bundle: Path, variant: Variant, street: Path, first: str, stages: Stages) -> None:
        self._bundle = load_bundle(bundle, variant)
        self._make = partial(_Stream, bundle=self._bundle, street=Street(street), stages=stages)
        self._streams = {first: self._make(KINDS[first])}
        self._folder = tempfile.TemporaryDirectory(prefix="bench")
        self._outbox = Outbox(Path(self._folder.name) / FILE_NAME).__enter__()

    def hear(self, kind: str, stages: Stages) -> dict[str, list[float]]:
        if kind not in self._streams:
            self._streams[kind] = self._make(KINDS[kind])
        stream = self._streams[kind]
        stream.tagger.said.clear()
        window = stream.next_window()
        with stages.of("event"):
            messages = stream.messages(window)
        with stages.of("outbox"):
            self._keep(messages)
        self.samples, self.logmel = window.samples, stream.tagger.logmel
        return stream.tagger.said

    def _keep(self, messages: Sequence[tuple[Forwarded, bytes]]) -> None:
        """To the disk, and off it again, as if the broker had them."""
        for topic, payload in messages:
            self._outbox.append(topic, payload)
        while (queued := self._outbox.next()) is not None:
            self._outbox.settle(Settled(queued.id))


if __name__ == "__main__":
    bundle, variant, street, *first = sys.argv[1:]
    kind = first[0] if first else "quiet"
    serve(partial(EdgetagSystem, Path(bundle), cast("Variant", variant), Path(street), kind))
