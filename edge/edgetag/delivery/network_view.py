"""A network of sensors for a person at a terminal, for a log, and for programs.

```
edgetag watch  mqtt://localhost:1883  sonyc/v1/+                                            10:04:05 UTC
2 sensors: 1 online, 1 degraded

sensor   state         window            LAeq      lag  heard
lamp-2   online       3 s ago      63.2 dB(A)    0.3 s  human-voice, person-or-small-group-talking
lamp-17  degraded     1 s ago   -23.1 dBFS(A)      2 h  engine · inference cannot keep up · late
```
Where the words do not fit beside the figures they are below them.

Whatever sensors say reaches a terminal through `_text` or `printable`: nothing of it is obeyed.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from edgetag.contract.errors import first_line, printable
from edgetag.contract.event import timestamp
from edgetag.delivery.network import (
    EVENTS,
    MAX_CHARS,
    Duplicates,
    Health,
    Info,
    Level,
    Network,
    News,
    Place,
    Sensor,
    Sound,
    Status,
    Window,
    place_of,
    read_json,
)
from edgetag.delivery.table import fill, level_unit

_SENSOR_COLUMNS = 6, 24  # at least, at most
_STATE_COLUMNS = 8  # "degraded"
_AGO_COLUMNS = 10  # "59 min ago"
_SPAN_COLUMNS = 7  # "59 min"
_LEVEL_COLUMNS = 14  # "-120.0 dBFS(A)", the floor
_MIN_HEARD_COLUMNS = 36  # "person-or-small-group-shouting," and some
_GAP = "  "

_STATES = ("online", "degraded", "no_audio", "offline")
_STATE_STYLES = {"online": "green", "degraded": "yellow", "no_audio": "bold yellow", "offline": "red"}
_VERDICTS = {"tagged": "nothing", "silent": "digital silence", "too_little_audio": "too little audio"}
_USUALLY_WAITING = 1  # the window that is just being published
_USUAL_CONNECTS = 2  # in an hour


# -- a picture -----------------------------------------------------------------------------------------------


def picture(network: Network, heading: str, trouble: str, now_s: float, columns: int, rows: int) -> Text:
    """All that is known, in at most `rows` lines of `columns`; what does not fit is counted.

    Args:
        network: what is known.
        heading: whose network it is.
        trouble: with the connection; "" for none.
        now_s: UTC.
        columns, rows: of the terminal.
    """
    layout = _Layout.fitting(network.sensors, columns)
    head = list(_head(network, heading, trouble, now_s, columns))
    foot = list(_foot(network, layout, rows - len(head)))
    body = _body(network, layout, now_s, rows - len(head) - len(foot))
    lines = [*head, *body, *foot][: max(rows, 1)]
    for line in lines:
        line.truncate(columns, overflow="ellipsis")
    return Text("\n", no_wrap=True, end="").join(lines)


@dataclass(frozen=True)
class _Layout:
    """How wide ids are, and whether words fit beside the figures."""

    columns: int
    id_columns: int

    @classmethod
    def fitting(cls, ids: Iterable[str], columns: int) -> "_Layout":
        least, most = _SENSOR_COLUMNS
        return cls(columns, min(max((cell_len(id) for id in ids), default=least), most))

    @property
    def figures_columns(self) -> int:
        cells = (self.id_columns, _STATE_COLUMNS, _AGO_COLUMNS, _LEVEL_COLUMNS, _SPAN_COLUMNS)
        return sum(cells) + len(_GAP) * len(cells)

    @property
    def is_beside(self) -> bool:
        return self.columns - self.figures_columns >= _MIN_HEARD_COLUMNS

    @property
    def indent_columns(self) -> int:
        return self.figures_columns if self.is_beside else len(_GAP)


def _head(network: Network, heading: str, trouble: str, now_s: float, columns: int) -> Iterator[Text]:
    clock = f"{datetime.fromtimestamp(now_s, UTC):%H:%M:%S} UTC"
    title = Text("edgetag watch", "bold") + _text(f"{_GAP}{heading}")
    title.truncate(max(columns - len(clock) - len(_GAP), 0), overflow="ellipsis", pad=True)
    yield title + Text(f"{_GAP}{clock}")
    n = len(network.sensors)
    yield Text(f"{n:,} sensor{'' if n == 1 else 's'}{': ' if n else ''}{_states(network.sensors.values())}")
    if trouble:
        yield _text(trouble, "bold red")
    yield Text()


def _states(sensors: Iterable[Sensor]) -> str:
    """`2 online, 1 offline`."""
    by_state = Counter(sensor.state if sensor.state in _STATES else "unknown" for sensor in sensors)
    return ", ".join(
        f"{by_state[state]:,} {_words(state)}" for state in (*_STATES, "unknown") if by_state[state]
    )


def _body(network: Network, layout: _Layout, now_s: float, rows: int) -> Iterator[Text]:
    """A header and the sensors by id; those that are not well come first where there is no room for all."""
    if not network.sensors:
        yield Text(f"Nothing has come under {network.prefix}/ yet.", "dim")
        return
    yield _header(layout)
    rows -= 1
    by_id = sorted(network.sensors.values(), key=lambda sensor: natural(sensor.id))
    blocks = [list(_block(sensor, layout, now_s)) for sensor in by_id[:rows]]
    if len(by_id) <= rows and sum(map(len, blocks)) <= rows:
        yield from chain(*blocks)
        return
    left = sorted(by_id, key=lambda sensor: _is_well(sensor, now_s))
    while left and (block := list(_block(left[0], layout, now_s))) and len(block) < rows:
        yield from block
        rows -= len(block)
        del left[0]
    yield Text(f"… and {len(left):,} more: {_states(left)}", "dim")


def _header(layout: _Layout) -> Text:
    cells = (
        f"{'sensor':{layout.id_columns}}",
        f"{'state':{_STATE_COLUMNS}}",
        f"{'window':>{_AGO_COLUMNS}}",
        f"{'LAeq':>{_LEVEL_COLUMNS}}",
        f"{'lag':>{_SPAN_COLUMNS}}",
        *(["heard"] if layout.is_beside else []),
    )
    return Text(_GAP.join(cells), "bold")


def _block(sensor: Sensor, layout: _Layout, now_s: float) -> Iterator[Text]:
    """A sensor's figures, and its words beside or below them."""
    figures = _figures(sensor, layout, now_s)
    indent = " " * layout.indent_columns
    lines = [line for line in fill(_said(sensor), layout.columns - len(indent)) if line]
    yield figures + Text(_GAP) + lines.pop(0) if layout.is_beside and lines else figures
    for line in lines:
        yield Text(indent) + line


