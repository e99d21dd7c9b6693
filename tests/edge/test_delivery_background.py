"""Delivery in the background: nobody waits, nothing is lost, and what is lost all the same is counted.

`FakeCourier` for what any courier may do; `FakeBroker` for the publisher and the network under it.
"""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.contract.errors import InputError, NetworkError
from edgetag.contract.event import DeliveryHealth, Health, Info, OutboxHealth, SoundEvent, Status, TagsEvent
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.background import HANGS_UP, REFUSED, RIVALRY, Background
from edgetag.delivery.connection import LostError, TakenOverError
from edgetag.delivery.mqtt import MqttPublisher
from edgetag.delivery.outbox import FILE_NAME, HANGS, Outbox, Queued
from edgetag.delivery.rows import Rows
from edgetag.delivery.sink import Courier, Forwarded, Settled
from fakes import (
    HANG_UP,
    NOTHING,
    FakeBroker,
    Published,
    accept,
    acknowledge,
    bundle_info,
    refuse,
    sensor_health,
    sensor_status,
    sound_event,
    tags_event,
)

WAIT_S = 20  # for what must happen
SOON_S = 1.0  # what a caller may be made to wait on a busy machine; mostly it is a fraction of a millisecond
N_HANG_UPS = 6  # on one message until it is set aside, the last three of them while it is alone


def eventually(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.005)


def decoded(kind: Forwarded, payload: bytes) -> TagsEvent | SoundEvent:
    if kind == "tags":
        return msgspec.json.decode(payload, type=TagsEvent)
    return msgspec.json.decode(payload, type=SoundEvent)


class FakeCourier(Courier):
    """Writes into `log` what it is given; `fail(n)` gives the error of the `n`-th message, if any.

    What it was given is settled when it is asked; of late it is the latest `n_held` only when they are asked
    for once more. With the connection they are lost.
    """

    def __init__(
        self, log: list[Any], fail: Callable[[int], Exception | None] = lambda n: None, n_held: int = 0
    ) -> None:
        self._log, self._fail, self._n_held = log, fail, n_held
        self._n_given = 0
        self._in_flight: list[int] = []
        self._is_quiet = False
        self._error: Exception | None = None
        self.refusals: dict[int, str] = {}  # by number

    def __enter__(self) -> Self:
        self._log.append("entered")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._log.append("left" if exc is None else "failed")

    def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
        if (error := self._fail(self._n_given)) is not None:
            self._error = error
            raise error
        self._n_given += 1
        self._in_flight.append(id)
        self._is_quiet = False
        self._log.append(decoded(kind, payload))

    def settled(self) -> list[Settled]:
        if self._error is not None:
            raise self._error
        n_settled = len(self._in_flight) - (0 if self._is_quiet else self._n_held)
        self._is_quiet = True
        settled = self._in_flight[: max(n_settled, 0)]
        del self._in_flight[: len(settled)]
        return [Settled(id) for id in settled]

    def state(self, status: Status) -> None:
        self._log.append(status)

    def announce(self, info: Info) -> None:
        self._log.append(info)

    def report(self, health: Health) -> None:
        self._log.append(health)

    def say(self, topic: str, payload: bytes, *, retain: bool) -> None:
        pass

    def heard(self) -> list[tuple[str, bytes]]:
        return []


def background(make: Callable[[Status, Info], Courier], **options: Any) -> Background:
    """With an outbox in memory; connects again at once, unless told otherwise."""
    defaults = {"status": sensor_status(), "info": bundle_info(), "wait": lambda _s: None}
    if "outbox" not in options:
        defaults["outbox"] = Outbox(None)
    return Background(make, **defaults | options)


def is_delivered(sink: Background) -> bool:
    return sink.delivery().outbox.depth == 0


def seqs(log: list[Any]) -> list[int]:
    return [message.seq for message in log if isinstance(message, TagsEvent | SoundEvent)]


def once(seqs: list[int]) -> list[int]:
    """As a subscriber sees them who has thrown away what came twice."""
    return list(dict.fromkeys(seqs))


