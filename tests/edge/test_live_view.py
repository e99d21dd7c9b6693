"""What a person at a sensor's terminal sees: the picture and its needle; nobody who hears waits for it."""

import io
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgetag.capture.microphone import Lost, Opened, Tick
from edgetag.capture.pace import Pace
from edgetag.capture.source import Block
from edgetag.contract.errors import OutputError
from edgetag.contract.event import AudioHealth, DeliveryHealth, LoadHealth, OutboxHealth, timestamp
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.delivery.table import Table
from edgetag.dsp.level import LevelMeter
from edgetag.listener import Account
from edgetag.live.glance import Glance
from edgetag.live.picture import picture
from edgetag.live.show import LiveView, QuickMeter
from edgetag.log import configure
from fakes import START_UTC_S, sensor_status, sound_event, tags_event

NOW_S = START_UTC_S + 60
UNTAGGED = {"coarse": {}, "fine": {}, "refined": [], "active": []}
AUDIO = AudioHealth("street", 44_100, 44_100.0, 123.0, 0.5, 1, 1)
LOAD = LoadHealth(0, 5.0, 0, 0)
DELIVERY = DeliveryHealth(1, 1, "", OutboxHealth(7, 900, dropped=2))


def glance(n: int = 6, **changes: Any) -> Glance:
    """A sensor that has heard so many windows."""
    found = Glance(SONYC_UST, ("lamp", "starter"), "online", "hearing", 63.2, 78.4, is_calibrated=True)
    for seq in range(n):
        found.windows.append(tags_event(seq))
    found.n_windows, found.audio, found.load = n, AUDIO, LOAD
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def lines(found: Glance, columns: int = 80, rows: int = 24, *, is_ascii: bool = False) -> list[str]:
    return picture(found, NOW_S, columns, rows, is_ascii=is_ascii).plain.split("\n")


# -- the picture ---------------------------------------------------------------------------------------------

words = st.text(max_size=60)
glances = st.builds(
    lambda verdicts, reason, name, log, level_db, max_db, delivery, unreachable, calibrated: _glance(
        verdicts, reason, name, log, level_db, max_db, delivery, unreachable, calibrated
    ),
    st.lists(st.sampled_from(["tagged", "silent", "quiet", "too_little_audio"]), max_size=120),
    words,
    words,
    st.lists(words, max_size=5),
    st.none() | st.floats(-150, 150),
    st.none() | st.floats(-150, 150),
    st.none() | st.just(DELIVERY),
    words,
    st.booleans(),
)


def _glance(
    verdicts: list[str],
    reason: str,
    name: str,
    log: list[str],
    level_db: float | None,
    max_db: float | None,
    delivery: DeliveryHealth | None,
    unreachable: str,
    calibrated: bool,
) -> Glance:
    found = glance(0, reason=reason, heading=(name,), delivery=delivery, unreachable=unreachable)
    found.now_db, found.max_db, found.is_calibrated = level_db, max_db, calibrated
    for seq, verdict in enumerate(verdicts):
        found.windows.append(tags_event(seq, verdict=verdict, **({} if verdict == "tagged" else UNTAGGED)))
        found.sounds.append(sound_event(seq, name=name or "dog"))
    found.log.extend(log)
    return found


@given(glances, st.integers(0, 130), st.integers(0, 60), st.booleans())
@settings(deadline=None, max_examples=150)
def test_it_fits_any_terminal_and_obeys_nothing(
    found: Glance, columns: int, rows: int, is_ascii: bool
) -> None:
    """No line is too wide, there are not too many, and no character is a command."""
    drawn = lines(found, columns, rows, is_ascii=is_ascii)
    assert len(drawn) <= max(rows, 1)
    assert all(cell_len(line) <= max(columns, 1) for line in drawn)
    assert all(line.isprintable() for line in drawn)


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_where_there_is_nothing_but_ascii_there_is_nothing_but_ascii(columns: int) -> None:
    found = glance(delivery=DELIVERY)
    found.log.append("2026-11-26T03:56:32Z [warning  ] x")
    found.sounds.append(sound_event())
    assert "\n".join(lines(found, columns, is_ascii=True)).isascii()


