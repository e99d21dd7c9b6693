"""A sensor without ears, in a process of its own: the real publisher and outbox, fed with windows.

```
parent  Feeder ── starts, kills, terminates ──> child  main(): a window every 1/rate_hz s, and some sounds
           └ said <── a line for each that `deliver` or `sound` has returned from ──┘
```
Every child is another boot. What it said is in a file: it outlives whoever is killed.
"""

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import msgspec

from edgetag.config import read_settings
from edgetag.contract.event import DeliveryHealth, new_boot_id
from edgetag.delivery.background import Background
from edgetag.log import configure
from edgetag.publishing import broker_of, publisher
from edgetag.state import state_directory
from fakes import bundle_info, sensor_health, sensor_status, sound_event, tags_event

WAIT_S = 60  # for what must happen, on a machine that does other things, too
FLUSH_S = 2.0
WINDOWS_PER_SOUND = 4
DUMP = signal.SIGUSR1  # who gets this says what each thread is at, and ends
_REPORT_S = 0.5
_POLL_S = 0.02


# -- the child -------------------------------------------------------------------------------------------


def main() -> None:
    """Feeds `n` windows and stays until SIGTERM, as a daemon would; or until its parent is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--n", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--padding", type=int, required=True)
    options = parser.parse_args()
    faulthandler.register(DUMP, all_threads=True, chain=True)
    settings = read_settings(options.config)
    configure()
    address, sensor, boot = broker_of(settings), settings.sensor.id, new_boot_id()
    assert address is not None
    assert sensor is not None
    sink = publisher(
        settings,
        address,
        sensor=sensor,
        boot_id=boot,
        info=bundle_info(),
        state_directory=state_directory(),
        flush_s=FLUSH_S,
    )
    with sink:
        child = _Child(sink, sensor, boot, padding="x" * options.padding)
        signal.signal(signal.SIGTERM, child.leave)
        child.feed(options.n, options.rate)
    child.say("health", msgspec.json.encode(sink.delivery()).decode())


class _Child:
    def __init__(self, sink: Background, sensor: str, boot: str, padding: str) -> None:
        self._sink = sink
        self._who = {"sensor": sensor, "boot": boot}
        self._padding = padding
        self._parent = os.getppid()
        self._is_leaving = False  # no event: to set one while it is waited for locks itself out
        self._n_sounds = 0
        self._said_trouble: tuple[str, str] | None = None
        self._report_due_s = 0.0

    def feed(self, n: int, rate_hz: float) -> None:
        due_s = time.monotonic()
        for seq in range(n):
            time.sleep(max(0.0, due_s - time.monotonic()))
            if self._is_leaving:
                return
            due_s += 1 / rate_hz
            self._hear(seq)
            self._look()
        while not self._is_leaving and os.getppid() == self._parent:
            time.sleep(_POLL_S)
            self._look()

    def leave(self, *_: object) -> None:
        """For a signal."""
        self._is_leaving = True

    def say(self, *words: object) -> None:
        """In one write: SIGKILL leaves whole lines."""
        os.write(sys.stdout.fileno(), ("\t".join(map(str, words)) + "\n").encode())

    def _hear(self, seq: int) -> None:
        padding = {"source": self._padding} if self._padding else {}
        began_s = time.monotonic()
        self._sink.deliver(tags_event(seq, **self._who, **padding))
        self.say("tags", self._who["boot"], seq, time.monotonic() - began_s)
        if seq % WINDOWS_PER_SOUND == 0:
            began_s = time.monotonic()
            self._sink.sound(sound_event(self._n_sounds, **self._who))
            self.say("events", self._who["boot"], self._n_sounds, time.monotonic() - began_s)
            self._n_sounds += 1

    def _look(self) -> None:
        """As the daemon's listener does after every window: what is wrong is a state, and health is due."""
        found = self._sink.trouble(), self._sink.unreachable()
        if found != self._said_trouble:
            self.say("trouble", *found)
            state = ("degraded", found[0]) if found[0] else ("online", "hearing")
            if self._said_trouble is None or found[0] != self._said_trouble[0]:
                self._sink.state(msgspec.structs.replace(sensor_status(*state), boot_id=self._who["boot"]))
            self._said_trouble = found
        if time.monotonic() >= self._report_due_s:
            self._report_due_s = time.monotonic() + _REPORT_S
            health = self._sink.delivery()
            self.say("health", msgspec.json.encode(health).decode())
            self._sink.report(msgspec.structs.replace(sensor_health(), delivery=health, **self._who))