def of(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


# -- order -----------------------------------------------------------------------------------------------


def test_what_is_said_while_connected_arrives_in_the_order_it_was_said() -> None:
    log: list[Any] = []
    degraded, other = sensor_status("degraded"), msgspec.structs.replace(bundle_info(), bundle="other")
    with background(lambda *_: FakeCourier(log)) as sink:
        eventually(lambda: sink.connected)
        said = [tags_event(0), sound_event(1), degraded, tags_event(2), other, sensor_health(), tags_event(3)]
        sink.deliver(said[0])
        sink.sound(said[1])
        sink.state(degraded)
        sink.deliver(said[3])
        sink.announce(other)
        sink.report(said[5])
        sink.deliver(said[6])
    assert log == ["entered", *said, "left"]
    assert not sink.connected


def test_so_it_does_if_it_is_said_while_the_outbox_is_being_looked_into() -> None:
    """It is found empty; then a message comes, a state, and another message."""
    log: list[Any] = []
    said = [tags_event(0), sensor_status("degraded"), tags_event(1)]

    class Beset(Outbox):
        def next(self) -> Queued | None:
            queued = super().next()
            if queued is None and not beset.is_set():
                beset.set()
                sink.deliver(said[0])
                sink.state(said[1])
                sink.deliver(said[2])
            return queued

    beset = threading.Event()
    with background(lambda *_: FakeCourier(log), outbox=Beset(None)) as sink:
        assert beset.wait(WAIT_S)
    assert log == ["entered", *said, "left"]


def test_a_courier_begins_with_the_last_state_and_info_and_is_not_told_them_twice() -> None:
    log: list[Any] = []
    begun: list[tuple[str, str]] = []
    absent = threading.Event()

    def make(status: Status, info: Info) -> Courier:
        begun.append((status.state, info.bundle))
        if not absent.is_set():
            absent.wait(WAIT_S)
            raise NetworkError("nobody there")
        return FakeCourier(log)

    with background(make) as sink:
        eventually(lambda: bool(begun))
        sink.deliver(tags_event(0))
        for state in ("degraded", "no_audio"):
            sink.state(sensor_status(state))
        sink.announce(msgspec.structs.replace(bundle_info(), bundle="other"))
        sink.report(sensor_health())
        absent.set()
    assert begun == [("online", "starter"), ("no_audio", "other")]
    assert log == ["entered", tags_event(0), "left"]


def test_nobody_is_called_before_there_is_a_state() -> None:
    made: list[str] = []

    def make(status: Status, info: Info) -> Courier:
        made.append(status.state)
        return FakeCourier([])

    with background(make, status=None) as sink:
        sink.deliver(tags_event(0))
        time.sleep(0.05)
        assert made == []
        sink.state(sensor_status("no_audio"))
        eventually(lambda: is_delivered(sink))
    assert made == ["no_audio"]
    with background(make, status=None):
        pass
    assert made == ["no_audio"]


# -- at least once ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    fails=st.lists(st.integers(0, 7), max_size=6),
    n_held=st.integers(0, 5),
    n_events=st.integers(0, 20),
)
def test_whatever_fails_every_event_is_settled_once_in_order_apart_from_what_comes_twice(
    fails: list[int], n_held: int, n_events: int
) -> None:
    """
    forwarded   0 1 2 3 ✗ |     2 3 4 5
    settled     * *       |     * * * *
    """
    logs: list[list[Any]] = []

    def make(status: Status, info: Info) -> Courier:
        n_good = fails[len(logs)] if len(logs) < len(fails) else None
        logs.append([])
        return FakeCourier(logs[-1], lambda n: NetworkError("lost") if n == n_good else None, n_held)

    with background(make) as sink:
        for seq in range(n_events):
            sink.deliver(tags_event(seq)) if seq % 3 else sink.sound(sound_event(seq))
        eventually(lambda: is_delivered(sink))
    forwarded = [seq for log in logs for seq in seqs(log)]
    assert once(forwarded) == list(range(n_events))
    assert all(seqs(log) == list(range(seqs(log)[0], seqs(log)[-1] + 1)) for log in logs if seqs(log))
    assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0)


def test_what_was_settled_just_before_a_failure_is_not_forwarded_again() -> None:
    """
    forwarded   0 1 2 ✗ |     3 4 5
    settled     * * *   |     * * *         the stars came with the failure
    """
    logs: list[list[Any]] = []

    class Late(FakeCourier):
        def settled(self) -> list[Settled]:
            if self._error is None or not self._in_flight:
                return super().settled()
            settled, self._in_flight = self._in_flight, []
            return [Settled(id) for id in settled]

    def make(status: Status, info: Info) -> Courier:
        logs.append([])
        is_first = len(logs) == 1
        return Late(logs[-1], lambda n: NetworkError("lost") if is_first and n == 3 else None, n_held=9)

    with background(make, status=None) as sink:
        for seq in range(6):
            sink.deliver(tags_event(seq))
        sink.state(sensor_status())
        eventually(lambda: is_delivered(sink))
    assert [seqs(log) for log in logs] == [[0, 1, 2], [3, 4, 5]]


