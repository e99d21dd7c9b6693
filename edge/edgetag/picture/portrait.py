"""All that a picture shows of one recording, and who gathers it while the recording is heard."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime

from edgetag.capture.source import Block
from edgetag.contract.errors import printable
from edgetag.contract.event import Info, SoundEvent, TagsEvent
from edgetag.contract.manifest import Manifest, model_id
from edgetag.contract.taxonomy import Tag, Taxonomy
from edgetag.delivery.sink import Sink
from edgetag.delivery.table import UNTAGGED, level_unit, told_apart
from edgetag.picture.spectrogram import Spectrogram, Spectrograph
from edgetag.picture.timeline import Heard, Timeline, cells

MAX_SOUNDS = 5000
"""Of so many sounds the beginning and the end are kept; of later ones only that they were there."""


@dataclass(frozen=True)
class Sound:
    """A sound, from its beginning to its end.

    Attributes:
        tag: id; `name` its name.
        start_s, end_s: in the recording.
        peak: highest probability; `peak_s` the start of its window.
    """

    tag: str
    name: str
    start_s: float
    end_s: float
    peak: float
    peak_s: float


@dataclass(frozen=True)
class Model:
    """What a recording was heard with."""

    info: Info
    manifest: Manifest

    @property
    def taxonomy(self) -> Taxonomy:
        return self.manifest.taxonomy

    @property
    def id(self) -> str:
        """As events name it."""
        return model_id(self.manifest.name, self.info.bundle_sha256)


@dataclass(frozen=True, eq=False)
class Portrait:
    """One recording.

    Attributes:
        name: the recording's, printable.
        start_utc_s: when its first sample was heard, seconds since 1970; None if nobody said.
        duration_s: of what was heard of it.
        rate_hz: its own.
        is_whole: it was heard to its end.
        windows: in order.
        n_each: so many windows were made one, for want of room.
        sounds: in the order in which they began; `n_more_sounds` came after them.
        model: what it was heard with at first; `others` took over.
    """

    name: str
    start_utc_s: float | None
    duration_s: float
    rate_hz: int
    is_whole: bool
    spectrogram: Spectrogram
    windows: list[Heard]
    n_each: int
    sounds: list[Sound]
    n_more_sounds: int
    model: Model
    others: list[str]
    is_calibrated: bool

    @property
    def cells(self) -> list[tuple[float, float]]:
        """From when to when each window is drawn; the last one may be padded beyond the recording's end."""
        end_s = self.duration_s
        return [(min(start, end_s), min(end, end_s)) for start, end in cells(self.windows)]

    @property
    def level_unit(self) -> str:
        return level_unit(self.is_calibrated)

    @property
    def fine_tags(self) -> list[Tag]:
        """The fine tags worth a row: active somewhere, or the likeliest where a branch found none active.

        A category's only fine tag says nothing that the category does not.
        """
        taxonomy, wanted = self.model.taxonomy, set[str]()
        for window in self.windows:
            for id in window.refined | {id.partition("-")[0] for id in window.active}:
                told = told_apart(taxonomy.category(id), window.probability, window.active, window.refined)
                wanted.update(tag.id for tag in told)
        return [taxonomy.tags[id] for id in taxonomy.fine_ids if id in wanted]

    @property
    def untagged(self) -> list[str]:
        """Why windows were not tagged, in words; each once."""
        found = {window.verdict for window in self.windows}
        return [words for verdict, words in UNTAGGED.items() if verdict in found]


class Sitting(Sink):
    """Gathers what a portrait shows, while a recording is heard: its blocks, its events, its sounds.

    Args:
        model: what it is heard with.
        taken: gets each portrait when its recording ends, also where it breaks off.
    """

    def __init__(self, model: Model, taken: Callable[[str, Portrait], None]) -> None:
        self._model, self._taken = model, taken
        self._spectrograph: Spectrograph | None = None
        self._begin(0.0)

    @contextmanager
    def of(self, file: str, name: str, start_utc_s: float, *, is_dated: bool) -> Iterator[None]:
        """One recording, from its beginning to its end, whatever ends it; nothing heard, nothing drawn.

        Args:
            file: whose; `name` is what to call it.
            start_utc_s: where its events count from.
            is_dated: somebody said that it began then.
        """
        self._begin(start_utc_s)
        is_whole = False
        try:
            yield
            is_whole = True
        finally:
            spectrograph, self._spectrograph = self._spectrograph, None
            if spectrograph is not None and self._timeline.windows():
                portrait = self._portrait(
                    spectrograph, name, start_utc_s if is_dated else None, is_whole=is_whole
                )
                self._taken(file, portrait)

    def listener(self, rate_hz: int) -> Callable[[Block], None]:
        """Who is to get the recording's blocks."""
        self._spectrograph = Spectrograph(rate_hz)
        return self._spectrograph

    def deliver(self, event: TagsEvent) -> None:
        """Keep one window."""
        self._is_calibrated = event.level.calibrated
        self._heard_with[event.model] = None
        self._timeline.add(Heard.of(event, self._place_s(event.start), self._place_s(event.end)))

    def sound(self, event: SoundEvent) -> None:
        """Keep a sound that ended."""
        if event.kind == "start":
            return
        if len(self._sounds) == MAX_SOUNDS:
            self._n_more_sounds += 1
            return
        place_s = self._place_s
        self._sounds.append(
            Sound(
                event.tag,
                event.name,
                place_s(event.start),
                place_s(event.end),
                event.peak,
                place_s(event.peak_at),
            )
        )

    def _begin(self, start_utc_s: float) -> None:
        self._start_utc_s = start_utc_s
        self._timeline, self._sounds = Timeline(), list[Sound]()
        self._n_more_sounds, self._is_calibrated = 0, False
        self._heard_with: dict[str, None] = {}  # in order

    def _place_s(self, utc: str) -> float:
        """A time as the place in the recording; stamps are rounded to the millisecond."""
        return round(max(0.0, datetime.fromisoformat(utc).timestamp() - self._start_utc_s), 2)

    def _portrait(
        self, spectrograph: Spectrograph, name: str, start_utc_s: float | None, *, is_whole: bool
    ) -> Portrait:
        duration_s = spectrograph.heard_s
        return Portrait(
            name=printable(name),
            start_utc_s=start_utc_s,
            duration_s=duration_s,
            rate_hz=spectrograph.rate_hz,
            is_whole=is_whole,
            spectrogram=spectrograph.finish(),
            windows=self._timeline.windows(),
            n_each=self._timeline.n_each,
            sounds=sorted(
                (replace(sound, end_s=min(sound.end_s, duration_s)) for sound in self._sounds),
                key=lambda sound: (sound.start_s, sound.tag),
            ),
            n_more_sounds=self._n_more_sounds,
            model=self._model,
            others=[model for model in self._heard_with if model != self._model.id],
            is_calibrated=self._is_calibrated,
        )


def time_words(seconds: float) -> str:
    """A place in a recording, as players write it.

    >>> time_words(7.04), time_words(75.5), time_words(3675.0)
    ('0:07.0', '1:15.5', '1:01:15.0')
    """
    tenths = round(10 * seconds)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{head}:{tenths // 10:02}.{tenths % 10}"
