"""Delivery against the real Mosquitto and whatever goes wrong: nothing is lost, and what is lost is counted.

Each story has a `Feeder` or `edgetag run` itself on one side and `mosquitto_sub` on the other. They are lived
side by side, and the tests read what became of them.

```
publisher ~~~ outbox ~~~~ (a cable, a witness) ~~~~ Mosquitto ~~~~ subscriber
 killed        full,         cut                    killed, mute,
               damaged                              refuses, absent
```
`make soak` tells them longer: an accelerated day of 17,280 windows, minutes without a broker.
"""

import contextlib
import getpass
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from ctypes.util import find_library
from dataclasses import dataclass, field
from functools import partial
from math import log2
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetag.contract.errors import NetworkError
from edgetag.contract.event import DeliveryHealth
from edgetag.delivery.background import RIVALRY, Background
from edgetag.delivery.connection import LostError, TakenOverError
from edgetag.delivery.outbox import FILE_NAME, Outbox
from edgetag.delivery.sink import Courier, Settled
from fakes import NOTHING, FakeBroker, Published, acknowledge, bundle_info, sensor_status
from system.cable import FAR, Cable, needs_cable
from system.feeder import Feeder, Handed
from system.sensor import Sensor
from system.sound_server import SoundServer, needs_sound_server
from system.subscriber import Message, Subscriber
from system.test_mosquitto import Mosquitto, find
from system.witness import Witness

pytestmark = pytest.mark.skipif(
    not (find("mosquitto") and find("mosquitto_sub")), reason="mosquitto or mosquitto_sub is not installed"
)
needs_portaudio = pytest.mark.skipif(not find_library("portaudio"), reason="PortAudio is not installed")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")

WAIT_S = 60
RECONNECT_S = 400  # who was without a broker for long waits up to five minutes for another attempt
PROMPT_S = 5.0  # in which a sensor ends
MAX_DELIVER_S = 2.0  # an append waits for the disk for a second at most; the rest is a busy machine's
N_SIDE_BY_SIDE = 10
SENSOR = "b827eb42bd4a"

ANYBODY = "allow_anonymous true"
KEEPS = ("persistence true", "max_queued_messages 0")
SAVES_AT_ONCE = ("autosave_on_changes true", "autosave_interval 1")


