"""Somebody else's subscriber: `mosquitto_sub`, with a session that outlives its connection and the broker.

It connects again by itself; what it prints is in a file, one message a line, and is read from there.
"""

import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WAIT_S = 60
_POLL_S = 0.02
_FORM = r"%t\t%p"

Message = tuple[str, int]  # its boot and its number there


class Subscriber:
    """Hears everything below `sonyc/v1` while it is entered; what comes before waits, once it is known.

    Args:
        folder: where it writes.
        host, port: of the broker.
        under: a command that starts it in its turn.
        login: user and password.
    """

    def __init__(
        self,
        folder: Path,
        port: int,
        *,
        host: str = "127.0.0.1",
        under: tuple[str, ...] = (),
        login: tuple[str, str] | None = None,
    ) -> None:
        who = [] if login is None else ["-u", login[0], "-P", login[1]]
        lasting = ["-V", "5", "-i", "subscriber", "-c", "-x", "3600", "-q", "1", "-R"]
        address = ["-h", host, "-p", str(port)]
        self._command = [*under, "mosquitto_sub", *address, *lasting, *who, "-t", "sonyc/v1/#", "-F", _FORM]
        self._file = folder / "heard"
        self._process: subprocess.Popen[bytes] | None = None
        self.came: dict[str, list[Message]] = {"tags": [], "events": []}
        self.late: list[Message] = []
        self.said: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)  # status, info, health

    def make_known(self) -> None:
        """From now on the broker keeps for it what is published; returns when a broker has said so."""
        deadline_s = time.monotonic() + WAIT_S
        while subprocess.run([*self._command, "-E"], capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline_s, "the broker does not know the subscriber"
            time.sleep(_POLL_S)

    def __enter__(self) -> Self:
        self._rest = self._file.open("xb+")
        with self._file.open("ab") as file:
            self._process = subprocess.Popen(self._command, stdout=file, stderr=subprocess.DEVNULL)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()  # not terminate(): its signal handler can lock itself out for ever
        self._process.wait(WAIT_S)
        self.listen()
        self._rest.close()

    def wait_until(self, done: Callable[[], bool], what: str, within_s: float = WAIT_S) -> None:
        """Take in what comes until `done()`."""
        deadline_s = time.monotonic() + within_s
        while not done():
            n = {kind: len(messages) for kind, messages in (self.came | self.said).items()}
            assert time.monotonic() < deadline_s, f"not {what}, but {n}"
            time.sleep(_POLL_S)
            self.listen()

    def wait_for_state(self, state: str, reason: str = "") -> None:
        """Returns when the last state that came is this, for a reason with these words in it."""

        def is_said() -> bool:
            statuses = self.said["status"][-1:]
            return any(status["state"] == state and reason in status["reason"] for status in statuses)

        self.wait_until(is_said, f"{state}: {reason}")

    def listen(self) -> None:
        """Take in what came meanwhile."""
        while line := self._rest.readline():
            if not line.endswith(b"\n"):
                self._rest.seek(-len(line), 1)
                return
            topic, _, payload = line.partition(b"\t")
            self._take(topic.decode().rpartition("/")[2], json.loads(payload))

    def _take(self, kind: str, message: dict[str, Any]) -> None:
        if kind not in self.came:
            self.said[kind].append(message)
            return
        number = message["boot"], message["seq"]
        self.came[kind].append(number)
        if message.get("late"):
            self.late.append(number)