def test_an_event_that_waited_says_so() -> None:
    """Ten seconds are not late, more are; a sound has no such word."""
    clock_s = [0.0]
    log: list[Any] = []
    there = threading.Event()

    def make(status: Status, info: Info) -> Courier:
        assert there.wait(WAIT_S)
        return FakeCourier(log)

    outbox = Outbox(None, monotonic=lambda: clock_s[0])
    with background(make, outbox=outbox, monotonic=lambda: clock_s[0]) as sink:
        sink.deliver(tags_event(0))
        sink.sound(sound_event(1))
        clock_s[0] = 0.5
        sink.deliver(tags_event(2))
        sink.deliver(tags_event(3, late=True))
        clock_s[0] = 10.5
        sink.deliver(tags_event(4))
        there.set()
        eventually(lambda: is_delivered(sink))
    assert log[1:-1] == [
        tags_event(0, late=True),
        sound_event(1),
        tags_event(2),
        tags_event(3, late=True),
        tags_event(4),
    ]


def test_what_an_earlier_process_left_is_delivered_first_and_late(tmp_path: Path) -> None:
    """However short it waited: nobody knows."""
    log: list[Any] = []

    def nobody(status: Status, info: Info) -> Courier:
        raise NetworkError("nobody there")

    with (
        structlog.testing.capture_logs() as logs,
        background(nobody, outbox=Outbox(tmp_path / FILE_NAME), wait=None) as sink,
    ):
        sink.deliver(tags_event(0))
        sink.sound(sound_event(1))
        sink.deliver(tags_event(2))
    (line,) = of(logs, "delivery.kept")
    assert (line["messages"], line["reason"]) == (3, "nobody there")
    outbox = Outbox(tmp_path / FILE_NAME)
    with background(lambda *_: FakeCourier(log), outbox=outbox, status=None) as sink:
        assert sink.delivery().outbox.depth == 3
        sink.deliver(tags_event(3))
        sink.state(sensor_status())
        eventually(lambda: is_delivered(sink))
    assert log[1:-1] == [tags_event(0, late=True), sound_event(1), tags_event(2, late=True), tags_event(3)]


def test_a_fault_of_ours_is_reported_and_does_not_end_delivery() -> None:
    log: list[Any] = []
    faults: list[Exception] = [ZeroDivisionError("of ours")]
    with (
        structlog.testing.capture_logs() as logs,
        background(lambda *_: FakeCourier(log, lambda n: faults.pop() if faults else None)) as sink,
    ):
        sink.deliver(tags_event(0))
    assert log == ["entered", "failed", "entered", tags_event(0), "left"]
    (failed,) = of(logs, "delivery.failed")
    assert failed["reason"] == "ZeroDivisionError: of ours"
    assert failed["exc_info"]


def test_an_outbox_of_another_process_is_refused(tmp_path: Path) -> None:
    """Here that of another sink: SQLite does not ask whose it is."""
    with (
        Outbox(tmp_path / FILE_NAME),
        pytest.raises(InputError, match="every sensor needs a state directory"),
        background(lambda *_: FakeCourier([]), outbox=Outbox(tmp_path / FILE_NAME)),
    ):
        pytest.fail("entered all the same")


# -- what is said about it -------------------------------------------------------------------------------


def test_how_often_the_broker_was_reached_and_why_not_and_what_waits() -> None:
    clock_s = [0.0]
    to_fail: list[str] = []

    def lost(n: int) -> Exception | None:
        return NetworkError(to_fail.pop()) if to_fail else None

    def health(connects: int, connects_last_hour: int, last_error: str, **outbox: int) -> DeliveryHealth:
        kept = OutboxHealth(**{"depth": 0, "bytes": 0} | outbox)
        return DeliveryHealth(connects, connects_last_hour, last_error, kept)

    with background(lambda *_: FakeCourier([], lost), monotonic=lambda: clock_s[0]) as sink:
        eventually(lambda: sink.delivery() == health(1, 1, ""))
        for n, clock_s[0] in enumerate((100.0, 3_500.0)):
            to_fail.append(f"lost {n}")
            sink.deliver(tags_event(n))
            eventually(lambda n=n: sink.delivery() == health(n + 2, n + 2, f"lost {n}"))  # type: ignore[misc]
        assert sink.unreachable() == "", "somebody is there again"
        clock_s[0] = 3_650.0
        assert sink.delivery() == health(3, 2, "lost 1")


def test_while_nobody_is_there_it_is_said_why_and_how_much_waits() -> None:
    def make(status: Status, info: Info) -> Courier:
        raise NetworkError("nobody there")

    with background(make, wait=None, flush_s=0) as sink:
        eventually(lambda: sink.unreachable() == "nobody there")
        for seq in range(3):
            sink.deliver(tags_event(seq))
        n_bytes = sum(len(msgspec.json.encode(tags_event(seq))) for seq in range(3))
        kept = OutboxHealth(depth=3, bytes=n_bytes)
        assert sink.delivery() == DeliveryHealth(0, 0, "nobody there", kept)
        assert sink.trouble() == "", "it is what an outbox is for"