class Broker(Mosquitto):
    """That keeps what it has for who is away, also over a stop, and can misbehave."""

    def __init__(self, folder: Path, *settings: str) -> None:
        folder.mkdir()
        super().__init__(folder, *KEEPS, *(settings or (ANYBODY,)))

    def kill(self) -> None:
        """SIGKILL: what it has not saved is forgotten."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(WAIT_S)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


# -- what became of it -----------------------------------------------------------------------------------


@dataclass
class Told:
    """One story's end.

    handed: what publishers took, in order.
    came: what reached the subscriber, by topic, in order; `late` is what said that it had waited.
    health: of the publishers at their end.
    counts: what else there is to tell.
    """

    handed: list[Handed]
    came: dict[str, list[Message]]
    late: list[Message]
    health: list[DeliveryHealth]
    counts: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> str:
        took_ms = np.array([handed.took_s for handed in self.handed] or [0.0]) * 1000
        n_came = sum(len(messages) for messages in self.came.values())
        n_once = sum(len(set(messages)) for messages in self.came.values())
        tags = {(boot, seq) for kind, boot, seq, _ in self.handed if kind == "tags"}
        parts = [
            f"{len(tags)} windows of {len({boot for boot, _ in tags})} boots",
            f"{len(self.handed)} messages handed over, {n_once} came, {n_came - n_once} more than once",
            f"{len(self.late)} late",
            f"deliver p50 {np.median(took_ms):.2f}, p99 {np.quantile(took_ms, 0.99):.2f}, "
            f"max {took_ms.max():.1f} ms",
            *(f"{what} {n}" for what, n in self.counts.items()),
        ]
        return ", ".join(parts)

    def of(self, kind: str) -> list[Message]:
        return [(handed.boot, handed.seq) for handed in self.handed if handed.kind == kind]

    def missing(self, kind: str) -> list[Message]:
        """What was handed over and never came."""
        came = set(self.came[kind])
        return [message for message in self.of(kind) if message not in came]


KINDS = ("tags", "events")


def assert_in_order(told: Told) -> None:
    """Of each boot, once what came twice is thrown away."""
    for kind in KINDS:
        for boot, seqs in by_boot(told.came[kind]).items():
            assert seqs == sorted(seqs), f"{kind} of {boot}"


def assert_whole(told: Told) -> None:
    """Every window and sound came, in order, from the first of each boot on."""
    for kind in KINDS:
        assert told.missing(kind) == []
        for boot, seqs in by_boot(told.came[kind]).items():
            assert seqs == list(range(len(seqs))), f"{kind} of {boot}"


def assert_nobody_waited(told: Told) -> None:
    """Whatever the network or the disk did, whoever delivers was back at once."""
    took_s = np.array([handed.took_s for handed in told.handed])
    assert took_s.max() < MAX_DELIVER_S
    assert np.quantile(took_s, 0.99) < MAX_DELIVER_S / 4


def by_boot(messages: list[Message]) -> dict[str, list[int]]:
    """Numbers in the order they first came."""
    found: dict[str, list[int]] = {}
    for boot, seq in dict.fromkeys(messages):
        found.setdefault(boot, []).append(seq)
    return found


def n_gaps(messages: list[Message]) -> int:
    """Numbers that a subscriber misses, before the last one of each boot."""
    return sum(max(seqs) + 1 - len(seqs) for seqs in by_boot(messages).values())


def rows_in(state: Path) -> list[tuple[str, bytes]]:
    """What is in an outbox that nobody has open, which is sound; looked at in a copy."""
    with tempfile.TemporaryDirectory() as folder:
        for file in state.glob(f"{FILE_NAME}*"):
            shutil.copy(file, folder)
        with contextlib.closing(sqlite3.connect(Path(folder, FILE_NAME))) as database:
            assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            return database.execute("SELECT kind, payload FROM message ORDER BY id").fetchall()


# -- stories: the broker -----------------------------------------------------------------------------------


def finish(feeder: Feeder, subscriber: Subscriber, n_windows: int, **counts: int) -> Told:
    """All is handed over, has come, and the publisher ends in good order with nothing left."""
    feeder.wait_for_windows(n_windows)
    wait_for_all(feeder, subscriber)
    return end(feeder, subscriber, **counts)


def finish_before(witness: Witness, feeder: Feeder, subscriber: Subscriber, n_windows: int) -> Told:
    """As `finish`, though what the broker took and has forgotten does not come any more."""
    feeder.wait_for_windows(n_windows)
    feeder.wait_until(lambda: feeder.all_handed() <= witness.acknowledged, RECONNECT_S)
    told = end(feeder, subscriber)
    told.counts["lost by the broker"] = sum(len(told.missing(kind)) for kind in KINDS)
    return told


def wait_for_all(feeder: Feeder, subscriber: Subscriber) -> None:
    def have_all_come() -> bool:
        feeder.listen()
        came = {(kind, *message) for kind in KINDS for message in subscriber.came[kind]}
        return feeder.all_handed() <= came

    subscriber.wait_until(have_all_come, "all of what was handed over", within_s=RECONNECT_S)


def end(feeder: Feeder, subscriber: Subscriber, **counts: int) -> Told:
    feeder.terminate()
    subscriber.wait_for_state("offline", "stopped")
    assert rows_in(feeder.state) == []
    assert feeder.health is not None
    return Told(feeder.handed, subscriber.came, subscriber.late, [feeder.health], Counter(counts))


@contextmanager
def reached(folder: Path, *settings: str) -> Iterator[tuple[Broker, Subscriber]]:
    """A broker and who hears everything from it."""
    with Broker(folder / "broker", *settings) as broker:
        subscriber = Subscriber(folder, broker.port)
        subscriber.make_known()
        with subscriber:
            yield broker, subscriber


def awaited(folder: Path, broker: Broker) -> Subscriber:
    """One for whom the broker, which then ends, will keep what comes; to be entered when it is back."""
    subscriber = Subscriber(folder, broker.port)
    subscriber.make_known()
    broker.stop()
    return subscriber


def day(folder: Path, *, n_windows: int, n_faults: int, abruptly: bool, rate_hz: float = 200.0) -> Told:
    """
    broker   ●●●●●●● |   ●●●●●●●●● |    ●●●●●●●●      stopped; or `abruptly` killed, before a witness
    daemon   ~~~~~~~~~~~~~~~~~ | ~~~~ | ~~~~~~~~      killed
    """
    rng = random.Random(n_windows)
    faults = sorted(rng.sample(range(n_windows // 20, n_windows * 19 // 20), n_faults))
    counts = Counter({"broker's ends": 0, "daemon's ends": 0})
    settings = (ANYBODY, *(SAVES_AT_ONCE if abruptly else ()))
    with reached(folder, *settings) as (broker, subscriber), ExitStack() as stack:
        witness = stack.enter_context(Witness(broker.port)) if abruptly else None
        port = broker.port if witness is None else witness.port
        feeder = stack.enter_context(Feeder(folder / "feeder", port, rate_hz=rate_hz))
        feeder.start(n_windows)
        for k, at in enumerate(faults):
            feeder.wait_for_windows(at)
            fault = ("broker", "daemon", "both")[k % 3]
            if fault != "daemon":
                broker.kill() if abruptly else broker.stop()
                counts["broker's ends"] += 1
            if fault != "broker":
                feeder.wait_for_windows(min(at + rng.randrange(100), n_windows))
                feeder.kill()
                counts["daemon's ends"] += 1
                feeder.start(n_windows - feeder.n_windows)
            if fault != "daemon":
                time.sleep(rng.uniform(0, 1.5))
                broker.start()
        if witness is None:
            told = finish(feeder, subscriber, n_windows)
        else:
            told = finish_before(witness, feeder, subscriber, n_windows)
        told.counts.update(counts)
    return told


def absent(folder: Path, *, absent_s: float, rate_hz: float = 50.0) -> Told:
    """
    broker          .  .  .  . ●●●●●●
    daemon   ~~~~~~~~~~~~~~~~~~~~~~~~
    """
    n = round(absent_s * rate_hz)
    with Broker(folder / "broker") as broker, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        feeder = stack.enter_context(Feeder(folder / "feeder", broker.port, rate_hz=rate_hz))
        feeder.start(n + n // 4)
        feeder.wait_for_trouble("nothing listens")
        feeder.wait_for_windows(n)
        broker.start()
        stack.enter_context(subscriber)
        return finish(feeder, subscriber, n + n // 4)


def black_hole(folder: Path, *, n_lost: int, rate_hz: float = 50.0) -> Told:
    """
    cable    ════════ ✂              ═══════
    daemon   ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
    """
    with ExitStack() as stack:
        cable = stack.enter_context(Cable())
        (folder / "broker").mkdir()
        config = folder / "broker" / "mosquitto.conf"
        config.write_text(
            "\n".join([f"user {getpass.getuser()}", f"listener 1883 {FAR}", ANYBODY, *KEEPS, ""])
        )
        program = find("mosquitto")
        broker = subprocess.Popen([*cable.far, str(program), "-c", str(config)], stderr=subprocess.DEVNULL)
        stack.callback(lambda: (broker.kill(), broker.wait()))
        subscriber = Subscriber(folder, 1883, host=FAR, under=cable.far)
        subscriber.make_known()
        stack.enter_context(subscriber)
        feeder = stack.enter_context(
            Feeder(
                folder / "feeder",
                1883,
                host=FAR,
                under=cable.near,
                rate_hz=rate_hz,
                mqtt={"keepalive_s": 5},
            )
        )
        n = lost_in_the_middle(feeder, subscriber, n_lost, cable.cut, cable.mend)
        return finish(feeder, subscriber, n)


def mute(folder: Path, *, n_lost: int, rate_hz: float = 50.0) -> Told:
    """
    broker   ●●●●●●●● SIGSTOP        ●●●●●●●     its kernel accepts, and nobody answers
    daemon   ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
    """
    with ExitStack() as stack:
        broker, subscriber = stack.enter_context(reached(folder))
        feeder = stack.enter_context(
            Feeder(folder / "feeder", broker.port, rate_hz=rate_hz, mqtt={"keepalive_s": 5})
        )
        stop, go_on = partial(broker.send, signal.SIGSTOP), partial(broker.send, signal.SIGCONT)
        stack.callback(go_on)
        n = lost_in_the_middle(feeder, subscriber, n_lost, stop, go_on)
        return finish(feeder, subscriber, n)


def lost_in_the_middle(
    feeder: Feeder, subscriber: Subscriber, n_lost: int, lose: Callable[[], None], mend: Callable[[], None]
) -> int:
    """Some windows come; then nobody is reached for at least so many, and until the daemon says so."""
    feeder.start(n := n_lost + 400)
    subscriber.wait_until(lambda: len(subscriber.came["tags"]) >= 50, "50 windows")
    lose()
    n_before = feeder.n_windows
    feeder.wait_until(lambda: feeder.troubles[-1][1] != "")
    feeder.wait_for_windows(min(n_before + n_lost, n))
    mend()
    return n


def never_acknowledges(folder: Path, *, n_lost: int, rate_hz: float = 20.0) -> Told:
    """A broker takes everything, and acknowledges no event; another one comes in its place."""

    def answer(message: Published) -> bytes:
        return NOTHING if message.kind in KINDS else acknowledge(message)

    with Broker(folder / "broker") as broker, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        feeder = stack.enter_context(Feeder(folder / "feeder", broker.port, rate_hz=rate_hz))
        with FakeBroker(on_publish=answer, port=broker.port) as fake:
            feeder.start(n := n_lost + 200)
            feeder.wait_for_trouble("acknowledged nothing for 30 s")
            feeder.wait_for_windows(n_lost)
            n_in_flight = len({message.payload for message in fake.published if message.kind in KINDS})
        broker.start()
        stack.enter_context(subscriber)
        return finish(feeder, subscriber, n, **{"in flight": n_in_flight})


def refuses(folder: Path, *, n_lost: int, rate_hz: float = 50.0) -> Told:
    """The password is another one at first; the broker is told the right one."""
    passwords, password = folder / "passwords", folder / "password"
    password.write_text("hunter2\n")
    password.chmod(0o600)
    passwords.touch()
    passwd = find("mosquitto_passwd")
    assert passwd is not None

    def allow(user: str, word: str) -> None:
        subprocess.run([passwd, "-b", str(passwords), user, word], check=True)

    allow("subscriber", "hunter2")
    allow("sensor", "hunter3")
    guarded = ("allow_anonymous false", f"password_file {passwords}")
    with Broker(folder / "broker", *guarded) as broker, ExitStack() as stack:
        subscriber = Subscriber(folder, broker.port, login=("subscriber", "hunter2"))
        subscriber.make_known()
        stack.enter_context(subscriber)
        mqtt: dict[str, object] = {"user": "sensor", "password_file": str(password)}
        feeder = stack.enter_context(Feeder(folder / "feeder", broker.port, rate_hz=rate_hz, mqtt=mqtt))
        feeder.start(n := n_lost + 200)
        feeder.wait_for_trouble("check user and password")
        feeder.wait_for_windows(n_lost)
        allow("sensor", "hunter2")
        broker.send(signal.SIGHUP)
        told = finish(feeder, subscriber, n)
        assert "hunter2" not in feeder.log() + str(feeder.troubles)
        return told


# -- stories: the disk ---------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int = 3) -> Iterator[Path]:
    """A file system of its own."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "edgetag", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=200m", str(folder)], check=True)


