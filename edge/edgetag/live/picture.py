"""A sensor for a person at its terminal.

```
edgetag run  lamp-17 · street · starter                            10:04:05 UTC
online: hearing
now  63.2 dB(A) ████████████████████▌             |         at most 78.4
window LAeq 61.0  LAFmax 78.4  LA90 55.1                   lag 0.3 s
engine                  12% ▁▁▁▁▁▂▁▁
human-voice             91% ▁▁▇███▇█
                            10:03:25                                     10:04:05
human-voice 91%: person-or-small-group-talking 80%
```

What a terminal has no room for is left out, the least important first. Words that came from elsewhere (names,
reasons, log lines) reach it through `printable`: nothing of them is obeyed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter

from rich.text import Text

from edgetag.contract.errors import printable
from edgetag.contract.event import OutboxHealth, SoundEvent, TagsEvent
from edgetag.contract.taxonomy import Category
from edgetag.delivery.table import (
    BARS,
    BARS_ASCII,
    UNTAGGED,
    fill,
    heard,
    level_unit,
    short_name,
    sound_words,
)
from edgetag.live.glance import Glance

LOWEST_DBFS, LOWEST_DB = -100.0, 20.0  # where the meter begins
METER_DB = 100.0  # to its end
WIDE_COLUMNS = 64  # from here on categories have their whole names
_CLOCK_COLUMNS = 32  # from here on there is room for the time, too
_STATE_STYLES = {"online": "green", "degraded": "yellow", "no_audio": "bold yellow", "offline": "red"}
_MARKS = {"silent": "_", "quiet": ".", "too_little_audio": "x"}
_LIKELY = 0.5
_LOG_LINES, _WRAPPED_LINES = 3, 3  # at most
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class _Block:
    """Lines that belong together. Those of low `rank` are shown first where there is no room for all."""

    rank: int
    lines: list[Text]


def picture(glance: Glance, now_s: float, columns: int, rows: int, *, is_ascii: bool = False) -> Text:
    """At most `rows` lines of at most `columns`.

    Args:
        glance: what is known.
        now_s: UTC.
        columns, rows: of the terminal.
        is_ascii: it has nothing but ASCII.
    """
    paper = _Paper(max(columns, 1), is_ascii)
    blocks = [
        _Block(1, [paper.title(glance, now_s)]),
        _Block(2, paper.state(glance)),
        _Block(3, [paper.meter(glance)]),
        _Block(6, paper.levels(glance)),
        _Block(4, list(paper.categories(glance))),
        _Block(8, paper.times(glance)),
        _Block(5, list(paper.heard(glance))),
        _Block(7, list(paper.figures(glance))),
        _Block(9, paper.log(glance)),
    ]
    lines = [line for block in _fitting(blocks, max(rows, 1)) for line in block.lines]
    lines += paper.sounds(glance, rows - len(lines))
    for line in lines:
        line.truncate(paper.columns, overflow="crop")
    return Text("\n", no_wrap=True, end="").join(lines)


def _fitting(blocks: list[_Block], rows: int) -> list[_Block]:
    """Blocks in their order, of which the less important are cut or left out."""
    kept: dict[int, _Block] = {}
    for block in sorted(blocks, key=lambda block: block.rank):
        kept[block.rank] = _Block(block.rank, block.lines[:rows])
        rows -= len(kept[block.rank].lines)
    return [kept[block.rank] for block in blocks]


@dataclass(frozen=True)
class _Paper:
    """What is drawn on: so many columns, and which characters there are."""

    columns: int
    is_ascii: bool

    @property
    def bars(self) -> str:
        return BARS_ASCII if self.is_ascii else BARS

    @property
    def dot(self) -> str:
        return " - " if self.is_ascii else " · "

    @property
    def is_wide(self) -> bool:
        return self.columns >= WIDE_COLUMNS

    # -- the head ------------------------------------------------------------------------------------------

    def title(self, glance: Glance, now_s: float) -> Text:
        clock = f"{datetime.fromtimestamp(now_s, UTC):%H:%M:%S} UTC"
        device = glance.audio.device if glance.audio else ""
        words = self.dot.join(filter(None, (*glance.heading, device)))
        title = Text("edgetag run", "bold") + self._text(f"  {words}")
        if self.columns < _CLOCK_COLUMNS:
            return title
        title.truncate(max(self.columns - len(clock) - 2, 0), overflow="crop", pad=True)
        return title + Text(f"  {clock}")

    def state(self, glance: Glance) -> list[Text]:
        words = glance.state.replace("_", " ")
        return self._wrapped(f"{words}: {glance.reason}", _STATE_STYLES[glance.state])

    def meter(self, glance: Glance) -> Text:
        """The level of this moment, as a number and as a bar with a mark at its highest of late."""
        unit = level_unit(glance.is_calibrated)
        if glance.now_db is None:
            return Text(f"now     -- {unit}", "dim")
        head = Text(f"now {glance.now_db:6.1f} {unit} ")
        tail = Text(
            f" at most {glance.max_db:.1f}" if self.is_wide and glance.max_db is not None else "", "dim"
        )
        bar = self._bar(glance, self.columns - len(head) - len(tail))
        return head + bar + tail

    def _bar(self, glance: Glance, columns: int) -> Text:
        if columns < 1 or glance.now_db is None:
            return Text()
        full = self._place(glance, glance.now_db, columns)
        peak_db = glance.now_db if glance.max_db is None else glance.max_db
        mark = min(self._place(glance, peak_db, columns), columns - 1)
        ink, paper, needle = ("#", "-", "|") if self.is_ascii else ("█", "─", "│")
        bar = Text(ink * full, "green")
        if mark < full:
            return bar + Text(paper * (columns - full), "dim")
        rest = Text.assemble(
            (paper * (mark - full), "dim"), (needle, "bold"), (paper * (columns - mark - 1), "dim")
        )
        return bar + rest

    def _place(self, glance: Glance, db: float, columns: int) -> int:
        lowest = LOWEST_DB if glance.is_calibrated else LOWEST_DBFS
        return round(columns * min(max((db - lowest) / METER_DB, 0.0), 1.0))

    def levels(self, glance: Glance) -> list[Text]:
        if not glance.windows:
            return []
        event = glance.windows[-1]
        level = event.level
        figures = f"window LAeq {level.laeq_db:.1f}  LAFmax {level.lafmax_db:.1f}  LA90 {level.la90_db:.1f}"
        return [Text(figures)]

    # -- what is heard -------------------------------------------------------------------------------------

    def categories(self, glance: Glance) -> Iterator[Text]:
        """A row each: its name, its probability now, and before."""
        shown = self._shown(glance)
        for category in glance.taxonomy.categories:
            yield self._name(glance, category) + self._percent(shown, category) + self._cells(shown, category)

    def _head_columns(self, glance: Glance) -> int:
        names = (self._name_of(category) for category in glance.taxonomy.categories)
        return max(map(len, names)) + 6

    def _name_of(self, category: Category) -> str:
        return printable(category.name) if self.is_wide else printable(short_name(category))

    def _name(self, glance: Glance, category: Category) -> Text:
        is_active = bool(glance.windows) and category.id in glance.windows[-1].active
        columns = self._head_columns(glance) - 6
        return self._text(f"{self._name_of(category):{columns}}", "bold" if is_active else "")

    def _shown(self, glance: Glance) -> list[TagsEvent]:
        """The windows that there is room for."""
        room = self.columns - self._head_columns(glance)
        return list(glance.windows)[-room:] if room > 0 else list(glance.windows)[-1:]

    def _percent(self, shown: list[TagsEvent], category: Category) -> Text:
        p = shown[-1].coarse.get(category.id) if shown else None
        return Text("   -- " if p is None else f" {p:4.0%} ")

    def _cells(self, shown: list[TagsEvent], category: Category) -> Text:
        cells = [self._cell(event, category) for event in shown]
        runs = groupby(cells, key=itemgetter(1))  # few pieces are drawn faster than many
        return Text.assemble(*(("".join(mark for mark, _ in run), style) for style, run in runs))

    def _cell(self, event: TagsEvent, category: Category) -> tuple[str, str]:
        """A window: a bar as high as it is likely, and its style, a colour where it is active or likely."""
        p = event.coarse.get(category.id)
        if event.verdict != "tagged" or p is None:
            return _MARKS.get(event.verdict, " "), "dim"
        style = "bold green" if category.id in event.active else "green" if p > _LIKELY else "dim"
        return self.bars[min(int(p * len(self.bars)), len(self.bars) - 1)], style

    def times(self, glance: Glance) -> list[Text]:
        """When the first and the last of the windows that are shown ended; what marks without a bar mean."""
        shown = self._shown(glance)
        if not shown:
            return []
        first, last = shown[0].end[11:19], shown[-1].end[11:19]
        words = (
            first if len(shown) < len(first) + 1 + len(last) else f"{first}{last:>{len(shown) - len(first)}}"
        )
        indent = " " * self._head_columns(glance)
        return [Text(line, "dim") for line in (indent + words, *self._marks(shown))]

    def _marks(self, shown: list[TagsEvent]) -> list[str]:
        found = {event.verdict for event in shown}
        marks = [f"{mark} {UNTAGGED[verdict]}" for verdict, mark in _MARKS.items() if verdict in found]
        return [f"not tagged: {', '.join(marks)}"] if marks else []

    def heard(self, glance: Glance) -> Iterator[Text]:
        """The latest window in words."""
        if not glance.windows:
            is_hearing = glance.state in ("online", "degraded")
            nobody = "waiting for it; `edgetag devices` lists what is there; Ctrl-C ends"
            waiting = "the first window takes ten seconds" if is_hearing else nobody
            yield from fill((Text(word, "dim") for word in waiting.split()), self.columns)
            return
        for group in heard(glance.taxonomy, glance.windows[-1]):
            yield from fill(group, self.columns)

    # -- how it goes ---------------------------------------------------------------------------------------

    def figures(self, glance: Glance) -> Iterator[Text]:
        """What was lost, what was left out, and how the broker is reached."""
        yield from self._filled(self._of_audio(glance))
        if glance.delivery is not None:
            yield from self._of_broker(glance)
            yield from self._filled(self._of_outbox(glance.delivery.outbox))

    def _of_audio(self, glance: Glance) -> Iterator[Text]:
        if glance.windows:
            yield Text(f"lag {glance.windows[-1].lag_s:.2f} s")
        yield Text(f"{glance.n_windows:,} window{'' if glance.n_windows == 1 else 's'}")
        if audio := glance.audio:
            yield Text(f"heard {_span(audio.heard_s)}")
            lost = f"lost {_span(audio.lost_s)}, {audio.overruns} overrun{'' if audio.overruns == 1 else 's'}"
            yield Text(lost, "yellow" if audio.overruns else "")
        if glance.load and glance.load.windows_skipped:
            yield Text(f"{glance.load.windows_skipped:,} left out", "yellow")

    def _of_broker(self, glance: Glance) -> list[Text]:
        if glance.unreachable:
            return self._wrapped(f"broker: {glance.unreachable}", "yellow")
        is_reached = glance.delivery is not None and glance.delivery.connects > 0
        return [Text("broker: reached" if is_reached else "broker: connecting")]

    def _of_outbox(self, outbox: OutboxHealth) -> Iterator[Text]:
        yield Text(f"outbox: {outbox.depth:,} waiting")
        for n, what in ((outbox.dropped, "dropped"), (outbox.refused, "refused")):
            if n:
                yield Text(f"{n:,} {what}", "yellow")

    def _filled(self, words: Iterator[Text]) -> Iterator[Text]:
        """Words with a dot between two, in as many lines as they take."""
        listed = list(words)
        dotted = [word + Text(self.dot.rstrip()) for word in listed[:-1]] + listed[-1:]
        return (line for line in fill(dotted, self.columns) if line)

    def _wrapped(self, words: str, style: str) -> list[Text]:
        """Words in a few lines."""
        lines = list(fill((self._text(word, style) for word in words.split()), self.columns))
        return lines[:_WRAPPED_LINES]

    def log(self, glance: Glance) -> list[Text]:
        lines = list(glance.log)[-_LOG_LINES:]
        return [self._text(log_words(line), "dim") for line in lines]

    def sounds(self, glance: Glance, rows: int) -> list[Text]:
        """The latest first, in what is left of the terminal."""
        if rows < 3 or not glance.sounds:
            return []
        latest = list(glance.sounds)[::-1][: rows - 2]
        return [Text(), Text("latest sounds", "bold"), *map(self._sound, latest)]

    def _sound(self, sound: SoundEvent) -> Text:
        at = sound.start if sound.kind == "start" else sound.end
        return Text(f"{at[11:19]} ") + self._text(sound_words(sound), "bold" if sound.kind == "start" else "")

    def _text(self, words: str, style: str = "") -> Text:
        return Text(printable(words), style)


def log_words(line: str) -> str:
    """A log line without its colours, its date and the blanks between its columns.

    >>> log_words("2026-11-26T03:27:16.123456Z [\\x1b[33mwarning  \\x1b[0m] sensor.state     state=no_audio")
    '03:27:16 [warning] sensor.state state=no_audio'
    """
    plain = re.sub(r"\s+", " ", _COLOURS.sub("", line)).replace(" ]", "]").strip()
    return re.sub(r"^\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)\S*", r"\1", plain)


def _span(seconds: float) -> str:
    """A time in its largest unit, as a person says it.

    >>> _span(0.42), _span(75), _span(7300)
    ('0.4 s', '1 min', '2 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min" if seconds < 3600 else f"{int(seconds // 3600)} h"