def _figures(sensor: Sensor, layout: _Layout, now_s: float) -> Text:
    window, silence_s, lag_s = sensor.window, sensor.silence_s(now_s), sensor.lag_s
    style = "dim" if sensor.state == "offline" else ""
    ago = "" if silence_s is None else f"{_span(silence_s)} ago"
    cells = (
        _cell(sensor.id, layout.id_columns, style),
        _cell(_words(sensor.state), _STATE_COLUMNS, _STATE_STYLES.get(sensor.state, "dim")),
        _number(ago, _AGO_COLUMNS, "yellow" if sensor.is_overdue(now_s) else style),
        _number("" if window is None else _level(window.level), _LEVEL_COLUMNS, style),
        _number(_span(lag_s, with_tenths=True), _SPAN_COLUMNS, style),
    )
    return Text(_GAP).join(cells)


def _said(sensor: Sensor) -> Iterator[Text]:
    """What is heard, then what else there is to know, to be filled into lines."""
    heard = list(_heard(sensor))
    yield from heard
    for index, remark in enumerate(remarks(sensor)):
        yield _text(f"· {remark}" if heard or index else remark, "yellow")


def _heard(sensor: Sensor) -> Iterator[Text]:
    is_gone = sensor.state == "offline"
    active = sensor.active
    for index, name in enumerate(active):
        yield _text(name if index == len(active) - 1 else f"{name},", "dim" if is_gone else "")
    if sensor.window is not None and not active:
        yield _text(verdict(sensor.window), "dim")


def remarks(sensor: Sensor) -> Iterator[str]:
    """What a person should know before trusting the figures, each in at most `MAX_CHARS` characters."""
    for remark in _remarks(sensor):
        yield remark if len(remark) <= MAX_CHARS else f"{remark[: MAX_CHARS - 1]}…"


def _remarks(sensor: Sensor) -> Iterator[str]:
    if sensor.status is not None and sensor.state != "online" and sensor.status.reason:
        yield sensor.status.reason
    if sensor.state != "offline":
        yield from _doubts(sensor.window)
        yield from _deliveries(sensor.health)


def _doubts(window: Window | None) -> Iterator[str]:
    if window is None:
        return
    if window.source is not None:
        yield "replay"
    if window.late:
        yield "late"
    if window.audio.valid < 1:
        yield f"{window.audio.valid:.0%} of it heard"
    if window.audio.clipped > 0:
        yield f"{window.audio.clipped:.2%} clipped"
    if not window.clock.synced and window.source is None:
        yield "clock not synced"


def _deliveries(health: Health | None) -> Iterator[str]:
    if health is None:
        return
    if health.bundle.state == "refused":
        yield f"another bundle refused: {health.bundle.reason}"
    outbox = health.delivery.outbox
    if outbox.depth > _USUALLY_WAITING:
        yield f"{outbox.depth:,} waiting"
    if outbox.dropped:
        yield f"{outbox.dropped:,} dropped"
    if outbox.refused:
        yield f"{outbox.refused:,} refused by the broker"
    if outbox.fault:
        yield f"outbox: {outbox.fault}"
    if health.delivery.connects_last_hour > _USUAL_CONNECTS:
        yield f"connected {health.delivery.connects_last_hour:,} times in the last hour"