def disk_full(folder: Path, *, n_windows: int) -> Told:
    """
    broker                                   ●●●●●●●●●
    disk       3 MB, full |  200 MB
    memory                  20 MB, full |
    daemon     ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
    """
    with Broker(folder / "broker") as broker, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        state = stack.enter_context(small_disk(folder / "disk"))
        feeder = stack.enter_context(
            Feeder(folder / "feeder", broker.port, state=state, padding_bytes=PADDING_BYTES)
        )
        feeder.start(n_windows)
        feeder.wait_for_trouble("the outbox cannot be written")
        n_before = feeder.n_windows
        feeder.wait_for_windows(n_windows - 100)
        enlarge(state)
        feeder.wait_until(lambda: feeder.troubles[-1][0] == "")
        feeder.wait_for_windows(n_windows)
        broker.start()
        stack.enter_context(subscriber)
        dropped = reported(subscriber, lambda outbox: outbox["depth"] == 0)["dropped"]
        return end(feeder, subscriber, **{"windows until it was full": n_before, "reported lost": dropped})


PADDING_BYTES = 20_000  # a window's, so that the disk and the memory are full soon


def reported(subscriber: Subscriber, done: Callable[[dict[str, int]], bool]) -> dict[str, int]:
    """The last health that was published says so of the outbox."""

    def outbox() -> dict[str, int]:
        return subscriber.said["health"][-1]["delivery"]["outbox"]

    def is_said() -> bool:
        return bool(subscriber.said["health"]) and done(outbox())

    subscriber.wait_until(is_said, "a health like that", RECONNECT_S)
    return outbox()