def test_an_outbox_that_cannot_be_written_is_trouble_and_delivers_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    log: list[Any] = []
    with background(lambda *_: FakeCourier(log), outbox=Outbox(tmp_path / "state" / FILE_NAME)) as sink:
        sink.deliver(tags_event(0))
        assert sink.trouble() == (
            "the outbox cannot be written (unable to open database file): messages are kept in memory"
        )
        eventually(lambda: is_delivered(sink))
        (tmp_path / "state").unlink()
        sink.deliver(tags_event(1))
        assert sink.trouble() == ""
    assert seqs(log) == [0, 1]


def test_a_health_report_is_not_kept_for_later() -> None:
    log: list[Any] = []
    there = threading.Event()

    def make(status: Status, info: Info) -> Courier:
        assert there.wait(WAIT_S)
        return FakeCourier(log)

    with background(make) as sink:
        sink.report(sensor_health())
        there.set()
        eventually(lambda: sink.connected)
    assert log == ["entered", "left"]


# -- what a broker does not take -------------------------------------------------------------------------


def test_what_the_broker_refuses_is_counted_and_said_and_does_not_block_the_rest() -> None:
    class Picky(FakeCourier):
        def settled(self) -> list[Settled]:
            return [Settled(id, "too large" if id % 3 == 2 else "") for id, _ in super().settled()]

    log: list[Any] = []
    with structlog.testing.capture_logs() as logs, background(lambda *_: Picky(log)) as sink:
        for seq in range(9):
            sink.deliver(tags_event(seq))
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0, refused=3)
        assert sink.trouble() == REFUSED
    assert seqs(log) == list(range(9))
    assert [line["reason"] for line in of(logs, "delivery.refused")] == 3 * ["too large"]


def test_a_message_on_which_the_broker_hangs_up_is_set_aside_and_its_neighbours_arrive() -> None:
    """Two such among thirty; what came before them in the same breath is acknowledged, or not."""
    poison = 3, 17

    def on_publish(message: Published) -> bytes | None:
        return HANG_UP if message.seq in poison else acknowledge(message)

    with (
        structlog.testing.capture_logs() as logs,
        FakeBroker(on_publish=on_publish) as broker,
        published_by(broker.port, status=None) as sink,
    ):
        deliver_at_once(sink, range(30))
        sink.state(sensor_status())
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0, refused=2)
    assert once(broker.seqs()) == list(range(30))
    for seq in poison:
        assert N_HANG_UPS <= broker.seqs().count(seq) <= N_HANG_UPS + 1
    assert [line["reason"] for line in of(logs, "delivery.refused")] == 2 * [HANGS_UP]


class Swallowing(FakeCourier):
    """Hangs up on the poison, and takes what came before it in the same breath down with it."""

    def __init__(self, log: list[Any], poison: int) -> None:
        super().__init__(log, n_held=20)
        self._poison = poison

    def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
        if decoded(kind, payload).seq == self._poison:
            self._error = LostError("it hung up")
            raise self._error
        super().forward(id, kind, payload)


def test_an_innocent_that_is_lost_with_a_poisoned_neighbour_is_not_set_aside() -> None:
    """Each is sent alone after three hang-ups on it: 0, 1, then the poison, 2."""
    log: list[Any] = []
    with background(lambda *_: Swallowing(log, 2), status=None) as sink:
        for seq in range(6):
            sink.deliver(tags_event(seq))
        sink.state(sensor_status())
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0, refused=1)
    assert once(seqs(log)) == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("seed", range(5))
def test_a_broker_that_is_killed_again_and_again_has_nothing_set_aside(seed: int) -> None:
    """At any moment, with anything in flight."""
    rng, logs = random.Random(seed), list[list[Any]]()

    def make(status: Status, info: Info) -> Courier:
        logs.append([])
        n_lives = rng.randrange(1, 12)
        return FakeCourier(logs[-1], lambda n: LostError("killed") if n == n_lives else None, n_held=5)

    with background(make) as sink:
        for seq in range(100):
            sink.deliver(tags_event(seq))
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0)
    assert once([seq for log in logs for seq in seqs(log)]) == list(range(100))
    assert len(logs) > 8


def test_a_broker_that_goes_later_has_not_hung_up_on_a_message() -> None:
    """Eleven seconds after it came, and that as often as one likes."""
    clock_s, log = [0.0], list[Any]()

    class Lost(FakeCourier):
        def settled(self) -> list[Settled]:
            if self._in_flight and log.count("failed") < 20:
                clock_s[0] += 11.0
                raise LostError("it went")
            return super().settled()

    with background(lambda *_: Lost(log), monotonic=lambda: clock_s[0]) as sink:
        sink.deliver(tags_event(0))
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0)
    assert log.count("failed") == 20


