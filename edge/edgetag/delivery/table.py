"""Events for a person at a terminal: one window a row, printed as it arrives.

```
UTC                LAeq  eng mach imp saw alert music voice dog  heard
10:00:00     63.2 dB(A)  ▁▁▁ ▁▁▁  ▁▁▁ ▁▁▁ ▁▁▁   ▂▂▂   ███   ▁▁▁  human-voice 91%: large-crowd 80%
```
A state of the sensor, and a sound that begins or ends, is a line of words under its own time.

A table whose rows come one by one cannot fit its columns to what is still to come, so the widths are
fixed: the bars are named where the terminal is wide enough and numbered, under a legend, where not.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
from rich.console import Console
from rich.text import Text

from edgetag.contract.event import Level, SoundEvent, Status, TagsEvent
from edgetag.contract.taxonomy import Category, Tag, Taxonomy
from edgetag.delivery.sink import Sink

WIDE_COLUMNS = 100
"""From this width on bars have names, and SONYC-UST's longest tag still fits beside them."""

BARS = "▁▂▃▄▅▆▇█"
BARS_ASCII = ".:-=+*%@"
"""A probability's height, in eighths; where there is nothing but ASCII, its darkness."""

_LIKELY = 0.5  # above it a category is more likely there than not, and its branch fires
_TIME_COLUMNS = 8  # HH:MM:SS
_LEVEL_COLUMNS = 14  # "-120.0 dBFS(A)", the floor
_NAMED_BAR_COLUMNS = 3
_MIN_HEARD_COLUMNS = 35  # "person-or-small-group-shouting 41%,"
UNTAGGED = {
    "silent": "digital silence",
    "quiet": "below the gate",
    "too_little_audio": "too little audio",
}
"""Verdicts of windows that no net was asked about, in words, for pictures."""
_SHORT_NAMES = {
    "engine": "eng",
    "machinery-impact": "mach",
    "non-machinery-impact": "imp",
    "powered-saw": "saw",
    "alert-signal": "alert",
    "human-voice": "voice",
}


class Table(Sink):
    """Prints a header before the first event, then a row for each: clock time, level, bars, tags.

    Where `console` is no terminal the rows are plain text; where its encoding is not Unicode the bars
    are ASCII.
    """

    def __init__(self, console: Console, taxonomy: Taxonomy) -> None:
        self._console = console
        self._taxonomy = taxonomy
        self._bars = BARS_ASCII if console.options.ascii_only else BARS
        self._layout: _Layout | None = None

    def deliver(self, event: TagsEvent) -> None:
        """Print one row, and the header before the first.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        if self._layout is None:
            self._layout = _Layout.fitting(self._console.width, self._taxonomy)
            self._print_header(self._layout)
        self._print_row(self._layout, self._cells(self._layout, event), heard(self._taxonomy, event))

    def sound(self, event: SoundEvent) -> None:
        """Print one line; raises as `deliver`."""
        begins = event.kind == "start"
        said = Text(sound_words(event), "bold" if begins else "")
        self._print_words(event.start if begins else event.end, said)

    def state(self, status: Status) -> None:
        """Print one line; raises as `deliver`."""
        said = f"{status.state.replace('_', ' ')}: {status.reason}"
        self._print_words(status.since, Text(said, "green" if status.state == "online" else "yellow"))

    def _print_words(self, at: str, said: Text) -> None:
        line = Text(f"{at[11:19]} ") + said
        line.truncate(self._console.width, overflow="ellipsis")
        self._print(line)

    def _print_header(self, layout: "_Layout") -> None:
        if not layout.named:
            legend = (
                Text(f"{category.id} {category.name} ", "dim") for category in self._taxonomy.categories
            )
            for line in fill(legend, self._console.width):
                self._print(line)
        names = " ".join(layout.bar_names)
        head = Text(f"{'UTC':{_TIME_COLUMNS}} {'LAeq':>{_LEVEL_COLUMNS}}  {names}", "bold")
        self._print_row(
            layout, head, [[Text("heard", "bold")]] if layout.has_room_beside(self._console) else []
        )

    def _cells(self, layout: "_Layout", event: TagsEvent) -> Text:
        """Time, level and bars: as wide in every row."""
        cells = Text(f"{event.start[11:19]} {_level(event.level):>{_LEVEL_COLUMNS}} ")
        for category, name in zip(self._taxonomy.categories, layout.bar_names, strict=False):
            cells.append(" ")
            cells.append_text(self._bar(event.coarse.get(category.id), layout.bar_columns, len(name)))
        return cells

    def _bar(self, probability: float | None, bar_columns: int, cell_columns: int) -> Text:
        if probability is None:
            return Text(" " * cell_columns)
        step = min(int(probability * len(self._bars)), len(self._bars) - 1)
        bar = Text(self._bars[step] * bar_columns, "bold green" if probability > _LIKELY else "dim")
        bar.pad_right(cell_columns - bar_columns)
        return bar

    def _print_row(self, layout: "_Layout", cells: Text, heard: list[list[Text]]) -> None:
        """Each group of `heard` begins a line, beside the cells or, in a narrow terminal, below them."""
        beside = layout.has_room_beside(self._console)
        indent = Text(" " * (layout.columns if beside else 2))
        lines = [line for group in heard for line in fill(group, self._console.width - len(indent))]
        self._print(cells + Text("  ") + lines.pop(0) if beside else cells)
        for line in lines:
            self._print(indent + line)

    def _print(self, line: Text) -> None:
        line.rstrip()
        self._console.print(line, no_wrap=True, overflow="crop")


@dataclass(frozen=True)
class _Layout:
    """Fixed for the whole table: one header per bar, and how much of its cell a bar fills.

    No bars at all where there are more categories than the terminal has room for.
    """

    named: bool
    bar_names: tuple[str, ...]
    bar_columns: int

    @classmethod
    def fitting(cls, width_columns: int, taxonomy: Taxonomy) -> "_Layout":
        names = [f"{short_name(category):{_NAMED_BAR_COLUMNS}}" for category in taxonomy.categories]
        named = cls(True, tuple(names), _NAMED_BAR_COLUMNS)
        numbered = cls(False, taxonomy.coarse_ids, 1)
        if width_columns >= WIDE_COLUMNS and len(set(names)) == len(names) and named.columns <= width_columns:
            return named
        return numbered if numbered.columns <= max(width_columns, WIDE_COLUMNS) else cls(True, (), 0)

    @property
    def columns(self) -> int:
        """Width of everything left of the words, with the gap before them."""
        bars = sum(len(name) + 1 for name in self.bar_names)
        return _TIME_COLUMNS + 1 + _LEVEL_COLUMNS + 1 + bars + 2

    def has_room_beside(self, console: Console) -> bool:
        return console.width - self.columns >= _MIN_HEARD_COLUMNS


def _level(level: Level) -> str:
    return f"{level.laeq_db:.1f} {level_unit(level.calibrated)}"


def level_unit(is_calibrated: bool) -> str:
    """What levels are in."""
    return "dB(A)" if is_calibrated else "dBFS(A)"


def short_name(category: Category) -> str:
    """A category's name in at most five columns."""
    return _SHORT_NAMES.get(category.name, category.name[:5].rstrip("-"))