def killed_on_a_full_disk(folder: Path) -> Told:
    """SIGKILL while nothing can be written, and another boot while that is still so."""
    with Broker(folder / "broker") as broker, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        state = stack.enter_context(small_disk(folder / "disk"))
        feeder = stack.enter_context(
            Feeder(folder / "feeder", broker.port, state=state, padding_bytes=PADDING_BYTES)
        )
        feeder.start(n := 400)
        feeder.wait_for_trouble("the outbox cannot be written")
        feeder.kill()
        n_written = len(rows_in(state))
        handed, feeder.handed = feeder.handed[:n_written], []
        feeder.start(n)
        feeder.wait_for_trouble("the outbox cannot be written")
        enlarge(state)
        broker.start()
        stack.enter_context(subscriber)
        told = finish(feeder, subscriber, n, written=n_written)
        told.handed = [*handed, *told.handed]
        return told


def reached_on_a_full_disk(folder: Path, *, n_windows: int) -> Told:
    """
    broker              ●●●●●●●●●●●●●●●●●●●
    disk       3 MB, full                 |  200 MB
    daemon     ~~~~~~~~~~~~~~~~~~ | ~~~~~~~~~~~~~~~     killed
    """
    with Broker(folder / "broker") as broker, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        state = stack.enter_context(small_disk(folder / "disk"))
        feeder = stack.enter_context(
            Feeder(folder / "feeder", broker.port, state=state, padding_bytes=PADDING_BYTES)
        )
        feeder.start(n_windows)
        feeder.wait_for_trouble("the outbox cannot be written")
        broker.start()
        stack.enter_context(subscriber)
        feeder.wait_for_windows(n_windows)
        wait_for_all(feeder, subscriber)
        feeder.kill()
        n_twice = len(rows_in(state))
        feeder.start(n_windows)
        feeder.wait_for_windows(2 * n_windows)
        wait_for_all(feeder, subscriber)
        assert "cannot be written" in feeder.troubles[-1][0]
        enlarge(state)
        return end(feeder, subscriber, **{"could not be deleted": n_twice})


def damaged(folder: Path, *, at: float) -> Told:
    """An outbox that waits for its broker is broken while nobody has it; then the next boot comes.

    `at` is where the damage begins, as a fraction of the file.
    """
    with Broker(folder / "broker") as broker, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        feeder = stack.enter_context(Feeder(folder / "feeder", broker.port))
        feeder.start(n := 200)
        feeder.wait_for_windows(n)
        feeder.terminate()
        assert len(rows_in(feeder.state)) == len(feeder.handed)
        overwrite(feeder.state / FILE_NAME, at)
        feeder.handed.clear()
        feeder.start(n)
        broker.start()
        stack.enter_context(subscriber)
        published = reported(subscriber, lambda outbox: outbox["depth"] == 0)
        told = finish(feeder, subscriber, n)
        told.notes["published"] = published
        told.notes["files"] = sorted(path.name for path in feeder.state.iterdir())
        told.notes["log"] = feeder.log()
        return told


