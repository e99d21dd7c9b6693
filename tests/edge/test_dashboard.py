"""What the dashboard keeps of a network, and what it tells of it: within bounds, whatever comes.

Windows are drawn: a column is a cell of ten seconds or a minute, a dot is one in which nothing comes.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.contract.event import Level, encode, timestamp
from edgetag.dashboard.board import N_SOUNDS, N_SOUNDS_EACH, Board, Changes, Row, UnknownSensorError
from edgetag.dashboard.feed import Feed, Reader
from edgetag.dashboard.hour import CELL_S, MAX_TAGS, N_CELLS, SPAN_S, Hour, cell_at, place
from edgetag.dashboard.sounds import Sounds
from edgetag.delivery.network import Network, Sound, read
from edgetag.delivery.subscription import Lost, Message, Missed, Regained
from fakes import (
    START_UTC_S,
    bundle_info,
    sensor_health,
    sensor_status,
    sound_event,
    tags_event,
)

PREFIX = "sonyc/v1"
NOW_S = START_UTC_S


# -- an hour -------------------------------------------------------------------------------------------------


def drawn(values: list[float | None], last: int = 12) -> str:
    return "".join("." if value is None else f"{value:.0f}"[0] for value in values[-last:])


def heard(columns: str, *, start_s: float = NOW_S, step_s: float = CELL_S) -> Hour:
    hour = Hour()
    for column, digit in enumerate(columns):
        if digit != ".":
            hour.add(start_s + column * step_s, 10.0 * int(digit), {"1": int(digit) / 10})
    return hour


@pytest.mark.parametrize("columns", ["123456789123", "1.3.5..8..12", "1..........."])
def test_each_window_is_in_the_cell_of_its_time(columns: str) -> None:
    hour, last = heard(columns), cell_at(NOW_S) + 11
    assert drawn(hour.levels(last)) == columns
    assert drawn(hour.percents("1", last)) == columns


def test_what_waited_in_an_outbox_is_put_where_it_belongs() -> None:
    hour = Hour()
    for column in (11, 0, 5, 3):
        hour.add(NOW_S + column * CELL_S, 10.0 * (column + 1) / 2, {})
    assert drawn(hour.levels(cell_at(NOW_S) + 11)) == "5..2.3.....6"


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3 * SPAN_S),
            st.floats(-120, 140),
            st.dictionaries(st.sampled_from("123"), st.floats(0, 1)),
        ),
        max_size=60,
    ),
    st.integers(0, 3 * SPAN_S),
)
@settings(max_examples=300)
def test_an_hour_is_what_a_list_of_all_windows_would_say(
    windows: list[tuple[int, float, dict[str, float]]], until_s: int
) -> None:
    """By cell, mean energy and highest probability; what is older than an hour before the newest is gone."""
    hour, kept, newest = Hour(), [], -1
    for at_s, level_db, coarse in windows:
        hour.add(at_s, level_db, coarse)
        newest = max(newest, cell_at(at_s))
        if cell_at(at_s) > newest - N_CELLS:
            kept.append((cell_at(at_s), level_db, coarse))
    last = cell_at(until_s)
    for index, (level_db, percent) in enumerate(
        zip(hour.levels(last), hour.percents("1", last), strict=True)
    ):
        cell = last - N_CELLS + 1 + index
        here = [window for window in kept if window[0] == cell and cell > newest - N_CELLS]
        assert (level_db is None) == (not here)
        if here:
            mean = sum(10 ** (window[1] / 10) for window in here) / len(here)
            assert level_db == pytest.approx(10 * math.log10(mean), abs=0.051)
        tagged = [round(100 * window[2]["1"]) for window in here if "1" in window[2]]
        assert percent == max(tagged, default=None)


def test_a_minute_is_the_mean_energy_of_its_windows() -> None:
    hour = Hour()
    minute_s = 60 * (NOW_S // 60)
    for offset_s, level_db in ((5, 60.0), (25, 60.0), (55, 70.0), (-30, 50.0)):
        hour.add(minute_s + offset_s, level_db, {})
    mean_db = round(10 * math.log10((2 * 10**6 + 10**7) / 3), 1)
    assert hour.minutes(int(minute_s // 60), 3) == [None, 50.0, mean_db]


@given(
    st.lists(st.tuples(st.integers(0, 2 * SPAN_S), st.floats(-120, 140)), max_size=40), st.integers(0, 130)
)
def test_minutes_are_those_of_the_cells_in_them(windows: list[tuple[int, float]], last: int) -> None:
    """A minute has a level where one of its six cells has, and lies between theirs."""
    hour = Hour()
    for at_s, level_db in windows:
        hour.add(at_s, level_db, {})
    cells = hour.levels(6 * last + 5)
    for index, level_db in enumerate(hour.minutes(last, 60)):
        within = [cell for cell in cells[6 * index : 6 * index + 6] if cell is not None]
        assert (level_db is None) == (not within)
        assert level_db is None or min(within) - 0.11 <= level_db <= max(within) + 0.11


def test_it_tells_when_more_than_the_newest_two_minutes_have_changed() -> None:
    """Who shows it then has to have all of it anew."""
    hour = Hour()
    assert [hour.add(60.0 * minute, 50.0, {}) for minute in (10, 11, 10, 9, 12, 11, 10)] == [
        *(True, True, True, False, True, True, False)
    ]


def test_another_bundles_tags_take_the_place_of_those_that_are_over() -> None:
    """No more tags are kept than there is room for."""
    hour = Hour()
    hour.add(0.0, 50.0, {f"old-{n}": 0.5 for n in range(100)})
    hour.add(10.0, 50.0, {"new": 0.5})
    assert hour.tags == [f"old-{n}" for n in range(MAX_TAGS)]
    hour.add(SPAN_S + 10.0, 50.0, {"new": 0.5})
    assert hour.tags == ["new"]


@pytest.mark.parametrize(
    ("end_s", "is_late", "where"),
    [
        (NOW_S - 0.5, False, NOW_S - 0.5),
        (NOW_S - 1_800, True, NOW_S - 1_800),
        (NOW_S + 30, False, NOW_S + 30),  # its clock is fast
        (NOW_S + 90_000, False, NOW_S),  # its clock is wrong, or it is a replay of what is yet to come
        (NOW_S - 90_000, False, NOW_S),  # a recording of yesterday
        (NOW_S - 90_000, True, None),  # it waited for a day
    ],
)
def test_a_window_is_shown_where_it_can_have_been(end_s: float, is_late: bool, where: float | None) -> None:
    assert place(end_s, NOW_S, is_late=is_late) == where


# -- sounds --------------------------------------------------------------------------------------------------


def sound(seq: int, kind: Any = "start", **changes: object) -> Sound:
    said = read("events", encode(sound_event(seq, kind=kind, **changes)))
    assert isinstance(said, Sound)
    return said


def test_a_beginning_and_its_end_are_one_row() -> None:
    sounds = Sounds(10)
    begun = sounds.take("lamp", sound(0, id="a/0"))
    other = sounds.take("lamp", sound(1, id="a/1"))
    ended = sounds.take("lamp", sound(2, "end", id="a/0", duration_s=35.0, reason="audio_ended"))
    assert (begun.is_over, ended.is_over, ended.duration_s, ended.reason) == (
        False,
        True,
        35.0,
        "audio_ended",
    )
    assert sounds.rows == [ended, other]
    assert begun.number == ended.number


def test_a_beginning_that_comes_after_its_end_opens_nothing() -> None:
    sounds = Sounds(10)
    ended = sounds.take("lamp", sound(1, "end", id="a/0"))
    assert sounds.take("lamp", sound(0, id="a/0")) == ended
    assert sounds.rows == [ended]


def test_two_sensors_may_call_their_sounds_alike() -> None:
    sounds = Sounds(10)
    for sensor in ("lamp-1", "lamp-2"):
        sounds.take(sensor, sound(0, id="a/0"))
    assert [row.sensor for row in sounds.rows] == ["lamp-1", "lamp-2"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.sampled_from(["start", "end"]))))
def test_no_more_sounds_are_kept_than_there_is_room_for(said: list[tuple[str, int, str]]) -> None:
    sounds = Sounds(4)
    for sensor, number, kind in said:
        sounds.take(sensor, sound(number, kind, id=f"a/{number}"))
        assert len(sounds.rows) <= 4
    assert len({row.number for row in sounds.rows}) == len(sounds.rows)


# -- the board -----------------------------------------------------------------------------------------------


def board(max_sensors: int = 2_000) -> Board:
    made = Board(Network(PREFIX, max_sensors), "mqtt://localhost:1883", NOW_S)
    made.take(Regained(), NOW_S)
    return made


def tell(board: Board, sensor: str, kind: str, message: msgspec.Struct | bytes, now_s: float = NOW_S) -> None:
    payload = message if isinstance(message, bytes) else encode(message)
    board.take(Message(f"{PREFIX}/{sensor}/{kind}", payload, False, now_s), now_s)


def window_at(seq: int, end_s: float, level_db: float = 60.0, **changes: object) -> msgspec.Struct:
    level = Level(level_db, 0, 0, 0, calibrated=True)
    return tags_event(seq, start=timestamp(end_s - 10), end=timestamp(end_s), level=level, **changes)


def follow(snapshot: dict[str, Row], changes: Changes) -> dict[str, Row]:
    """What a page does, but for the minutes."""
    rows = {id: row for id, row in snapshot.items() if id not in changes.gone}
    return rows | {row.id: row for row in changes.sensors}


def shown(board: Board, now_s: float = NOW_S) -> dict[str, Row]:
    return {row.id: row for row in board.snapshot(now_s).sensors}


def without_minutes(rows: dict[str, Row]) -> dict[str, Row]:
    nothing = (
        msgspec.structs.replace(next(iter(rows.values())).minutes, level_db=[], last=0) if rows else None
    )
    return {id: msgspec.structs.replace(row, minutes=nothing) for id, row in rows.items()}


_SAID: list[Callable[[Board, str, int, float], None]] = [
    lambda b, id, n, now_s: tell(b, id, "tags", window_at(n, now_s), now_s),
    lambda b, id, n, now_s: tell(b, id, "status", sensor_status("degraded", "hot"), now_s),
    lambda b, id, n, now_s: tell(b, id, "status", sensor_status(), now_s),
    lambda b, id, n, now_s: tell(b, id, "info", bundle_info(), now_s),
    lambda b, id, n, now_s: tell(b, id, "health", sensor_health(), now_s),
    lambda b, id, n, now_s: tell(b, id, "events", sound_event(n, id=f"x/{n}"), now_s),
    lambda b, id, n, now_s: tell(b, id, "status", b"", now_s),
    lambda b, id, n, now_s: tell(b, id, "tags", b"\xff", now_s),
    lambda b, id, n, now_s: b.take(Lost("away", 1.0), now_s),
    lambda b, id, n, now_s: b.take(Regained(), now_s),
]


@given(
    st.lists(
        st.tuples(st.sampled_from(_SAID), st.sampled_from(["a", "b", "c"]), st.integers(0, 90), st.booleans())
    )
)
@settings(max_examples=300)
def test_who_follows_the_changes_sees_what_a_snapshot_shows(said: list[Any]) -> None:
    """Whatever comes, and whenever changes are asked for; of sounds, too."""
    kept, now_s = board(max_sensors=2), NOW_S
    rows, sounds = shown(kept), {}
    for number, (say, id, seconds, is_asked) in enumerate(said):
        now_s += seconds
        say(kept, id, number, now_s)
        if is_asked:
            changes = kept.changes(now_s)
            rows = follow(rows, changes)
            sounds = {n: s for n, s in sounds.items() if s.sensor not in changes.gone}
            sounds |= {sound.number: sound for sound in changes.sounds}
    changes = kept.changes(now_s)
    assert without_minutes(follow(rows, changes)) == without_minutes(shown(kept, now_s))
    for row in kept.snapshot(now_s).sounds:
        assert (sounds | {sound.number: sound for sound in changes.sounds})[row.number] == row


def test_nothing_new_is_nothing_told() -> None:
    kept = board()
    tell(kept, "lamp", "tags", window_at(0, NOW_S))
    assert [row.id for row in kept.changes(NOW_S).sensors] == ["lamp"]
    again = kept.changes(NOW_S + 1)
    assert (again.sensors, again.gone, again.sounds) == ([], [], [])


def test_a_change_brings_the_newest_minutes_and_all_of_them_where_an_older_one_has_changed() -> None:
    kept = board()
    tell(kept, "lamp", "tags", window_at(0, NOW_S))
    assert len(kept.changes(NOW_S).sensors[0].minutes.level_db) == 2
    tell(kept, "lamp", "tags", window_at(1, NOW_S - 900, late=True))
    minutes = kept.changes(NOW_S).sensors[0].minutes
    assert len(minutes.level_db) == 60
    assert [index for index, level in enumerate(minutes.level_db) if level is not None] == [44, 59]


def test_fine_tags_stand_below_their_coarse_ones() -> None:
    kept = board()
    tell(kept, "lamp", "info", bundle_info())
    fine = {"7-1": 0.8, "8-1": 0.6, "3-1": 0.4}
    coarse = {"7": 0.91, "3": 0.4}
    active = ["7", "3", "7-1", "8-1", "3-1"]
    tell(kept, "lamp", "tags", tags_event(coarse=coarse, fine=fine, active=active))
    tags = msgspec.to_builtins(shown(kept)["lamp"].tags)
    assert tags == [
        {
            "name": "human-voice",
            "percent": 91,
            "kinds": [{"name": "person-or-small-group-talking", "percent": 80}],
        },
        {"name": "non-machinery-impact", "percent": 40},
        {"name": "dog-barking-whining", "percent": 60},
    ]


def test_a_sensor_is_not_overdue_while_the_broker_cannot_be_heard() -> None:
    """
    broker    heard......lost.......heard......
    overdue   no     yes no         no      yes     windows that were missed are not the sensor's fault
    """
    kept = board()
    tell(kept, "lamp", "status", sensor_status())
    tell(kept, "lamp", "tags", window_at(0, NOW_S))

    def is_overdue(after_s: float) -> bool:
        return shown(kept, NOW_S + after_s)["lamp"].is_overdue

    assert (is_overdue(30), is_overdue(60)) == (False, True)
    kept.take(Lost("broken off", 1.0), NOW_S + 61)
    assert not is_overdue(62)
    kept.take(Regained(), NOW_S + 100)
    assert (is_overdue(101), is_overdue(160)) == (False, True)


def test_that_a_sensor_is_overdue_is_told_though_nothing_comes() -> None:
    kept = board()
    tell(kept, "lamp", "status", sensor_status())
    tell(kept, "lamp", "tags", window_at(0, NOW_S))
    kept.changes(NOW_S)
    assert kept.changes(NOW_S + 30).sensors == []
    assert [row.is_overdue for row in kept.changes(NOW_S + 60).sensors] == [True]
    assert kept.changes(NOW_S + 61).sensors == []


def test_how_the_broker_is_reached_is_told() -> None:
    kept = Board(Network(PREFIX), "mqtt://localhost:1883", NOW_S)
    assert kept.snapshot(NOW_S).notes.trouble == "connecting"
    kept.take(Lost("nothing listens", 2.0), NOW_S + 1)
    kept.take(Lost("nothing listens", 4.0), NOW_S + 3)
    notes = kept.snapshot(NOW_S + 4).notes
    assert (notes.trouble, notes.trouble_since_s, notes.retry_at_s) == ("nothing listens", NOW_S, NOW_S + 7)
    kept.take(Regained(), NOW_S + 7)
    kept.take(Missed(12), NOW_S + 8)
    tell(kept, "lamp", "tags", b"{}")
    notes = kept.snapshot(NOW_S + 9).notes
    assert (notes.trouble, notes.n_missed, notes.n_unreadable) == ("", 12, 1)
    assert notes.fault.startswith("sonyc/v1/lamp/tags: ")


def test_a_sensor_that_starts_anew_leaves_no_sound_open() -> None:
    """Its boot says so: the end of what was open when the power went will never come."""
    kept = board()
    tell(kept, "lamp", "tags", window_at(0, NOW_S, boot="a"))
    tell(kept, "lamp", "events", sound_event(0, boot="a", id="a/0"))
    tell(kept, "other", "events", sound_event(0, boot="a", id="a/0"))
    kept.changes(NOW_S)
    tell(kept, "lamp", "tags", window_at(0, NOW_S + 60, boot="b"))
    told = kept.changes(NOW_S + 60).sounds
    assert [(row.sensor, row.is_over, row.reason) for row in told] == [("lamp", True, "restarted")]
    assert [row.is_over for row in kept.detail("lamp", NOW_S).sounds] == [True]
    assert [row.is_over for row in kept.detail("other", NOW_S).sounds] == [False]


def test_a_sensor_whose_status_is_cleared_away_leaves_nothing() -> None:
    kept = board()
    tell(kept, "lamp", "status", sensor_status())
    tell(kept, "lamp", "tags", window_at(0, NOW_S))
    tell(kept, "lamp", "events", sound_event(0))
    kept.changes(NOW_S)
    tell(kept, "lamp", "status", b"")
    assert kept.changes(NOW_S).gone == ["lamp"]
    assert (shown(kept), kept.snapshot(NOW_S).sounds) == ({}, [])
    with pytest.raises(UnknownSensorError, match="nothing has come from a sensor 'lamp'"):
        kept.detail("lamp", NOW_S)


def test_a_sensors_page_has_its_hour_its_health_and_what_hears() -> None:
    kept = board()
    for kind, message in (("info", bundle_info()), ("status", sensor_status()), ("health", sensor_health())):
        tell(kept, "lamp", kind, message)
    for seq in range(30):
        tell(kept, "lamp", "tags", window_at(seq, NOW_S + 5 * seq, 50.0 + seq), NOW_S + 5 * seq)
    detail = kept.detail("lamp", NOW_S + 150)
    assert len(detail.level_db) == N_CELLS
    assert drawn(detail.level_db, 16) == "555556666677777."
    assert [(tag.id, tag.name, tag.percents[-2]) for tag in detail.tags][6] == ("7", "human-voice", 91)
    assert detail.health is not None
    assert detail.info is not None
    assert (detail.health.rss_mb, detail.info.bundle, detail.info.variant) == (120.0, "starter", "int8")


def test_whatever_comes_the_board_keeps_within_bounds() -> None:
    """Sensors, sounds, and what is told at once."""
    kept = board(max_sensors=5)
    for n in range(1_000):
        tell(kept, f"lamp-{n % 50}", "events", sound_event(n, id=f"x/{n}"))
        tell(kept, f"lamp-{n % 50}", "tags", window_at(n, NOW_S, active=[str(tag) for tag in range(200)]))
    snapshot, changes = kept.snapshot(NOW_S), kept.changes(NOW_S)
    assert (len(snapshot.sensors), snapshot.notes.n_beyond) == (5, 1_800)
    assert len(snapshot.sounds) == len(changes.sounds) == N_SOUNDS
    assert len(kept.detail("lamp-0", NOW_S).sounds) == N_SOUNDS_EACH
    assert all(len(row.tags) <= 16 for row in snapshot.sensors)


# -- the feed ------------------------------------------------------------------------------------------------


async def read_at_once(reader: Reader) -> list[bytes | None]:
    """One more, if there is one."""
    reading = asyncio.ensure_future(reader.next())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    if reading.done():
        return [reading.result()]
    reading.cancel()
    return []


@given(st.lists(st.booleans(), max_size=60))
def test_a_reader_gets_every_batch_in_order_or_a_snapshot_in_their_place(script: list[bool]) -> None:
    """True publishes the next number, False reads. A snapshot holds what was published before it is taken."""

    async def follow() -> None:
        reader, published, known = Reader(max_waiting=3), 0, None
        for is_published in [*script, *[False] * 5]:
            if is_published:
                reader.offer(b"%d" % published)
                published += 1
                continue
            for batch in await read_at_once(reader):
                assert batch is None or int(batch) == known
                known = published if batch is None else int(batch) + 1
        assert known == published

    asyncio.run(follow())


def test_a_slow_reader_begins_anew_with_a_snapshot() -> None:
    """
    published   0 1 2 3 4 | 5 6          there is room for three
    read        S           S 5 6
    """

    async def read() -> list[bytes | None]:
        reader = Reader(max_waiting=3)
        said = [await reader.next()]
        for n in range(5):
            reader.offer(b"%d" % n)
        said.append(await reader.next())
        for n in (5, 6):
            reader.offer(b"%d" % n)
        return [*said, await reader.next(), await reader.next()]

    assert asyncio.run(read()) == [None, None, b"5", b"6"]


def test_readers_are_bounded_and_all_go_home_when_it_closes() -> None:
    async def read() -> None:
        feed = Feed(max_readers=2)
        one, two = feed.enter(), feed.enter()
        assert one is not None
        assert two is not None
        assert feed.enter() is None
        feed.leave(one)
        assert feed.enter() is not None
        await two.next()
        waiting = asyncio.ensure_future(two.next())
        await asyncio.sleep(0)
        feed.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert feed.enter() is None

    asyncio.run(read())
