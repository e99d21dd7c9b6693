"""A device's frames against the clock: what it lost, how fast it is, when each frame came."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.capture.pace import Pace

RATE_HZ = 48_000
BLOCK = RATE_HZ // 10


def deliver(pace: Pace, t_s: float, seconds: float, *, hz: float = RATE_HZ, chunk_s: float = 0.0) -> float:
    """Blocks at their time, at a true rate of `hz`, or in bursts every `chunk_s`; returns the time then."""
    for k in range(round(seconds * 10)):
        due_s = t_s + (k + 1) * BLOCK / hz
        burst_s = t_s + -(-(due_s - t_s) // chunk_s) * chunk_s if chunk_s else due_s
        pace.note(BLOCK, burst_s)
    return t_s + round(seconds * 10) * BLOCK / hz


def test_a_device_that_keeps_time_loses_nothing() -> None:
    """An hour at its own rate: no loss, no fault, the rate measured to a part in a million."""
    pace = Pace(RATE_HZ)
    deliver(pace, 100.0, 3600)
    assert (pace.lost, pace.fault) == (0, "")
    assert pace.measured_hz == pytest.approx(RATE_HZ, rel=1e-6)
    assert pace.time_of(0) == pytest.approx(100.0, abs=1e-6)


@pytest.mark.parametrize("ppm", [-9000, -300, -20, 20, 300, 9000])
def test_a_rate_that_is_off_is_measured_and_loses_nothing(ppm: int) -> None:
    """Within 1 %: measured, the frames stay where they are, and their times are true, for hours."""
    pace, hz = Pace(RATE_HZ), RATE_HZ * (1 + ppm * 1e-6)
    deliver(pace, 0.0, 3 * 3600, hz=hz)
    assert (pace.lost, pace.fault) == (0, "")
    assert pace.measured_hz == pytest.approx(hz, rel=1e-6)
    assert pace.time_of(pace.frame) == pytest.approx(pace.frame / hz, abs=1e-3)


@pytest.mark.parametrize("factor", [0.98, 0.985, 1.015, 1.1])
def test_a_rate_more_than_one_percent_off_is_a_fault(factor: float) -> None:
    """Known within half a minute, with both rates in the sentence."""
    pace = Pace(RATE_HZ)
    deliver(pace, 0.0, 30, hz=RATE_HZ * factor)
    assert pace.fault == f"its rate is {RATE_HZ * factor:.0f} Hz by the clock, 48000 Hz by its own account"


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.85])
def test_too_slow_a_delivery_is_a_fault_within_five_seconds(factor: float) -> None:
    """A device that brings half of what it should is broken, however politely."""
    pace = Pace(RATE_HZ)
    end_s = deliver(pace, 0.0, 3, hz=RATE_HZ)
    while not pace.fault and end_s < 60:
        end_s = deliver(pace, end_s, 0.1, hz=RATE_HZ * factor)
    assert end_s - 3 <= 5.0
    assert "samples a second where 48000 are expected" in pace.fault


@pytest.mark.parametrize("chunk_s", [0.25, 0.5, 2.0])
def test_bursts_are_not_losses(chunk_s: float) -> None:
    """Sound servers deliver in fragments: nothing is lost, and the rate is right."""
    pace = Pace(RATE_HZ)
    deliver(pace, 0.0, 300, chunk_s=chunk_s)
    assert (pace.lost, pace.fault) == (0, "")
    assert pace.measured_hz == pytest.approx(RATE_HZ, rel=1e-3)


@pytest.mark.parametrize("stall_s", [0.5, 4.0, 60.0])
@pytest.mark.parametrize("ppm", [0, 5000])
def test_what_comes_late_is_not_lost(stall_s: float, ppm: int) -> None:
    """
    ~~~~~~~~~......~~~~~~~      nothing for a while, then everything at once
    """
    pace, hz = Pace(RATE_HZ), RATE_HZ * (1 + ppm * 1e-6)
    end_s = deliver(pace, 0.0, 100, hz=hz)
    for k in range(round(stall_s * 10)):
        pace.note(BLOCK, end_s + stall_s + 0.001 * k / 600)
    end_s += round(stall_s * 10) * BLOCK / hz
    deliver(pace, end_s, 60, hz=hz)
    assert (pace.lost, pace.fault) == (0, "")


@pytest.mark.parametrize("lost_s", [0.2, 1.0, 30.0])
@pytest.mark.parametrize("after_s", [5, 100])
def test_a_silent_loss_is_found_in_seconds(lost_s: float, after_s: int) -> None:
    """Frames that never come and nobody mentions: the index moves on by them, within five seconds."""
    pace = Pace(RATE_HZ)
    end_s = deliver(pace, 0.0, after_s)
    end_s = deliver(pace, end_s + lost_s, 6)
    assert pace.lost / RATE_HZ == pytest.approx(lost_s, abs=0.01)
    deliver(pace, end_s, 60)
    assert pace.lost / RATE_HZ == pytest.approx(lost_s, abs=0.01)
    assert pace.fault == ""


@given(
    losses=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 5 * RATE_HZ)), max_size=20),
    start_s=st.sampled_from([0.0, 12.5, 1e7]),
)
@settings(max_examples=50, deadline=None)
def test_what_the_device_says_it_dropped_is_counted_to_the_frame(
    losses: list[tuple[int, int]], start_s: float
) -> None:
    """Delivered and lost frames are those that passed, after any schedule of overflows."""
    pace, passed = Pace(RATE_HZ), 0
    for n_blocks, n_lost in losses:
        for _ in range(n_blocks):
            passed += BLOCK
            assert pace.note(BLOCK, start_s + passed / RATE_HZ) == passed - BLOCK
        passed += n_lost + BLOCK
        assert pace.note(BLOCK, start_s + passed / RATE_HZ, overflowed=True) == passed - BLOCK
    assert pace.frame == passed


def test_an_overflow_counts_at_least_one_frame() -> None:
    """The device's word counts, also where the clock sees nothing; also in the first block."""
    pace = Pace(RATE_HZ)
    assert pace.note(BLOCK, 0.1, overflowed=True) == 1
    deliver(pace, 0.1, 2)
    assert pace.note(BLOCK, 2.15, overflowed=True) == pace.frame - BLOCK
    assert pace.lost == 2


def test_what_a_late_reader_finds_behind_a_block_had_come_with_it() -> None:
    """The device begins at 10 s; its first block is read half a second late, four more are there already.

    world   |....|....|....|....|....|
    read                              ^ 0, then 1, 2, 3, 4 at once
    """
    pace = Pace(8000)
    for k in range(5):
        pace.note(800, 10.5, n_pending=800 * (4 - k))
        assert pace.time_of(0) == pytest.approx(10.0)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1), st.integers(0, 20_000)), max_size=12))
def test_who_asks_often_is_told_what_who_asks_once_is(stretches: list[tuple[int, float, int]]) -> None:
    """Whatever comes late or is lost in between, by the device's word or without."""
    often, once = Pace(RATE_HZ), Pace(RATE_HZ)
    t_s = 0.0
    for n_blocks, pause_s, n_lost in stretches:
        t_s += pause_s + n_lost / RATE_HZ
        for k in range(n_blocks):
            t_s += BLOCK / RATE_HZ
            for pace in often, once:
                pace.note(BLOCK, t_s, overflowed=n_lost > 10_000 and k == 0)
            often.time_of(often.frame)
        assert often.time_of(often.frame) == once.time_of(once.frame)
