"""A microphone that comes and goes: every second is heard or counted, nothing is spliced."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.capture.ledger import Ledger
from edgetag.capture.microphone import BLOCK_S, RING_S, DeviceError, Lost, Microphone, Opened, Piece, Tick
from edgetag.capture.ring import BlockRing
from edgetag.capture.source import Block
from edgetag.capture.windows import Windower
from fakes_microphone import FakeMicrophone, Fault, SteppedMicrophone, VirtualTime, noise

RATE_HZ = 8000
BLOCK = round(RATE_HZ * BLOCK_S)

FAULTS = st.one_of(
    st.none(),
    st.builds(Fault, st.just("late"), st.integers(1, 3 * RATE_HZ)),
    st.builds(Fault, st.just("stall"), st.integers(1, 2 * RATE_HZ)),
    st.builds(Fault, st.just("gone"), st.integers(0, 6)),
    st.builds(Fault, st.just("zeros"), st.just(0)),
)


def street(faults: list[Fault | None], seconds: float, **more: object) -> tuple[FakeMicrophone, list[Piece]]:
    """All that a listener is told in so many seconds of a faulty microphone."""
    time = VirtualTime(RATE_HZ)
    fake = FakeMicrophone(time, iter(faults), **more)  # type: ignore[arg-type]
    return fake, list(SteppedMicrophone(fake, round(seconds * RATE_HZ)).pieces())


def sessions(pieces: list[Piece]) -> Iterator[list[Block]]:
    """The blocks of each opening."""
    blocks: list[Block] = []
    for piece in pieces:
        match piece:
            case Opened():
                blocks = []
                yield blocks
            case Block():
                blocks.append(piece)


@given(faults=st.lists(FAULTS, max_size=60), n_channels=st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_every_frame_is_where_it_was_heard(faults: list[Fault | None], n_channels: int) -> None:
    """Any schedule of faults: frame i is the one that passed i frames after the opening's first."""
    fake, pieces = street(faults, 30, n_channels=n_channels)
    world = iter(fake.world)
    for blocks in sessions(pieces):
        begin = None
        for block in blocks:
            first, n_frames = next(world)
            begin = first - block.first_frame if begin is None else begin
            assert first - block.first_frame == begin
            assert block.frames.shape == (n_frames, n_channels)
            if block.frames.any():
                expected = noise(begin + block.first_frame, begin + block.first_frame + n_frames)
                np.testing.assert_array_equal(block.frames[:, -1], expected)


@given(faults=st.lists(FAULTS, max_size=60))
@settings(max_examples=60, deadline=None)
def test_heard_and_lost_is_what_passed(faults: list[Fault | None]) -> None:
    """Any schedule of faults: the seconds add up to those of the world, but for a block under way."""
    time = VirtualTime(RATE_HZ)
    fake, ledger = FakeMicrophone(time, iter(faults)), Ledger(0.0)
    for piece in SteppedMicrophone(fake, 40 * RATE_HZ).pieces():
        ledger.note(piece)
    health = ledger.health(time.monotonic())
    assert health.heard_s == pytest.approx(sum(n for _, n in fake.world) / RATE_HZ, abs=1e-3)
    assert health.heard_s + health.lost_s == pytest.approx(time.monotonic(), abs=0.11)  # a block


def test_a_device_that_is_not_there_is_tried_again_with_patience() -> None:
    """Every attempt is told, with its number; the waits double from one second to thirty."""
    time = VirtualTime(RATE_HZ)
    fake = FakeMicrophone(time, iter([Fault("gone", 9)]))
    pieces = SteppedMicrophone(fake, 200 * RATE_HZ).pieces()
    told = [(time.monotonic(), piece.attempts) for piece in pieces if isinstance(piece, Lost)]
    assert [attempts for _, attempts in told] == list(range(1, 11))
    waits = np.diff([at for at, _ in told])
    np.testing.assert_allclose(waits, 0.75 * np.array([2, 4, 8, 16, 30, 30, 30, 30, 30]), atol=0.01)


def test_a_device_that_fails_at_once_is_not_a_new_one() -> None:
    """Patience grows over openings that bring next to nothing, and ends with ten seconds of audio."""
    flapping: list[Fault | None] = [None, Fault("gone", 0)] * 3
    _, pieces = street([*flapping, *[None] * 150, Fault("gone", 0)], 60)
    assert [piece.attempts for piece in pieces if isinstance(piece, Lost)] == [1, 2, 3, 1]


def test_a_minute_of_zeros_opens_the_device_anew() -> None:
    """Some wake up then."""
    _, pieces = street([Fault("zeros", 0)] * 650, 80)
    reasons = [piece.reason for piece in pieces if isinstance(piece, Lost)]
    assert reasons == ["street: nothing but zeros for 60 s"]
    assert sum(isinstance(piece, Opened) for piece in pieces) == 2


