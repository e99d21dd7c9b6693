"""A recording, from its file to what was heard in it: in this process, or told to it by another one."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from edgetag.capture.source import Block, DamagedAudio, Source
from edgetag.capture.windows import Window, Windower
from edgetag.tagging.stream import Heard


class Begun(NamedTuple):
    """A recording could be opened. `duration_s` is what it says of itself; None if it does not."""

    duration_s: float | None


class Ended(NamedTuple):
    """All of it was heard. `audio_s` is what was delivered, `not_finite` its frames that were no numbers."""

    audio_s: float
    not_finite: int


Said = Begun | Heard | Ended
"""What is said of a recording: that it could be opened, its windows, that this was all."""


def hear(
    source: Source,
    analyse: Callable[[Window], Heard],
    *,
    hop_samples: int,
    observers: Sequence[Callable[[Block], None]] = (),
) -> Iterator[Heard | Ended]:
    """Every window in order, then `Ended`.

    Args:
        source: an open source.
        analyse: tags a window.
        hop_samples: from one window's start to the next, at 44.1 kHz.
        observers: called with each block before it is heard (pacing, progress).

    Raises:
        DamagedAudio: the source broke off, after all that came before.
    """
    windower = Windower(source.rate_hz, hop_samples=hop_samples)
    audio_s, damage = 0.0, None
    try:
        for block in source.blocks():
            for observe in observers:
                observe(block)
            yield from map(analyse, windower.feed(block))
            audio_s += len(block.frames) / source.rate_hz
    except DamagedAudio as error:
        damage = error
    yield from map(analyse, windower.finish())
    if damage is not None:
        raise damage
    yield Ended(audio_s, windower.n_not_finite)