def test_eighty_by_twenty_four_has_all_of_it() -> None:
    found = glance(delivery=DELIVERY, log=["2026-11-26T03:56:32Z [warning  ] microphone.lost     reason=x"])
    found.sounds.append(sound_event())
    text = "\n".join(lines(found))
    for part in (
        "edgetag run  lamp · starter · street",
        "10:01:00 UTC" if NOW_S % 3600 == 60 else " UTC",
        "online: hearing",
        "now   63.2 dB(A)",
        "at most 78.4",
        "LAeq 63.2  LAFmax 78.4  LA90 55.1",
        "human-voice 91%: person-or-small-group-talking 80%",
        "lag 0.20 s · 6 windows · heard 2 min · lost 0.5 s, 1 overrun",
        "broker: reached",
        "outbox: 7 waiting · 2 dropped",
        "03:56:32 [warning] microphone.lost reason=x",
        "dog begins, 91%",
    ):
        assert part in text, part
    for category in SONYC_UST.categories:
        assert category.name in text


def test_what_matters_least_goes_first_where_there_is_no_room() -> None:
    """
    rows    what is left
    11      title, state, level, the eight categories
     3      title, state, level
     1      title
    """
    found = glance(delivery=DELIVERY)
    assert [line.split()[0] for line in lines(found, rows=11)[3:]] == [c.name for c in SONYC_UST.categories]
    assert [line.split()[0] for line in lines(found, rows=3)] == ["edgetag", "online:", "now"]
    assert [line.split()[0] for line in lines(found, rows=1)] == ["edgetag"]


def test_history_runs_from_left_to_right_and_the_last_windows_stay() -> None:
    """
    dog     ▁▂▄█     0.02, 0.2, 0.45, 0.95
    """
    found = glance(0)
    for seq, p in enumerate((0.02, 0.2, 0.45, 0.95)):
        found.windows.append(tags_event(seq, coarse=dict.fromkeys(SONYC_UST.coarse_ids, 0.0) | {"8": p}))
    dog = next(line for line in lines(found) if line.startswith("dog"))
    assert dog.split()[1:] == ["95%", "▁▂▄█"]
    narrow = next(line for line in lines(found, columns=13) if line.startswith("dog"))
    assert narrow.endswith("▄█")


def test_windows_that_were_not_tagged_have_marks_that_are_explained() -> None:
    found = glance(0)
    for seq, verdict in enumerate(("tagged", "quiet", "silent", "too_little_audio")):
        found.windows.append(tags_event(seq, verdict=verdict, **({} if verdict == "tagged" else UNTAGGED)))
    drawn = lines(found)
    assert next(line for line in drawn if line.startswith("dog")).endswith("▁._x")
    assert "not tagged: _ digital silence, . below the gate, x too little audio" in drawn


def test_without_audio_the_level_is_unknown() -> None:
    assert "now     -- dB(A)" in lines(glance(0, now_db=None, max_db=None))


def test_a_broker_that_is_not_reached_says_why_in_full() -> None:
    reason = "nothing listens at mqtt://broker.example:1883: is the broker running?"
    text = " ".join(lines(glance(delivery=DELIVERY, unreachable=reason), columns=40, rows=40))
    assert reason.split()[-1] in text


def test_a_quiet_window_s_row_of_the_table_says_that_it_was_not_tagged() -> None:
    """It is not that nothing was heard in it: no net was asked."""
    console = Console(file=io.StringIO(), width=120)
    Table(console, SONYC_UST).deliver(tags_event(0, verdict="quiet", **UNTAGGED))
    assert "below the gate" in console.file.getvalue()


# -- the needle ----------------------------------------------------------------------------------------------


def needle(samples: np.ndarray, rate_hz: int = 44_100, block_s: float = 0.1) -> float:
    """After the last block."""
    meter, n = QuickMeter(), round(block_s * rate_hz)
    return [meter(samples[k : k + n, None], rate_hz) for k in range(0, len(samples), n)][-1]


def tone(hz: float, rate_hz: int = 44_100, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8000, 44_100, 96_000])
@pytest.mark.parametrize(("hz", "db"), [(100, -19.1), (1000, 0.0), (2500, 1.3)])
def test_the_needle_weighs_as_the_a_curve_does(rate_hz: int, hz: float, db: float) -> None:
    """IEC 61672-1, table 3; a full-scale sine reads −3 dB at 1 kHz."""
    assert needle(tone(hz, rate_hz), rate_hz) == pytest.approx(db - 3.01, abs=0.2)


def test_the_needle_stands_where_the_window_s_level_does() -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 441_000).astype(np.float32)
    assert needle(noise) == pytest.approx(LevelMeter()(noise).laeq_db, abs=1.0)