def overwrite(file: Path, at: float) -> None:
    """With 8 KB of noise."""
    with file.open("r+b") as stream:
        stream.seek(int(at * file.stat().st_size))
        stream.write(random.Random(0).randbytes(8192))


def bound(folder: Path, *, max_bytes: int, n_windows: int) -> Told:
    """
    broker                            ●●●●●●●
    daemon     ~~~~~~~~~~~~~ | ~~~~~~~~~~~~~~    killed
    outbox     0 1 2 3
                   2 3 4 5
                       4 5 6 7                   the oldest go
    """
    with Broker(folder / "broker") as broker, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        feeder = stack.enter_context(
            Feeder(folder / "feeder", broker.port, rate_hz=400.0, outbox={"max_bytes": max_bytes})
        )
        feeder.start(n_windows)
        feeder.wait_for_windows(n_windows)
        feeder.kill()
        feeder.start(20)
        feeder.wait_for_windows(n_windows + 20)
        broker.start()
        stack.enter_context(subscriber)
        dropped = reported(subscriber, lambda outbox: outbox["depth"] == 0)["dropped"]
        return end(feeder, subscriber, **{"reported lost": dropped})


# -- stories: two of one id ----------------------------------------------------------------------------------


def rivals(folder: Path, *, version: Literal[5, "3.1.1"], fight_s: float) -> Told:
    """Two daemons of one id; after a while one leaves, and comes back when the other has gone."""
    with reached(folder) as (broker, subscriber), ExitStack() as stack:
        feeders = [
            stack.enter_context(
                Feeder(folder / name, broker.port, rate_hz=RIVALS_HZ, mqtt={"version": version})
            )
            for name in ("one", "other")
        ]
        began_s = time.monotonic()
        for feeder in feeders:
            feeder.start(n := round(RIVALS_HZ * fight_s))
        for feeder in feeders:
            feeder.wait_for_windows(n)
            feeder.wait_for_trouble(RIVALRY)
        fought_s = time.monotonic() - began_s
        fights = [feeder.health for feeder in feeders]
        troubles = [{trouble for trouble, _ in feeder.troubles} for feeder in feeders]
        for feeder in feeders:
            feeder.terminate()
        for feeder in feeders:
            n = feeder.n_windows
            feeder.start(1)
            feeder.wait_for_windows(n + 1)
            wait_for_all(feeder, subscriber)
            feeder.terminate()
            assert rows_in(feeder.state) == []
        subscriber.wait_for_state("offline", "stopped")
        handed = [handed for feeder in feeders for handed in feeder.handed]
        told = Told(handed, subscriber.came, subscriber.late, [health for health in fights if health])
        told.counts["connects of both"] = sum(health.connects for health in told.health)
        told.notes["states"] = [status["reason"] for status in subscriber.said["status"]]
        told.notes |= {"fought_s": fought_s, "troubles": troubles}
        return told


RIVALS_HZ = 20.0


# -- stories: edgetag run itself -----------------------------------------------------------------------------


def daemon(
    folder: Path,
    environment: Any,
    port: int,
    state: Path,
    device: str = "default",
    **sections: dict[str, object],
) -> Sensor:
    """`edgetag run` with a state directory that may have been another's before."""
    folder.mkdir()
    config = folder / "edgetag.yaml"
    settings = {
        "sensor": {"id": SENSOR},
        "audio": {"device": device},
        "window": {"hop_s": 0.5},
        "runtime": {"variant": "int8"},
        "mqtt": {"url": f"mqtt://127.0.0.1:{port}"},
        **sections,
    }
    config.write_text(json.dumps(settings))
    place = ("env", f"STATE_DIRECTORY={state}")
    return Sensor(folder, environment, "--config", str(config), "--format", "json", under=place)


def noise(seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.05, round(seconds * 44_100)).astype(np.float32)


@dataclass
class Life:
    """Of one `edgetag run`: what it printed, how it ended, and what is in its outbox then."""

    sensor: Sensor
    code: int | None
    ending_s: float
    rows: list[tuple[str, bytes]]

    def tags(self) -> list[Message]:
        return [(said.message["boot"], said.message["seq"]) for said in self.sensor.messages("tags")]

    def events(self) -> list[Message]:
        return [(said.message["boot"], said.message["seq"]) for said in self.sensor.messages("event")]

    def numbers(self, kind: str) -> list[Message]:
        """What waits in the outbox."""
        messages = [json.loads(payload) for topic, payload in self.rows if topic == kind]
        return [(message["boot"], message["seq"]) for message in messages]


def ended(sensor: Sensor, state: Path) -> Life:
    code, ending_s = sensor.terminate()
    return Life(sensor, code, ending_s, rows_in(state))