# -- backoff ---------------------------------------------------------------------------------------------


def test_attempts_are_a_second_apart_then_twice_as_far_each_time_up_to_five_minutes() -> None:
    delays_s: list[float] = []
    enough, over = threading.Event(), threading.Event()

    def wait(delay_s: float) -> None:
        delays_s.append(delay_s)
        if len(delays_s) == 12:
            enough.set()
            over.wait(WAIT_S)

    def make(status: Status, info: Info) -> Courier:
        raise NetworkError("nobody there")

    with (
        structlog.testing.capture_logs() as logs,
        background(make, wait=wait, uniform=lambda: 1.0, flush_s=0),
    ):
        assert enough.wait(WAIT_S)
        over.set()
    assert delays_s[:12] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    failed = of(logs, "delivery.failed")
    assert [line["reason"] for line in failed] == ["nobody there"], "said once, not at every attempt"


def test_chance_halves_a_delay_at_most() -> None:
    delays_s: list[float] = []

    def make(status: Status, info: Info) -> Courier:
        raise NetworkError("nobody there")

    def wait(delay_s: float) -> None:
        delays_s.append(delay_s)
        time.sleep(0.01)

    with background(make, wait=wait, uniform=lambda: 0.0):
        eventually(lambda: len(delays_s) >= 2)
    assert delays_s[:2] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("error", "lasts_s", "expected_s"),
    [
        (NetworkError, 1.0, [1, 2, 4, 8]),
        (NetworkError, 100.0, [1, 1, 1, 1]),
        (LostError, 30.0, [1, 2, 4, 8]),
        (LostError, 100.0, [1, 1, 1, 1]),
        (TakenOverError, 100.0, [1, 1, 2, 4]),
        (TakenOverError, 4000.0, [1, 1, 1, 1]),
    ],
)
def test_only_a_connection_that_lasted_makes_up_for_earlier_failures(
    error: type[Exception], lasts_s: float, expected_s: list[float]
) -> None:
    """And none does when a third was taken over in an hour: two sensors of one id may go on so for ever."""
    clock_s = [0.0]
    delays_s: list[float] = []

    def lost(n: int) -> Exception:
        clock_s[0] += lasts_s
        return error("thrown out")

    def wait(delay_s: float) -> None:
        delays_s.append(delay_s)
        time.sleep(0.01)

    with background(
        lambda *_: FakeCourier([], lost), monotonic=lambda: clock_s[0], wait=wait, uniform=lambda: 1.0
    ) as sink:
        sink.deliver(tags_event(0))
        eventually(lambda: len(delays_s) >= 4)
    assert delays_s[:4] == expected_s


@pytest.mark.parametrize("error", [TakenOverError, LostError])
def test_an_id_that_another_client_uses_is_trouble_from_the_third_time_in_an_hour_on(
    error: type[Exception],
) -> None:
    """Not every broker says that it was another client."""
    clock_s, takeovers = [0.0], list[float]()
    may_go_on = threading.Semaphore(0)

    def taken_over(n: int) -> Exception | None:
        if len(takeovers) == 4:
            return None
        assert may_go_on.acquire(timeout=WAIT_S)
        takeovers.append(clock_s[0])
        return error("another client, perhaps")

    with background(lambda *_: FakeCourier([], taken_over), monotonic=lambda: clock_s[0]) as sink:
        sink.deliver(tags_event(0))
        for minute, trouble in enumerate(("", "", RIVALRY, RIVALRY)):
            clock_s[0] = 50.0 * minute
            may_go_on.release()
            eventually(lambda n=minute + 1: len(takeovers) == n and sink.delivery().connects == n + 1)  # type: ignore[misc]
            assert sink.trouble() == trouble
        clock_s[0] = 3600.0 + 50.0 + 1.0
        assert sink.trouble() == "", "the last two of four"


def test_a_broker_that_says_why_it_ends_a_connection_is_no_rival() -> None:
    """One that is shut down for an update, three times in a row, for example."""
    n_left = [4]

    def shut_down(n: int) -> Exception | None:
        if not n_left[0]:
            return None
        n_left[0] -= 1
        error = LostError("server shutting down")
        error.is_told = True
        return error

    with background(lambda *_: FakeCourier([], shut_down)) as sink:
        sink.deliver(tags_event(0))
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().connects == 5
        assert sink.trouble() == ""


# -- leaving ---------------------------------------------------------------------------------------------

