"""`edgetag run --mic` in a process of its own, and all that it says, with the time at which it was said.

```
            ┌ stdout  one message a line   ─ said
process ────┼ stderr  one line             ─ logged
            └ datagrams, as to systemd     ─ notified
```

Times are seconds since 1970, as the events' own stamps are.
"""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

WAIT_S = 30  # for what must happen


class Said(NamedTuple):
    """A message on stdout."""

    at_s: float
    message: dict[str, Any]


class Line(NamedTuple):
    """A line of the log, or a word to systemd."""

    at_s: float
    text: str


class Sensor:
    """A daemon that prints JSON, with nobody's terminal, and a state directory in `folder`.

    Args:
        folder: a new one, of a short path: there is a socket in it.
        environment: where it runs; a sound server's, for instance.
        arguments: of `edgetag run --mic`.
        under: a command that starts it in its turn.
        python: of the environment that edgetag is installed in.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        *arguments: str,
        under: tuple[str, ...] = (),
        python: str = sys.executable,
    ) -> None:
        self.state = folder / "state"
        self.state.mkdir(parents=True)
        self.said: list[Said] = []
        self.logged: list[Line] = []
        self.notified: list[Line] = []
        self.notify_socket = folder / "notify"
        self._command = [*under, python, "-m", "edgetag", "run", "--mic", *arguments]
        self._environment = {
            **environment,
            "STATE_DIRECTORY": str(self.state),
            "NOTIFY_SOCKET": str(self.notify_socket),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._news = threading.Condition()
        self._is_mute = False

    def __enter__(self) -> Self:
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(self.notify_socket))
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self._take_message)),
            threading.Thread(target=self._read, args=(self.process.stderr, self._take_line)),
        ]
        self._listener = threading.Thread(target=self._listen)
        for thread in (*self._readers, self._listener):
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Whatever is left of it goes."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)
        for thread in self._readers:
            thread.join(WAIT_S)
        self._manager.shutdown(socket.SHUT_RDWR)
        self._listener.join(WAIT_S)
        self._manager.close()

    def messages(self, kind: str) -> list[Said]:
        """Those of one schema: `tags`, `event`, `status`."""
        with self._news:
            return [said for said in self.said if said.message["schema"] == f"edgetag.{kind}/1"]

    def states(self) -> list[tuple[str, str]]:
        """Every state and its reason, in order."""
        return [(said.message["state"], said.message["reason"]) for said in self.messages("status")]

    def since(self, kind: str, at_s: float) -> list[Said]:
        """Those of one schema that were said after `at_s`."""
        return [said for said in self.messages(kind) if said.at_s > at_s]

    def wait_for(self, what: Callable[[], object], within_s: float = WAIT_S) -> bool:
        """Returns as soon as something that was said makes `what` true, or nothing will; whether it has."""
        with self._news:
            self._news.wait_for(lambda: what() or self._is_mute, within_s)
            return bool(what())

    def wait_for_state(self, state: str, after_s: float, within_s: float = WAIT_S) -> bool:
        """Returns when it is said after `after_s`; whether it was."""
        return self.wait_for(
            lambda: any(said.message["state"] == state for said in self.since("status", after_s)), within_s
        )

    def terminate(self, number: signal.Signals = signal.SIGTERM) -> tuple[int | None, float]:
        """Ask it to end: its exit code, None if it does not, and the seconds that took."""
        asked_s = time.monotonic()
        self.process.send_signal(number)
        try:
            code = self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            return None, float("inf")
        took_s = time.monotonic() - asked_s
        for thread in self._readers:
            thread.join(WAIT_S)
        return code, took_s

    def _read(self, stream: IO[str], take: Callable[[str], None]) -> None:
        with stream:
            for line in stream:
                with self._news:
                    take(line)
                    self._news.notify_all()
        with self._news:
            self._is_mute = True
            self._news.notify_all()

    def _take_message(self, line: str) -> None:
        self.said.append(Said(time.time(), json.loads(line)))

    def _take_line(self, line: str) -> None:
        self.logged.append(Line(time.time(), line.rstrip("\n")))

    def _listen(self) -> None:
        while datagram := self._manager.recv(8192):
            with self._news:
                self.notified.append(Line(time.time(), datagram.decode()))
                self._news.notify_all()


def utc_s(stamp: str) -> float:
    """A message's stamp, seconds since 1970."""
    return datetime.fromisoformat(stamp).timestamp()