@dataclass
class Lives:
    """Of one sensor, one after the other; and what reached the subscriber."""

    lives: list[Life]
    subscriber: Subscriber


def stopped(folder: Path) -> Lives:
    """It hears, is reached, and is asked to end."""
    with reached(folder) as (broker, subscriber), SoundServer(short(folder)) as server:
        server.play(noise(60), wait=False)
        with daemon(folder / "run", server.environment(), broker.port, folder / "state") as sensor:
            sensor.wait_for(lambda: len(sensor.messages("tags")) >= 5)
            life = ended(sensor, folder / "state")
        subscriber.wait_for_state("offline", "stopped")
    return Lives([life], subscriber)


def stopped_in_vain(folder: Path) -> Lives:
    """
    broker   accepts, never answers | not there | ●●●●●●●●●●●●●
    daemon   hears                  | nobody to | nobody to hear
    """
    with Broker(folder / "broker") as broker, SoundServer(short(folder)) as server, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        server.play(noise(60), wait=False)
        state = folder / "state"
        with (
            socket.create_server(("127.0.0.1", broker.port)),
            daemon(folder / "first", server.environment(), broker.port, state) as sensor,
        ):
            sensor.wait_for(lambda: len(sensor.messages("tags")) >= 5)
            first = ended(sensor, state)
        with daemon(folder / "second", server.environment(), broker.port, state, NOBODY) as sensor:
            sensor.wait_for(lambda: sensor.states())
            second = ended(sensor, state)
        broker.start()
        stack.enter_context(subscriber)
        with daemon(folder / "third", server.environment(), broker.port, state, NOBODY) as sensor:
            subscriber.wait_until(lambda: len(subscriber.came["tags"]) >= len(first.tags()), "what was heard")
            third = ended(sensor, state)
        subscriber.wait_for_state("offline", "stopped")
    return Lives([first, second, third], subscriber)


NOBODY = "a microphone that nobody has"


def run_on_a_full_disk(folder: Path) -> Lives:
    """The disk is full from the start, and has room again later; there is a broker only then."""
    with Broker(folder / "broker") as broker, SoundServer(short(folder)) as server, ExitStack() as stack:
        subscriber = awaited(folder, broker)
        state = stack.enter_context(small_disk(folder / "disk"))
        server.play(noise(60), wait=False)
        sensor = stack.enter_context(daemon(folder / "run", server.environment(), broker.port, state))
        sensor.wait_for(lambda: sensor.messages("tags"))
        filler = state / "filler"
        fill(filler)
        sensor.wait_for(lambda: any("cannot be written" in reason for _, reason in sensor.states()))
        n = len(sensor.messages("tags"))
        sensor.wait_for(lambda: len(sensor.messages("tags")) >= n + 5)
        filler.unlink()
        sensor.wait_for(lambda: sensor.states()[-1][0] == "online")
        broker.start()
        stack.enter_context(subscriber)
        subscriber.wait_until(lambda: len(subscriber.came["tags"]) >= n + 5, "what was heard")
        life = ended(sensor, state)
        subscriber.wait_for_state("offline", "stopped")
    return Lives([life], subscriber)


def fill(file: Path) -> None:
    """To the last byte of the disk."""
    with file.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))


def run_with_a_damaged_outbox(folder: Path) -> Lives:
    state = folder / "state"
    state.mkdir()
    (state / FILE_NAME).write_bytes(b"no database\n" * 1000)
    with reached(folder) as (broker, subscriber):
        with daemon(folder / "run", os.environ, broker.port, state, NOBODY) as sensor:
            subscriber.wait_for_state("no_audio")
            life = ended(sensor, state)
        subscriber.wait_for_state("offline", "stopped")
    return Lives([life], subscriber)


def short(folder: Path) -> Path:
    """A folder for a sound server: there is a socket in it."""
    place = folder / "s"
    place.mkdir()
    return place


# -- the stories are lived -----------------------------------------------------------------------------------


Story = Callable[[Path], Any]