LEAVE_S = 0.9  # for the courier's farewell
CLOSE_S = 1.0  # for the outbox


def left_after_s(sink: Background) -> float:
    began_s = time.monotonic()
    sink.__exit__(None, None, None)
    return time.monotonic() - began_s


@pytest.mark.parametrize("where", ["make", "enter", "forward", "settled", "exit"])
def test_whatever_hangs_leaving_takes_no_longer_than_promised(where: str) -> None:
    release, hanging = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        release.wait(WAIT_S)

    class Hanging(FakeCourier):
        def __enter__(self) -> Self:
            hang() if where == "enter" else None
            return self

        def __exit__(self, *_: object) -> None:
            hang() if where == "exit" else None

        def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
            hang() if where == "forward" else None

        def settled(self) -> list[Settled]:
            hang() if where == "settled" else None
            return []

    def make(status: Status, info: Info) -> Courier:
        hang() if where == "make" else None
        return Hanging([])

    with structlog.testing.capture_logs() as logs:
        sink = background(make, flush_s=0.2)
        sink.__enter__()
        sink.deliver(tags_event(0))
        if where == "exit":
            eventually(lambda: sink.connected)
        else:
            assert hanging.wait(WAIT_S)
        assert left_after_s(sink) < 0.2 + LEAVE_S + SOON_S
        (undelivered,) = of(logs, "delivery.undelivered")
        assert undelivered["messages"] == 1
        release.set()
        eventually(lambda: not sink._thread.is_alive())


class StuckRows(Rows):
    """On a disk that does not answer while `answers` is clear."""

    answers = threading.Event()

    def write(self, *arguments: Any, **options: Any) -> None:
        assert self.answers.wait(WAIT_S)
        super().write(*arguments, **options)


def test_a_disk_that_hangs_keeps_neither_states_nor_the_end_back(tmp_path: Path) -> None:
    StuckRows.answers.set()
    log: list[Any] = []
    outbox = Outbox(tmp_path / FILE_NAME, patience_s=0.1, rows=StuckRows)
    with structlog.testing.capture_logs() as logs:
        sink = background(lambda *_: FakeCourier(log), outbox=outbox, flush_s=0.2)
        sink.__enter__()
        sink.deliver(tags_event(0))
        eventually(lambda: is_delivered(sink))
        StuckRows.answers.clear()
        sink.deliver(tags_event(1))
        eventually(lambda: HANGS in sink.trouble())
        sink.state(sensor_status("degraded"))
        eventually(lambda: log[-1] == sensor_status("degraded"))
        assert left_after_s(sink) < 0.2 + LEAVE_S + CLOSE_S + SOON_S
        (line,) = of(logs, "delivery.undelivered")
        assert line["messages"] == 1
        assert outbox.hangs
        StuckRows.answers.set()
        eventually(lambda: not outbox.hangs and not sink._thread.is_alive())
    assert log == ["entered", tags_event(0), sensor_status("degraded"), "left"]
    with Outbox(tmp_path / FILE_NAME) as kept:
        assert kept.depth == 1


def test_leaving_without_anybody_there_is_one_more_attempt_and_one_line() -> None:
    attempts: list[float] = []

    def make(status: Status, info: Info) -> Courier:
        attempts.append(time.monotonic())
        raise NetworkError("nobody there")

    with structlog.testing.capture_logs() as logs:
        sink = background(make, wait=None, uniform=lambda: 1.0)
        sink.__enter__()
        for seq in range(3):
            sink.deliver(tags_event(seq))
        eventually(lambda: sink.unreachable() != "")
        assert left_after_s(sink) < SOON_S
    assert len(attempts) == 2
    (line,) = of(logs, "delivery.undelivered")
    assert (line["messages"], line["reason"]) == (3, "nobody there")


def test_a_slow_courier_is_left_properly_when_the_time_to_flush_is_over() -> None:
    log: list[Any] = []

    class Slow(FakeCourier):
        def forward(self, id: int, kind: Forwarded, payload: bytes) -> None:
            time.sleep(0.02)
            super().forward(id, kind, payload)

    with background(lambda *_: Slow(log), flush_s=0.2, status=None) as sink:
        for seq in range(200):
            sink.deliver(tags_event(seq))
        sink.state(sensor_status())
        eventually(lambda: seqs(log) != [])
    assert log[-1] == "left"
    assert 0 < len(seqs(log)) < 200
    assert sink.delivery().outbox.depth >= 200 - len(seqs(log))


# -- with a publisher and a broker that misbehaves ----------------------------------------------------