def sound_words(event: SoundEvent) -> str:
    """A sound that begins or ended, in words."""
    if event.kind == "start":
        return f"{event.name} begins, {event.peak:.0%}"
    why = "" if event.reason in (msgspec.UNSET, "faded") else f" ({str(event.reason).replace('_', ' ')})"
    return f"{event.name} ended after {event.duration_s:.0f} s, at most {event.peak:.0%}{why}"


def heard(taxonomy: Taxonomy, event: TagsEvent) -> list[list[Text]]:
    """A window in words: the tags by category, then what speaks against trusting them."""
    doubts = [Text(f"{doubt} ", "yellow") for doubt in _doubts(event)]
    match event.verdict:
        case "silent" | "quiet":
            groups = [[Text("silent" if event.verdict == "silent" else "below the gate", "dim")]]
        case "too_little_audio":
            groups = [[Text("too little audio:", "yellow"), *doubts]]
            doubts = []
        case "tagged":
            groups = [tags for category in taxonomy.categories if (tags := _tags(category, event))]
    return [*(groups or [[Text("nothing", "dim")]]), *([doubts] if doubts else [])]


def _doubts(event: TagsEvent) -> list[str]:
    audio = event.audio
    doubts = [
        f"{audio.valid:.0%} of it heard" if audio.valid < 1 else "",
        f"{audio.overruns} overrun{'s' if audio.overruns > 1 else ''}" if audio.overruns else "",
        f"{audio.clipped:.2%} clipped" if audio.clipped else "",
    ]
    return [doubt for doubt in doubts if doubt]


def _tags(category: Category, event: TagsEvent) -> list[Text]:
    """`coarse 91%: fine 80%, fine 55%` for a category that fired, is active or has an active fine tag."""
    fine = told_apart(category, event.fine, event.active, event.refined)
    if not (fine or category.id in event.active or category.id in event.refined):
        return []
    head = _tag(category, event) + Text(":" if fine else "")
    return [head, *(_tag(tag, event) + Text("," if tag is not fine[-1] else "") for tag in fine)]


def told_apart(
    category: Category, probability: Mapping[str, float], active: Collection[str], refined: Collection[str]
) -> list[Tag]:
    """The active fine tags; the likeliest where a branch fired and none is. An only one adds nothing."""
    if category.single:
        return []
    found = [tag for tag in category.fine if tag.id in active]
    if found or category.id not in refined:
        return found
    return [max(category.fine, key=lambda tag: probability.get(tag.id, 0.0))]


def _tag(tag: Tag, event: TagsEvent) -> Text:
    probability = event.coarse.get(tag.id, event.fine.get(tag.id))
    style = "dim" if tag.id not in event.active else "bold" if isinstance(tag, Category) else ""
    return Text(tag.name if probability is None else f"{tag.name} {probability:.0%}", style)


def fill(texts: Iterable[Text], width_columns: int) -> Iterator[Text]:
    """Lines of texts a blank apart, none broken; one that is wider than a line is cut short."""
    line = Text()
    for text in texts:
        text.truncate(width_columns, overflow="ellipsis")
        if line and line.cell_len + 1 + text.cell_len > width_columns:
            yield line
            line = Text()
        line = line + Text(" ") + text if line else text
    yield line
