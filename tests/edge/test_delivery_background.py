"""Delivery in the background: nobody waits, nothing is lost, and what is lost all the same is counted.

`FakeSink` for what any inner sink may do; `FakeBroker` for the publisher and the network under it.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.contract.errors import NetworkError
from edgetag.contract.event import Health, Info, SoundEvent, Status, TagsEvent
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.background import Background
from edgetag.delivery.mqtt import MqttPublisher
from edgetag.delivery.sink import Sink
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
SOON_S = 0.1  # what a caller may be made to wait on a busy machine; mostly it is microseconds


def eventually(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.005)


class FakeSink(Sink):
    """Writes into `log` what it is told; `fail(n)` gives the error of the `n`-th hand-over, if any.

    What it was handed is confirmed at once, but for the latest `n_unconfirmed`.
    """

    def __init__(
        self, log: list[Any], fail: Callable[[int], Exception | None] = lambda n: None, n_unconfirmed: int = 0
    ) -> None:
        self._log, self._fail, self._n_unconfirmed = log, fail, n_unconfirmed
        self._n_handed = 0

    def __enter__(self) -> Self:
        self._log.append("entered")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._log.append("left" if exc is None else "failed")

    def _take(self, message: object) -> None:
        if (error := self._fail(self._n_handed)) is not None:
            raise error
        self._n_handed += 1
        self._log.append(message)

    def deliver(self, event: TagsEvent) -> None:
        self._take(event)

    def sound(self, event: SoundEvent) -> None:
        self._take(event)

    def state(self, status: Status) -> None:
        self._log.append(status)

    def announce(self, info: Info) -> None:
        self._log.append(info)

    def report(self, health: Health) -> None:
        self._log.append(health)

    def unconfirmed(self) -> int:
        return min(self._n_handed, self._n_unconfirmed)


def background(make: Callable[[Status, Info], Sink], **options: Any) -> Background:
    """Connects again at once, unless told otherwise."""
    return Background(
        make, **{"status": sensor_status(), "info": bundle_info(), "wait": lambda _s: None} | options
    )


def seqs(log: list[Any]) -> list[int]:
    return [message.seq for message in log if isinstance(message, TagsEvent | SoundEvent)]


def once(seqs: list[int]) -> list[int]:
    """As a subscriber sees them who has thrown away what came twice."""
    return list(dict.fromkeys(seqs))


# -- order -----------------------------------------------------------------------------------------------


def test_what_is_said_while_connected_arrives_in_the_order_it_was_said() -> None:
    log: list[Any] = []
    held = threading.Event()

    class Held(FakeSink):
        def __enter__(self) -> Self:
            assert held.wait(WAIT_S)
            return super().__enter__()

    degraded, other = sensor_status("degraded"), msgspec.structs.replace(bundle_info(), bundle="other")
    with background(lambda status, info: Held(log)) as sink:
        held.set()
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


def test_an_inner_sink_begins_with_the_last_state_and_info_and_is_not_told_them_twice() -> None:
    log: list[Any] = []
    begun: list[tuple[str, str]] = []
    absent = threading.Event()

    def make(status: Status, info: Info) -> Sink:
        begun.append((status.state, info.bundle))
        if not absent.is_set():
            absent.wait(WAIT_S)
            raise NetworkError("nobody there")
        return FakeSink(log)

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

    def make(status: Status, info: Info) -> Sink:
        made.append(status.state)
        return FakeSink([])

    with background(make, status=None) as sink:
        sink.deliver(tags_event(0))
        time.sleep(0.05)
        assert made == []
        sink.state(sensor_status("no_audio"))
        eventually(lambda: sink.depth == 0)
    assert made == ["no_audio"]
    with background(make, status=None) as sink:
        pass
    assert made == ["no_audio"]


# -- at least once ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    fails=st.lists(st.integers(0, 7), max_size=6),
    n_unconfirmed=st.integers(0, 5),
    n_events=st.integers(0, 20),
)
def test_whatever_fails_every_event_arrives_in_order_apart_from_what_comes_twice(
    fails: list[int], n_unconfirmed: int, n_events: int
) -> None:
    """
    handed over  0 1 2 3 ✗ |     2 3 4 5
    confirmed    * *       |     * * * *
    """
    logs: list[list[Any]] = []
    confirmed: list[int] = []

    class Lossy(FakeSink):
        """What is not confirmed when it fails has not arrived."""

        def __exit__(self, exc_type: Any, exc: BaseException | None, traceback: Any) -> None:
            super().__exit__(exc_type, exc, traceback)
            arrived = seqs(self._log)
            confirmed.extend(arrived if exc is None else arrived[: len(arrived) - self.unconfirmed()])

    def make(status: Status, info: Info) -> Sink:
        n_good = fails[len(logs)] if len(logs) < len(fails) else None
        logs.append([])
        return Lossy(logs[-1], lambda n: NetworkError("lost") if n == n_good else None, n_unconfirmed)

    with background(make) as sink:
        for seq in range(n_events):
            sink.deliver(tags_event(seq)) if seq % 3 else sink.sound(sound_event(seq))
        eventually(lambda: n_events == 0 or (logs != [] and n_events - 1 in seqs(logs[-1])))
    assert once(confirmed) == list(range(n_events))
    assert all(seqs(log) == sorted(seqs(log)) for log in logs)
    assert (sink.depth, sink.dropped, sink.connected) == (0, 0, False)


def test_an_event_that_waited_says_so() -> None:
    """Ten seconds are not late, more are; a sound has no such word."""
    clock_s = [0.0]
    log: list[Any] = []
    there = threading.Event()

    def make(status: Status, info: Info) -> Sink:
        assert there.wait(WAIT_S)
        return FakeSink(log)

    with background(make, monotonic=lambda: clock_s[0]) as sink:
        sink.deliver(tags_event(0))
        sink.sound(sound_event(1))
        clock_s[0] = 0.5
        sink.deliver(tags_event(2))
        sink.deliver(tags_event(3, late=True))
        clock_s[0] = 10.5
        sink.deliver(tags_event(4))
        there.set()
        eventually(lambda: sink.depth == 0)
    assert log[1:-1] == [
        tags_event(0, late=True),
        sound_event(1),
        tags_event(2),
        tags_event(3, late=True),
        tags_event(4),
    ]


def test_a_fault_of_ours_is_reported_and_does_not_end_delivery() -> None:
    log: list[Any] = []
    faults: list[Exception] = [ZeroDivisionError("of ours")]
    with (
        structlog.testing.capture_logs() as logs,
        background(lambda *_: FakeSink(log, lambda n: faults.pop() if faults else None)) as sink,
    ):
        sink.deliver(tags_event(0))
    assert log == ["entered", "failed", "entered", tags_event(0), "left"]
    (failed,) = [line for line in logs if line["event"] == "delivery.failed"]
    assert failed["reason"] == "ZeroDivisionError: of ours"
    assert failed["exc_info"]


# -- a bounded queue -------------------------------------------------------------------------------------


def test_when_there_are_too_many_the_oldest_go_and_are_counted() -> None:
    log: list[Any] = []
    there = threading.Event()

    def make(status: Status, info: Info) -> Sink:
        if not there.wait(0.01):
            raise NetworkError("nobody there")
        return FakeSink(log)

    with structlog.testing.capture_logs() as logs, background(make, max_messages=3) as sink:
        for seq in range(10):
            sink.deliver(tags_event(seq)) if seq % 2 else sink.sound(sound_event(seq))
        assert (sink.depth, sink.dropped) == (3, 7)
        there.set()
    assert seqs(log) == [7, 8, 9]
    assert [line["messages"] for line in logs if line["event"] == "delivery.dropped"] == [7]


def test_handed_over_and_not_confirmed_counts_as_kept() -> None:
    log: list[Any] = []
    with background(lambda *_: FakeSink(log, n_unconfirmed=99), max_messages=2) as sink:
        for seq in range(4):
            sink.deliver(tags_event(seq))
            eventually(lambda seq=seq: len(seqs(log)) == seq + 1)  # type: ignore[misc]
        assert (sink.depth, sink.dropped) == (2, 2)
    assert seqs(log) == [0, 1, 2, 3]


# -- backoff ---------------------------------------------------------------------------------------------


def test_attempts_are_a_second_apart_then_twice_as_far_each_time_up_to_five_minutes() -> None:
    delays_s: list[float] = []
    enough = threading.Event()

    def wait(delay_s: float) -> None:
        delays_s.append(delay_s)
        if len(delays_s) == 12:
            enough.set()
            threading.Event().wait(0.2)

    def make(status: Status, info: Info) -> Sink:
        raise NetworkError("nobody there")

    with (
        structlog.testing.capture_logs() as logs,
        background(make, wait=wait, uniform=lambda: 1.0, flush_s=0) as sink,
    ):
        assert enough.wait(WAIT_S)
        assert sink.last_error == "nobody there"
    assert delays_s[:12] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    failed = [line for line in logs if line["event"] == "delivery.failed"]
    assert [line["reason"] for line in failed] == ["nobody there"], "said once, not at every attempt"


def test_chance_halves_a_delay_at_most() -> None:
    delays_s: list[float] = []

    def make(status: Status, info: Info) -> Sink:
        raise NetworkError("nobody there")

    def wait(delay_s: float) -> None:
        delays_s.append(delay_s)
        time.sleep(0.01)

    with background(make, wait=wait, uniform=lambda: 0.0):
        eventually(lambda: len(delays_s) >= 2)
    assert delays_s[:2] == [0.5, 1.0]


@pytest.mark.parametrize(("lasts_s", "expected_s"), [(1.0, [1, 2, 4, 8]), (100.0, [1, 1, 1, 1])])
def test_only_a_connection_that_lasted_makes_up_for_earlier_failures(
    lasts_s: float, expected_s: list[float]
) -> None:
    """Two sensors of one name throw each other out at once, every time: they must not do so every second."""
    clock_s = [0.0]
    delays_s: list[float] = []

    def lost(n: int) -> Exception:
        clock_s[0] += lasts_s
        return NetworkError("thrown out")

    def wait(delay_s: float) -> None:
        delays_s.append(delay_s)
        time.sleep(0.01)

    with background(
        lambda *_: FakeSink([], lost), monotonic=lambda: clock_s[0], wait=wait, uniform=lambda: 1.0
    ) as sink:
        sink.deliver(tags_event(0))
        eventually(lambda: len(delays_s) >= 4)
    assert delays_s[:4] == expected_s


# -- leaving ---------------------------------------------------------------------------------------------


def left_after_s(sink: Background) -> float:
    began_s = time.monotonic()
    sink.__exit__(None, None, None)
    return time.monotonic() - began_s


@pytest.mark.parametrize("where", ["make", "enter", "deliver", "unconfirmed", "exit"])
def test_whatever_hangs_leaving_takes_no_longer_than_promised(where: str) -> None:
    release, hanging = threading.Event(), threading.Event()

    def hang() -> None:
        hanging.set()
        release.wait(WAIT_S)

    class Hanging(FakeSink):
        def __enter__(self) -> Self:
            hang() if where == "enter" else None
            return self

        def __exit__(self, *_: object) -> None:
            hang() if where == "exit" else None

        def deliver(self, event: TagsEvent) -> None:
            hang() if where == "deliver" else None

        def unconfirmed(self) -> int:
            hang() if where == "unconfirmed" else None
            return 1

    def make(status: Status, info: Info) -> Sink:
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
        assert left_after_s(sink) < 0.2 + 1 + SOON_S
        (undelivered,) = [line for line in logs if line["event"] == "delivery.undelivered"]
        assert undelivered["messages"] == 1
        release.set()
        eventually(lambda: not sink._thread.is_alive())


def test_leaving_without_anybody_there_is_one_more_attempt_and_one_line() -> None:
    attempts: list[float] = []

    def make(status: Status, info: Info) -> Sink:
        attempts.append(time.monotonic())
        raise NetworkError("nobody there")

    with structlog.testing.capture_logs() as logs:
        sink = background(make, wait=None)
        sink.__enter__()
        for seq in range(3):
            sink.deliver(tags_event(seq))
        eventually(lambda: sink.last_error != "")
        assert left_after_s(sink) < SOON_S
    assert len(attempts) == 2
    (line,) = [line for line in logs if line["event"] == "delivery.undelivered"]
    assert (line["messages"], line["reason"]) == (3, "nobody there")


def test_a_slow_inner_sink_is_left_properly_when_the_time_to_flush_is_over() -> None:
    log: list[Any] = []

    class Slow(FakeSink):
        def deliver(self, event: TagsEvent) -> None:
            time.sleep(0.02)
            super().deliver(event)

    with background(lambda *_: Slow(log), flush_s=0.2) as sink:
        for seq in range(1000):
            sink.deliver(tags_event(seq))
    assert log[-1] == "left"
    assert 0 < len(seqs(log)) < 50
    assert sink.depth == 1000 - len(seqs(log))


# -- with a publisher and a broker that misbehaves ----------------------------------------------------


def published_by(port: int, **options: Any) -> Background:
    """Publishes to 127.0.0.1, impatiently; some options are the publisher's, the rest are Background's."""
    address = BrokerAddress("127.0.0.1", port, options.pop("user", None), options.pop("password", None))
    ack_timeout_s = options.pop("ack_timeout_s", 1.0)

    def make(status: Status, info: Info) -> Sink:
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
        eventually(lambda: sink.depth == 0)
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
        eventually(lambda: "nothing listens" in sink.last_error)
        assert not sink.connected
        sink.state(sensor_status("degraded"))
        with FakeBroker(port=port) as broker:
            eventually(lambda: sink.depth == 0)
            assert sink.connected
            assert sink.last_error == ""
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
        eventually(lambda: sink.depth == 0)
    assert once(broker.seqs()) == list(range(40))
    assert len(broker.seqs()) > 40
    identities = {(e.sensor, e.boot, e.seq) for e in events(broker)}
    assert len(identities) == 40


def events(broker: FakeBroker) -> list[TagsEvent]:
    return [
        msgspec.json.decode(message.payload, type=TagsEvent)
        for message in broker.published
        if message.kind == "tags"
    ]


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
    silent = [True]

    def on_publish(message: Published) -> bytes | None:
        if message.kind != "tags" or message.seq in (0, 1) or not silent[0]:
            return acknowledge(message)
        return NOTHING

    with FakeBroker(on_publish=on_publish) as broker, published_by(broker.port, ack_timeout_s=0.3) as sink:
        deliver_at_once(sink, range(100))
        eventually(lambda: "acknowledged nothing for 0.3 s" in sink.last_error or not broker.levels[1:])
        eventually(lambda: len(broker.levels) >= 2)
        silent[0] = False
        eventually(lambda: sink.depth == 0)
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
        assert left_after_s(sink) < 0.3 + 1 + SOON_S
        (line,) = [line for line in logs if line["event"] == "delivery.undelivered"]
        assert (line["messages"], line["reason"]) == (30, "not acknowledged in time")
    eventually(lambda: not sink._thread.is_alive())


def test_wrong_credentials_are_said_once_and_never_shown_and_tried_again() -> None:
    answers = [refuse(0x86, 4)] * 3 + [refuse(0x88, 3)] * 2
    with (
        FakeBroker(lambda level: (answers.pop(0) if answers else accept)(level)) as broker,
        structlog.testing.capture_logs() as logs,
        published_by(broker.port, user="sensor", password="hunter2") as sink,
    ):
        sink.deliver(tags_event(0))
        eventually(lambda: sink.depth == 0)
    reasons = [line["reason"] for line in logs if line["event"] == "delivery.failed"]
    assert len(reasons) == 2
    assert "bad user name or password" in reasons[0]
    assert "server unavailable" in reasons[1]
    assert broker.levels == [5] * 6
    assert broker.seqs() == [0]
    assert "hunter2" not in str(logs) + repr(sink) + sink.last_error


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
        eventually(lambda: sink.depth == 0)
    assert once(broker.seqs()) == list(range(6))
    (reason,) = [line["reason"] for line in logs if line["event"] == "delivery.failed"]
    assert "every publisher needs a sensor id of its own" in reason


def test_a_flood_is_taken_in_milliseconds_while_nobody_is_there() -> None:
    """Five thousand at 10 ms each would be a minute of a microphone's time."""
    with published_by(free_port()) as sink:
        began_s = time.monotonic()
        for _ in range(10_000):
            sink.deliver(tags_event_of_flood)
        assert time.monotonic() - began_s < 2
        assert (sink.depth, sink.dropped) == (5_000, 5_000)


tags_event_of_flood = tags_event(0)


def test_no_thread_and_no_connection_outlives_it() -> None:
    before = threading.active_count()
    with FakeBroker() as broker:
        with published_by(broker.port) as sink:
            sink.deliver(tags_event(0))
        assert threading.active_count() == before + 1, "the broker's own"
    assert threading.active_count() == before