def published_by(port: int, **options: Any) -> Background:
    """Publishes to 127.0.0.1, impatiently; some options are the publisher's, the rest are Background's."""
    address = BrokerAddress("127.0.0.1", port, options.pop("user", None), options.pop("password", None))
    ack_timeout_s = options.pop("ack_timeout_s", 1.0)

    def make(status: Status, info: Info) -> Courier:
        return MqttPublisher(
            address,
            sensor="b827eb42bd4a",
            info=info,
            boot_id="01JD",
            status=status,
            farewell="stopped",
            reconnect=False,
            connect_timeout_s=2,
            ack_timeout_s=ack_timeout_s,
        )

    return background(make, **{"wait": lambda _s: time.sleep(0.02)} | options)


@contextmanager
def at_once() -> Iterator[None]:
    """The microphone's side: what is done here must not wait for anything."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < SOON_S


def deliver_at_once(sink: Background, seqs: range) -> None:
    for seq in seqs:
        with at_once():
            sink.deliver(tags_event(seq))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def statuses(broker: FakeBroker) -> list[tuple[str, str]]:
    messages = (
        msgspec.json.decode(message.payload, type=Status)
        for message in broker.published
        if message.kind == "status"
    )
    return [(message.state, message.reason) for message in messages]


def test_the_broker_gets_state_and_info_then_everything_then_stopped() -> None:
    with FakeBroker() as broker, published_by(broker.port) as sink:
        deliver_at_once(sink, range(50))
        eventually(lambda: is_delivered(sink))
        sink.state(sensor_status("no_audio"))
        sink.sound(sound_event(0))
        sink.__exit__(None, None, None)
        kinds = [message.kind for message in broker.published]
        assert kinds == ["status", "info", *["tags"] * 50, "status", "events", "status"]
        assert broker.seqs() == list(range(50))
        assert statuses(broker) == [("online", "as asked"), ("no_audio", "as asked"), ("offline", "stopped")]
        assert broker.goodbyes == 1


def test_a_broker_that_is_not_there_yet_gets_everything_later() -> None:
    port = free_port()
    with published_by(port) as sink:
        deliver_at_once(sink, range(30))
        eventually(lambda: "nothing listens" in sink.unreachable())
        assert not sink.connected
        sink.state(sensor_status("degraded"))
        with FakeBroker(port=port) as broker:
            eventually(lambda: is_delivered(sink))
            assert sink.connected
            assert sink.unreachable() == ""
            assert "nothing listens" in sink.delivery().last_error
            sink.__exit__(None, None, None)
    assert broker.seqs() == list(range(30))
    assert statuses(broker) == [("degraded", "as asked"), ("offline", "stopped")]


def test_a_broker_that_dies_in_the_middle_again_and_again_gets_everything_in_order() -> None:
    """It hangs up on every seventh event, unacknowledged."""
    n_seen = [0]

    def on_publish(message: Published) -> bytes | None:
        n_seen[0] += message.kind == "tags"
        return HANG_UP if message.kind == "tags" and n_seen[0] % 7 == 0 else acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, published_by(broker.port) as sink:
        deliver_at_once(sink, range(40))
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0)
    assert once(broker.seqs()) == list(range(40))
    assert len(broker.seqs()) > 40


def test_a_lost_connection_is_noticed_while_nothing_is_delivered_and_the_state_is_said_again() -> None:
    hung_up = threading.Event()

    def on_publish(message: Published) -> bytes | None:
        if b"degraded" in message.payload and not hung_up.is_set():
            hung_up.set()
            return HANG_UP
        return acknowledge(message)

    with FakeBroker(on_publish=on_publish) as broker, published_by(broker.port) as sink:
        eventually(lambda: sink.connected)
        sink.state(sensor_status("degraded"))
        eventually(lambda: len(statuses(broker)) == 3)
        sink.__exit__(None, None, None)
    assert [state for state, _ in statuses(broker)] == ["online", "degraded", "degraded", "offline"]


def test_a_broker_that_acknowledges_nothing_more_is_left_and_called_again() -> None:
    """It is not hanging up: nothing is set aside, however often that happens."""
    silent = [True]

    def on_publish(message: Published) -> bytes | None:
        if message.kind != "tags" or message.seq in (0, 1) or not silent[0]:
            return acknowledge(message)
        return NOTHING

    with FakeBroker(on_publish=on_publish) as broker, published_by(broker.port, ack_timeout_s=0.1) as sink:
        deliver_at_once(sink, range(100))
        eventually(lambda: len(broker.levels) >= 2 + N_HANG_UPS)
        assert "acknowledged nothing for 0.1 s" in sink.delivery().last_error
        silent[0] = False
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0)
    assert once(broker.seqs()) == list(range(100))


def test_a_broker_that_hangs_does_not_keep_the_process() -> None:
    """What it did not acknowledge is counted, and its own side will see the connection break."""
    with (
        FakeBroker(on_publish=lambda m: NOTHING if m.kind == "tags" else acknowledge(m)) as broker,
        structlog.testing.capture_logs() as logs,
    ):
        sink = published_by(broker.port, ack_timeout_s=30, flush_s=0.3)
        sink.__enter__()
        deliver_at_once(sink, range(30))
        eventually(lambda: len(broker.seqs()) == 20)
        assert left_after_s(sink) < 0.3 + LEAVE_S + SOON_S
        (line,) = of(logs, "delivery.undelivered")
        assert (line["messages"], line["reason"]) == (30, "not acknowledged in time")
    eventually(lambda: not sink._thread.is_alive())


def test_what_another_version_left_is_delivered_as_it_is_and_what_is_no_message_is_set_aside(
    tmp_path: Path,
) -> None:
    """But for `late`, whose meaning no version may change."""
    ours = msgspec.json.encode(tags_event(0))
    left: list[tuple[Forwarded, bytes]] = [
        ("tags", b'{"schema":"edgetag.tags/9","boot":[1],"new":{"a":null}}'),
        ("events", b'{"schema":"edgetag.event/7", "seq":"x"}'),
        ("tags", b"\xff\x00 flipped bits"),
        ("tags", b'{"schema":"edgetag\xff"}'),
        ("tags", b"[1]"),
        ("events", b'"text"'),
        ("tags", ours),
    ]
    with Outbox(tmp_path / FILE_NAME) as outbox:
        for kind, payload in left:
            outbox.append(kind, payload)
    with (
        FakeBroker() as broker,
        published_by(broker.port, outbox=Outbox(tmp_path / FILE_NAME)) as sink,
    ):
        eventually(lambda: is_delivered(sink))
        assert sink.delivery().outbox == OutboxHealth(depth=0, bytes=0, refused=4)
    arrived = [(it.kind, it.payload) for it in broker.published if it.kind in ("tags", "events")]
    assert arrived == [
        ("tags", b'{"schema":"edgetag.tags/9","boot":[1],"new":{"a":null},"late":true}'),
        ("events", b'{"schema":"edgetag.event/7", "seq":"x"}'),
        ("tags", msgspec.json.encode(tags_event(0, late=True))),
    ]


def test_wrong_credentials_are_said_once_and_never_shown_and_tried_again() -> None:
    answers = [refuse(0x86, 4)] * 3 + [refuse(0x88, 3)] * 2
    with (
        FakeBroker(lambda level: (answers.pop(0) if answers else accept)(level)) as broker,
        structlog.testing.capture_logs() as logs,
        published_by(broker.port, user="sensor", password="hunter2") as sink,
    ):
        sink.deliver(tags_event(0))
        eventually(lambda: is_delivered(sink))
    reasons = [line["reason"] for line in of(logs, "delivery.failed")]
    assert len(reasons) == 2
    assert "bad user name or password" in reasons[0]
    assert "server unavailable" in reasons[1]
    assert broker.levels == [5] * 6
    assert broker.seqs() == [0]
    assert "hunter2" not in str(logs) + repr(sink) + str(sink.delivery())


def test_a_session_taken_over_is_said_and_taken_back() -> None:
    """MQTT 5's DISCONNECT 0x8E: another client has come with our name."""
    taken: list[int] = []

    def on_publish(message: Published) -> bytes | None:
        if message.seq == 3 and not taken:
            taken.append(3)
            return b"\xe0\x02\x8e\x00"
        return acknowledge(message)

    with (
        structlog.testing.capture_logs() as logs,
        FakeBroker(on_publish=on_publish) as broker,
        published_by(broker.port) as sink,
    ):
        deliver_at_once(sink, range(6))
        eventually(lambda: is_delivered(sink))
    assert once(broker.seqs()) == list(range(6))
    (reason,) = [line["reason"] for line in of(logs, "delivery.failed")]
    assert "every client needs an id of its own" in reason


def test_a_flood_is_taken_while_nobody_is_there() -> None:
    """Five thousand at 10 ms each would be a minute of a microphone's time."""
    with published_by(free_port(), flush_s=0) as sink:
        began_s = time.monotonic()
        for seq in range(5_000):
            sink.deliver(tags_event(seq))
        assert time.monotonic() - began_s < WAIT_S
        assert sink.delivery().outbox.depth == 5_000


def test_no_thread_and_no_connection_outlives_it() -> None:
    before = threading.active_count()
    with FakeBroker() as broker:
        with published_by(broker.port) as sink:
            sink.deliver(tags_event(0))
        assert threading.active_count() == before + 1, "the broker's own"
    assert threading.active_count() == before