@pytest.fixture(scope="module")
def lived(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Story], Any]]:
    """What became of a story; all that are asked for begin when the first is."""
    asked = [
        item.callspec.params["told"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module and "told" in item.fixturenames
    ]
    with ThreadPoolExecutor(N_SIDE_BY_SIDE) as pool:
        futures: dict[Story, Future[Any]] = {
            story: pool.submit(story, tmp_path_factory.mktemp("d")) for story in dict.fromkeys(asked)
        }
        yield lambda story: futures[story].result()


@pytest.fixture
def told(
    request: pytest.FixtureRequest, lived: Callable[[Story], Any], capsys: pytest.CaptureFixture[str]
) -> Any:
    """How the story ended; the figures of a long one are printed."""
    found = lived(request.param)
    if request.node.get_closest_marker("soak"):
        with capsys.disabled():
            print(f"\n{request.node.name}: {found.figures}")  # noqa: T201 - what the note tells
    return found


NEEDS = {
    black_hole: needs_cable,
    disk_full: needs_root,
    killed_on_a_full_disk: needs_root,
    reached_on_a_full_disk: needs_root,
    run_on_a_full_disk: needs_root,
}


def lives(*stories: Story, long: Sequence[Story] = ()) -> pytest.MarkDecorator:
    """A test of what became of each; of the long ones only in `make soak`."""
    marks = [pytest.mark.soak, pytest.mark.timeout(3600)]
    some = [pytest.param(story, id=_name(story), marks=_needs(story)) for story in stories]
    others = [pytest.param(story, id=_name(story), marks=[*marks, *_needs(story)]) for story in long]
    return pytest.mark.parametrize("told", [*some, *others], indirect=True)


def _needs(story: Story) -> list[pytest.MarkDecorator]:
    told = story.func if isinstance(story, partial) else story
    return [NEEDS[told]] if told in NEEDS else []


def _name(story: Story) -> str:
    if not isinstance(story, partial):
        return story.__name__
    return "-".join([story.func.__name__, *map(str, story.keywords.values())])


# -- 1: whoever dies -----------------------------------------------------------------------------------------


@lives(
    partial(day, n_windows=1200, n_faults=6, abruptly=False),
    long=[partial(day, n_windows=17_280, n_faults=60, abruptly=False)],
)
def test_every_window_comes_whoever_is_killed_meanwhile(told: Told) -> None:
    """Once, after what came twice is thrown away, and in order; the broker saves what it has when it ends."""
    assert_whole(told)
    assert_nobody_waited(told)
    assert min(told.counts["broker's ends"], told.counts["daemon's ends"]) >= 3


@lives(
    partial(day, n_windows=1200, n_faults=6, abruptly=True),
    long=[partial(day, n_windows=17_280, n_faults=60, abruptly=True)],
)
def test_a_broker_that_forgets_was_given_everything(told: Told) -> None:
    """SIGKILL takes from a broker what it has acknowledged and not saved. A witness saw every window
    acknowledged: the sensor has lost none, and what came is in order.
    """
    assert_in_order(told)
    assert_nobody_waited(told)
    assert told.counts["lost by the broker"] < len(told.handed) / 100


# -- 2: whoever does not answer ------------------------------------------------------------------------------


@lives(
    partial(absent, absent_s=5.0),
    partial(black_hole, n_lost=200),
    partial(mute, n_lost=200),
    partial(never_acknowledges, n_lost=200),
    partial(refuses, n_lost=200),
    long=[
        partial(absent, absent_s=180.0),
        partial(black_hole, n_lost=9000),
        partial(mute, n_lost=9000),
        partial(never_acknowledges, n_lost=2400),
        partial(refuses, n_lost=9000),
    ],
)
def test_a_broker_that_is_reached_again_is_given_everything_and_nobody_has_waited(told: Told) -> None:
    assert_whole(told)
    assert_nobody_waited(told)
    assert told.health[0].last_error != ""
    assert told.health[0].outbox.dropped == told.health[0].outbox.refused == 0


# -- 3: the disk ---------------------------------------------------------------------------------------------


@lives(partial(disk_full, n_windows=1400), long=[partial(disk_full, n_windows=5000)])
def test_what_a_full_disk_costs_is_counted_and_no_more(told: Told) -> None:
    """What was written before comes, and the latest 20 MB; the gap in the middle is as long as is said."""
    assert_in_order(told)
    assert_nobody_waited(told)
    n_lost = told.counts["reported lost"]
    assert n_lost == sum(n_gaps(told.came[kind]) for kind in KINDS) > 100
    for kind in KINDS:
        missing, handed = told.missing(kind), told.of(kind)
        first = handed.index(missing[0])
        assert missing == handed[first : first + len(missing)]
        assert 0 < first < len(handed) - len(missing)


@lives(killed_on_a_full_disk)
def test_what_was_written_before_the_disk_was_full_outlives_sigkill(told: Told) -> None:
    assert_whole(told)
    assert told.counts["written"] > 50


@lives(partial(reached_on_a_full_disk, n_windows=300))
def test_a_full_disk_does_not_keep_a_reached_broker_from_anything(told: Told) -> None:
    """What the disk had, what memory has, and what is still to come; only that some comes twice."""
    assert_whole(told)
    assert_nobody_waited(told)
    n_twice = sum(len(told.came[kind]) - len(set(told.came[kind])) for kind in KINDS)
    assert 0 < n_twice <= told.counts["could not be deleted"]


@lives(partial(damaged, at=0.0), partial(damaged, at=0.5))
def test_a_damaged_outbox_is_set_aside_and_reported_and_the_daemon_starts(told: Told) -> None:
    assert_whole(told)
    assert told.health[0].outbox.damaged == 1
    assert f"{FILE_NAME}.damaged" in told.notes["files"]
    assert "outbox.damaged" in told.notes["log"]
    assert told.notes["published"]["damaged"] == 1


# -- 4: the outbox at its bound ------------------------------------------------------------------------------


@lives(
    partial(bound, max_bytes=200_000, n_windows=800),
    long=[partial(bound, max_bytes=2_000_000, n_windows=17_280)],
)
def test_the_oldest_go_and_the_loss_that_is_published_is_the_gap(told: Told) -> None:
    """Over both topics, and over a restart: what is missing is the beginning, and as much as is said."""
    assert_in_order(told)
    n_lost = told.counts["reported lost"]
    assert n_lost == sum(n_gaps(told.came[kind]) for kind in KINDS) > 100
    assert n_lost == sum(len(told.missing(kind)) for kind in KINDS)
    for kind in KINDS:
        missing = told.missing(kind)
        assert missing == told.of(kind)[: len(missing)]


# -- two of one id -------------------------------------------------------------------------------------------


@lives(
    partial(rivals, version=5, fight_s=12.0),
    partial(rivals, version="3.1.1", fight_s=12.0),
    long=[partial(rivals, version=5, fight_s=300.0), partial(rivals, version="3.1.1", fight_s=300.0)],
)
def test_two_of_one_id_say_so_and_fight_less_and_less(told: Told) -> None:
    """Neither loses anything. Each waits twice as long as before, at least half a second at first."""
    assert_whole(told)
    assert len(told.health) == 2
    for health, troubles in zip(told.health, told.notes["troubles"], strict=True):
        assert RIVALRY in troubles
        assert 2 <= health.connects <= 2 + log2(2 * told.notes["fought_s"] + 2)
        assert health.outbox.refused == 0
    assert told.notes["states"].count(RIVALRY) >= 2


@pytest.mark.parametrize("loss", [TakenOverError("another"), LostError("broken off")])
def test_who_has_a_rival_calls_a_dozen_times_an_hour(loss: NetworkError) -> None:
    """In virtual time: a day in which the other one comes back as we would, twice as late every time, up to
    five minutes, and soon again after an hour.
    """
    now_s, called_s, rng = [0.0], list[float](), random.Random(0)

    class Thrown(Courier):
        """Connected until the rival comes."""

        def __enter__(self) -> Self:
            called_s.append(now_s[0])
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def settled(self) -> list[Settled]:
            n_of_late = sum(at > now_s[0] - 3600 for at in called_s)
            now_s[0] += rng.uniform(0.5, 1.0) * min(2.0**n_of_late, 300.0)
            if now_s[0] > 24 * 3600:
                done.set()
            raise loss

    def wait(seconds: float) -> None:
        now_s[0] += seconds

    done = threading.Event()
    with Background(
        lambda status, info: Thrown(),
        outbox=Outbox(None),
        info=bundle_info(),
        status=sensor_status(),
        monotonic=lambda: now_s[0],
        wait=wait,
        flush_s=0.0,
    ):
        assert done.wait(WAIT_S)
    an_hour = [sum(start <= at < start + 3600 for at in called_s) for start in called_s]
    assert max(an_hour) <= 15


# -- edgetag run ---------------------------------------------------------------------------------------------


@needs_sound_server
@lives(stopped)
def test_a_daemon_that_is_asked_to_end_delivers_everything_and_says_goodbye(told: Lives) -> None:
    (life,) = told.lives
    assert (life.code, life.rows) == (0, [])
    assert life.ending_s < PROMPT_S
    assert told.subscriber.came == {"tags": life.tags(), "events": life.events()}
    assert len(life.tags()) >= 5
    status = told.subscriber.said["status"][-1]
    assert (status["state"], status["reason"]) == ("offline", "stopped")


@needs_sound_server
@lives(stopped_in_vain)
def test_what_a_daemon_could_not_deliver_is_delivered_late_by_the_next(told: Lives) -> None:
    """It ends in time all the same, whether nobody answers or nobody listens."""
    first, second, third = told.lives
    for life in told.lives:
        assert life.code == 0
        assert life.ending_s < PROMPT_S
    heard = first.tags()
    assert len(heard) >= 5
    assert first.numbers("tags") == second.numbers("tags") == heard
    assert first.numbers("events") == first.events()
    assert third.rows == []
    assert told.subscriber.came == {"tags": heard, "events": first.events()}
    assert told.subscriber.late == heard


@needs_sound_server
@lives(run_on_a_full_disk)
def test_a_daemon_hears_on_while_its_disk_is_full(told: Lives) -> None:
    """It says so, and goes on as before when there is room again."""
    (life,) = told.lives
    assert life.code == 0
    assert [state for state, _ in life.sensor.states()] == ["no_audio", "online", "degraded", "online"]
    assert set(told.subscriber.came["tags"]) >= set(life.tags())
    assert by_boot(told.subscriber.came["tags"]) == by_boot(life.tags())
    assert life.rows == []


@needs_portaudio
@lives(run_with_a_damaged_outbox)
def test_a_daemon_starts_without_its_damaged_outbox(told: Lives) -> None:
    (life,) = told.lives
    assert (life.code, life.rows) == (0, [])
    assert any("outbox.damaged" in line.text for line in life.sensor.logged)
    assert told.subscriber.said["health"][-1]["delivery"]["outbox"]["damaged"] == 1