def test_the_needle_falls_as_fast_weighting_does() -> None:
    """By 34.7 dB a second."""
    fallen = needle(np.concatenate([tone(1000), np.zeros(44_100 // 2, np.float32)]))
    assert fallen == pytest.approx(-3.01 - 34.7 / 2, abs=0.7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_no_sample_breaks_the_needle(value: float) -> None:
    assert needle(np.full(44_100, value, np.float32)) == -120.0


# -- its thread ----------------------------------------------------------------------------------------------


def view(file: Any, **options: Any) -> LiveView:
    console = Console(
        file=file, width=80, height=24, force_terminal=True, color_system=None, legacy_windows=False
    )
    return LiveView(console, SONYC_UST, ("lamp",), **options)


def account() -> Account:
    return Account(AUDIO, LOAD, DELIVERY, "")


def until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def block(scale: float) -> Block:
    return Block(0, np.full((4410, 1), scale, np.float32) * tone(1000, seconds=0.1)[:, None])


def test_what_is_handed_over_is_seen() -> None:
    terminal = io.StringIO()
    with view(terminal, calibration_db=100.0) as live:
        live.see(Opened("street", 44_100, Pace(44_100)), account)
        for _ in range(20):
            live.see(block(1.0), account)
        live.deliver(tags_event())
        live.sound(sound_event())
        live.state(sensor_status("degraded", "audio was lost"))
        text = live.drawn().plain
        until(lambda: "degraded" in terminal.getvalue())
    for part in ("now   97.0 dB(A)", "lamp · street", "degraded: audio was lost", "dog begins", "7 waiting"):
        assert part in text
    assert not live.hangs
    assert terminal.getvalue().endswith("\x1b[?1049l") or "\x1b[?1049l" in terminal.getvalue()


def test_a_device_that_is_lost_has_no_level() -> None:
    live = view(io.StringIO())
    live.see(Opened("street", 44_100, Pace(44_100)), account)
    live.see(block(1.0), account)
    assert "now   -" in live.drawn().plain
    live.see(Lost("gone", 1), account)
    live.see(Tick(), account)
    assert "now     -- dBFS(A)" in live.drawn().plain


def test_the_mark_stays_at_the_highest_level_for_ten_seconds() -> None:
    clock = [0.0]
    live = view(io.StringIO(), monotonic=lambda: clock[0])
    live.see(Opened("street", 44_100, Pace(44_100)), account)
    found = []
    for k in range(130):
        clock[0] = k * 0.1
        live.see(block(1.0 if k < 10 else 0.01), account)
        found.append(live.drawn().plain.partition("at most ")[2].split("\n")[0].strip())
    assert found[9] == found[50] == found[105]
    assert float(found[9]) == pytest.approx(-3.0, abs=0.2)
    assert float(found[-1]) < -35


class Stuck(io.StringIO):
    """A terminal that stands still, as after Ctrl-S, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_written, self.is_free = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        if threading.current_thread() is not threading.main_thread():
            self.is_written.set()
            self.is_free.wait()
        return super().write(text)


def test_a_terminal_that_stands_still_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither who hears nor who ends it: both have come back while it still stands."""
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # theirs afterwards as before
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    terminal = Stuck()
    live = view(terminal)
    with live:
        assert terminal.is_written.wait(20)
        live.see(Opened("street", 44_100, Pace(44_100)), account)
        for seq in range(100):
            live.see(block(0.1), account)
            live.deliver(tags_event(seq))
    assert live.hangs
    terminal.is_free.set()
    sys.stdout.close()


class Gone(io.StringIO):
    """A terminal that has been closed; its first lines were taken."""

    def write(self, text: str) -> int:
        if threading.current_thread() is not threading.main_thread():
            raise OSError(5, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("may_leave", [False, True])
def test_a_terminal_that_has_gone_ends_it_only_if_nobody_else_listens(may_leave: bool) -> None:
    with view(Gone(), may_leave=may_leave) as live:
        until(lambda: not live.hangs)
        if may_leave:
            live.deliver(tags_event())
        else:
            with pytest.raises(OutputError, match="terminal cannot be written"):
                live.deliver(tags_event())


def test_log_lines_are_in_the_picture_and_afterwards_where_they_belong(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configured = structlog.get_config()
    configure()
    log = structlog.get_logger("edgetag.test")
    live = view(io.StringIO())
    with live.logs_shown():
        log.warning("street.closed", until="noon")
        assert "[warning] street.closed until=noon" in live.drawn().plain
        assert capsys.readouterr().err == ""
    assert "street.closed" in capsys.readouterr().err
    log.warning("street.open")
    assert "street.open" not in live.drawn().plain
    structlog.configure(**configured)


def test_times_are_of_the_windows_that_are_shown() -> None:
    found = glance(30)
    row = next(line for line in lines(found) if line.strip().startswith(timestamp(START_UTC_S + 10)[11:19]))
    assert row.rstrip().endswith(timestamp(START_UTC_S + 300)[11:19])