# -- its parent ------------------------------------------------------------------------------------------


class Handed(NamedTuple):
    """A message that `deliver` or `sound` has returned from, after `took_s`."""

    kind: str
    boot: str
    seq: int
    took_s: float


class Feeder:
    """Children, one after the other, with one state directory.

    Args:
        folder: a new one.
        port: the broker's, at `host`.
        rate_hz: windows a second.
        padding_bytes: so much more is in every window.
        state: the state directory, if it is not in `folder`.
        under: a command that starts them in its turn.
        sections: of the configuration, over what is needed.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        host: str = "127.0.0.1",
        sensor: str = "b827eb42bd4a",
        rate_hz: float = 200.0,
        padding_bytes: int = 0,
        state: Path | None = None,
        under: tuple[str, ...] = (),
        **sections: dict[str, object],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.state = state or folder / "state"
        self.handed: list[Handed] = []
        self.troubles: list[tuple[str, str]] = []
        self.health: DeliveryHealth | None = None
        self._rate_hz = rate_hz
        self._said, self._log = folder / "said", folder / "log"
        self._said.touch()
        self._rest = self._said.open("rb")
        config = folder / "edgetag.yaml"
        mqtt = {"url": f"mqtt://{host}:{port}", **sections.pop("mqtt", {})}
        config.write_text(json.dumps({"sensor": {"id": sensor}, "mqtt": mqtt, **sections}))
        options = ("--rate", str(rate_hz), "--padding", str(padding_bytes))
        self._command = [*under, sys.executable, "-m", "system.feeder", str(config), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        self._rest.close()

    def start(self, n: int) -> None:
        """Another boot of `n` windows."""
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with self._said.open("ab") as said, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--n", str(n)],
                env=os.environ | {"STATE_DIRECTORY": str(self.state), "PYTHONPATH": path},
                stdout=said,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, if it runs; what it said is read to the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            self._process = None
        self.listen()

    def terminate(self) -> float:
        """Ask it to end, which must go well: the seconds that took."""
        assert self._process is not None
        asked_s = time.monotonic()
        self._process.terminate()
        try:
            assert self._process.wait(WAIT_S) == 0, self.log()
        except subprocess.TimeoutExpired:
            self._process.send_signal(DUMP)
            self._process.wait(WAIT_S)
            raise AssertionError(f"it does not end: {self.log()}") from None
        took_s = time.monotonic() - asked_s
        self._process = None
        self.listen()
        return took_s

    @property
    def n_windows(self) -> int:
        """That were handed over, in all boots."""
        self.listen()
        return sum(handed.kind == "tags" for handed in self.handed)

    def all_handed(self) -> set[tuple[str, str, int]]:
        """Kind, boot and seq of what was handed over, in all boots."""
        return {(kind, boot, seq) for kind, boot, seq, _ in self.handed}

    def wait_for_windows(self, n: int) -> None:
        """Returns when so many were handed over, in all boots."""
        within_s = WAIT_S + 2 * max(0, n - self.n_windows) / self._rate_hz
        self.wait_until(lambda: self.n_windows >= n, within_s)

    def wait_for_trouble(self, words: str) -> None:
        """Returns when it says so, of its delivery or of the broker."""
        self.wait_until(lambda: any(words in said for said in self.troubles[-1:] for said in said))

    def wait_until(self, done: Callable[[], bool], within_s: float = WAIT_S) -> None:
        """Take in what it says until `done()`; it must not end before."""
        deadline_s = time.monotonic() + within_s
        while not done():
            assert self._process is None or self._process.poll() is None, self.log()
            assert time.monotonic() < deadline_s, f"{self.troubles[-3:]}, {self.health}, {self.log()}"
            time.sleep(_POLL_S)
            self.listen()

    def listen(self) -> None:
        """Take in what was said meanwhile."""
        for words in self._lines():
            match words:
                case ["health", health]:
                    self.health = msgspec.json.decode(health, type=DeliveryHealth)
                case ["trouble", trouble, unreachable]:
                    self.troubles.append((trouble, unreachable))
                case [kind, boot, seq, took_s]:
                    self.handed.append(Handed(kind, boot, int(seq), float(took_s)))

    def log(self) -> str:
        return self._log.read_text()

    def _lines(self) -> Iterator[list[str]]:
        """The whole ones."""
        while line := self._rest.readline():
            if not line.endswith(b"\n"):
                self._rest.seek(-len(line), os.SEEK_CUR)
                return
            yield line.decode().rstrip("\n").split("\t")


if __name__ == "__main__":
    main()