def test_a_listener_who_is_too_late_loses_the_oldest_and_is_told() -> None:
    """
    read    ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~    for 40 s, while nobody listened
    ring              ~~~~~~~~~~~~~~~~~~~~~~~~~~    the last 30
    """
    time = VirtualTime(RATE_HZ)
    microphone = SteppedMicrophone(FakeMicrophone(time, iter(())), 41 * RATE_HZ, n_steps=401)
    blocks = [piece for piece in microphone.pieces() if isinstance(piece, Block)]
    assert blocks[0].first_frame == 400 * BLOCK - round(RING_S * RATE_HZ)
    ledger = Ledger(0.0)
    microphone = SteppedMicrophone(FakeMicrophone(VirtualTime(RATE_HZ), iter(())), 40 * RATE_HZ, n_steps=401)
    for piece in microphone.pieces():
        ledger.note(piece)
    health = ledger.health(40.0)
    assert (health.heard_s, health.lost_s, health.overruns) == (30.0, 10.0, 1)


def test_the_thread_reads_and_the_listener_hears(recwarn: pytest.WarningsRecorder) -> None:
    """In real time: ticks while nothing comes, blocks in order, and all of them after `leave()`."""
    go = threading.Event()

    class Slow:
        name, rate_hz, n_channels = "slow", RATE_HZ, 1

        def read(self, n_frames: int) -> tuple[np.ndarray, bool]:
            go.wait()
            time.sleep(0.001)
            return np.ones((n_frames, 1), np.float32), False

        def pending(self) -> int:
            return 0

        def close(self) -> None:
            pass

    places, ticks = [], 0
    with Microphone(Slow) as microphone:
        for piece in microphone.pieces():
            match piece:
                case Tick():
                    ticks += 1
                    go.set()
                case Block():
                    places.append(piece.first_frame)
                    if len(places) == 20:
                        microphone.leave()
                case Lost():
                    break  # a hundred times too fast: its rate is a fault
    assert ticks
    assert places[:20] == [k * BLOCK for k in range(20)]
    assert not microphone.hangs


def test_a_read_that_hangs_keeps_nobody() -> None:
    """Leaving returns, and says so."""
    forever = threading.Event()

    class Hangs:
        name, rate_hz, n_channels = "hangs", RATE_HZ, 1

        def read(self, n_frames: int) -> tuple[np.ndarray, bool]:
            forever.wait()
            raise DeviceError("gone")

        def pending(self) -> int:
            return 0

        def close(self) -> None:
            pass

    with Microphone(Hangs) as microphone:
        pieces = microphone.pieces()
        assert isinstance(next(pieces), Opened)
        assert isinstance(next(pieces), Tick)
    assert microphone.hangs
    forever.set()


def test_a_fault_of_ours_does_not_end_the_hearing() -> None:
    """Whatever an opening raises, it is tried again."""

    def broken() -> object:
        raise ZeroDivisionError

    with Microphone(broken, jitter=lambda: 0.0) as microphone:  # type: ignore[arg-type]
        lost = [next(microphone.pieces()) for _ in range(1)]
    assert lost == [Lost("the microphone could not be read (ZeroDivisionError)", 1)]


def test_a_ring_keeps_copies() -> None:
    """Neither side sees the other's arrays change."""
    ring, frames = BlockRing(2, 4, 1), np.ones((4, 1), np.float32)
    ring.put(0, frames, 0.0)
    frames[:] = 2
    block = ring.take()
    ring.put(4, frames, 0.1)
    ring.put(8, frames, 0.2)
    assert block is not None
    assert block.frames.tolist() == [[1.0]] * 4
    assert ring
    assert [taken.first_frame for taken in iter(ring.take, None)] == [4, 8]
    assert not ring


@given(faults=st.lists(FAULTS, max_size=40))
@settings(max_examples=40, deadline=None)
def test_windows_without_a_fault_are_those_of_a_recording(faults: list[Fault | None]) -> None:
    """Any schedule of faults: a window that says it is whole is, bit for bit, what passed on the street."""
    rate_hz, size = 44_100, 8820
    fake = FakeMicrophone(VirtualTime(rate_hz), iter(faults))
    world, begin, n_whole, windower = iter(fake.world), 0, 0, Windower(rate_hz, hop_samples=4410)
    for piece in SteppedMicrophone(fake, 15 * rate_hz).pieces():
        match piece:
            case Opened():
                windower = Windower(rate_hz, hop_samples=4410, window_samples=size)
            case Block():
                begin = next(world)[0] - piece.first_frame
                for window in windower.feed(piece):
                    if window.valid == 1 and window.overruns == 0 and window.samples.all():
                        first = begin + window.start_sample
                        np.testing.assert_array_equal(window.samples, noise(first, first + size))
                        n_whole += 1
    assert n_whole or any(fault is not None for fault in faults)