def _foot(network: Network, layout: _Layout, rows: int) -> Iterator[Text]:
    """The latest sounds, in at most a third of the rows, and what could not be used."""
    if sounds := list(network.sounds)[::-1][: max(rows // 3 - 2, 0)]:
        yield Text()
        yield Text("latest sounds", "bold")
        for sensor, sound in sounds:
            said = _text(_sound(sound), "bold" if sound.kind == "start" else "")
            yield Text(_GAP).join([Text(f"{_at(sound):%H:%M:%S}"), _cell(sensor.id, layout.id_columns), said])
    if network.n_unreadable:
        yield _text(f"{network.n_unreadable:,} messages not understood; the last: {network.fault}", "dim")
    if network.n_beyond:
        yield Text(f"{network.n_beyond:,} messages of more than {network.max_sensors:,} sensors", "yellow")


def _is_well(sensor: Sensor, now_s: float) -> bool:
    return sensor.state == "online" and not sensor.is_overdue(now_s)


def natural(id: str) -> list[tuple[int, str]]:
    """A key to sort ids by: `lamp-2` before `lamp-10`."""
    return [
        (int(part), "") if index % 2 else (0, part) for index, part in enumerate(re.split("([0-9]+)", id))
    ]


# -- a log ---------------------------------------------------------------------------------------------------


def log_line(news: News, now_s: float) -> str | None:
    """A window, a sound or a state in one line; None for what is no news to a reader."""
    sensor, said = news
    match said:
        case Window():
            words = " · ".join([", ".join(sensor.active) or verdict(said), *_doubts(said)])
            at, text = said.end, f"{_level(said.level)}{_GAP}{words}"
        case Sound():
            at, text = _at(said), _sound(said)
        case Status():
            at = datetime.fromtimestamp(now_s, UTC)
            text = f"{_words(said.state)}{': ' if said.reason else ''}{said.reason}"
        case Info() | Health():
            return None
    return printable(f"{at:%Y-%m-%dT%H:%M:%SZ}{_GAP}{sensor.id}{_GAP}{text}")


# -- for programs --------------------------------------------------------------------------------------------


class JsonLines:
    """Messages as lines of JSON: where from, when, and what was said.

    A line has `topic`, `sensor`, `kind`, `received` (UTC), `retained`, and `payload` as it came; or `fault`
    in the place of a payload that is no JSON. ASCII only.

    Args:
        prefix: of all topics.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._duplicates = Duplicates()

    def line(self, topic: str, payload: bytes, retained: bool, now_s: float) -> str | None:
        """One line, without its end; None for a duplicate, and for topics that no sensor can have."""
        if (place := place_of(topic, self._prefix)) is None:
            return None
        try:
            said = {"payload": read_json(payload)}
            if self._is_duplicate(place, said["payload"]):
                return None
        except ValueError as error:
            said = {"fault": first_line(error)}
        head = {
            "topic": topic,
            "sensor": place.sensor,
            "kind": place.kind,
            "received": timestamp(now_s),
            "retained": retained,
        }
        return json.dumps(head | said, separators=(",", ":"))

    def _is_duplicate(self, place: Place, payload: Any) -> bool:  # noqa: ANN401
        match payload:
            case {"boot": str(boot), "seq": int(seq)} if place.kind in EVENTS and len(boot) <= MAX_CHARS:
                return self._duplicates.is_one(place, boot, seq)
        return False


# -- words ---------------------------------------------------------------------------------------------------


def _text(said: str, style: str = "") -> Text:
    return Text(printable(said), style)


def _cell(said: str, columns: int, style: str = "") -> Text:
    text = _text(said, style)
    text.truncate(columns, overflow="ellipsis", pad=True)
    return text


def _number(said: str, columns: int, style: str = "") -> Text:
    return Text(f"{said:>{columns}}", style)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _level(level: Level) -> str:
    return f"{level.laeq_db:.1f} {level_unit(level.calibrated)}"


def verdict(window: Window) -> str:
    """Why a window has no tags, in words."""
    return _VERDICTS.get(window.verdict, _words(window.verdict))


def _at(sound: Sound) -> datetime:
    return sound.start if sound.kind == "start" else sound.end


def _sound(sound: Sound) -> str:
    if sound.kind == "start":
        return f"{sound.name} begins, {sound.peak:.0%}"
    why = "" if sound.reason == "faded" else f" ({_words(sound.reason)})"
    return f"{sound.name} ended after {_span(sound.duration_s)}, at most {sound.peak:.0%}{why}"


def _span(seconds: float | None, *, with_tenths: bool = False) -> str:
    """A time in its largest unit.

    >>> _span(59.9), _span(0.34, with_tenths=True), _span(-7300), _span(None)
    ('59 s', '0.3 s', '-2 h', '')
    """
    if seconds is None:
        return ""
    sign, size_s = "-" if seconds <= -0.05 else "", abs(seconds)
    if with_tenths and size_s < 9.95:
        return f"{sign}{size_s:.1f} s"
    for unit, unit_s, limit_s in (("s", 1, 60), ("min", 60, 3_600), ("h", 3_600, 172_800)):
        if size_s < limit_s:
            return f"{sign}{int(size_s // unit_s)} {unit}"
    return f"{sign}{min(int(size_s // 86_400), 9_999)} d"
