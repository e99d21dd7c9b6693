"""A command that serves a page, in a process of its own."""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Self

import msgspec

from edgetag.dashboard.board import Snapshot

WAIT_S = 20.0


class Running:
    """`edgetag …` that serves a page, once it can be opened. `url` is where."""

    def __init__(self, *command: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgetag", *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            text=True,
        )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        self.url = self.said.partition(" is shown at ")[2].partition(" ")[0]
        assert self.url, self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2].rstrip("/"))

    def snapshot(self) -> Snapshot:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.request("GET", "/api/snapshot")
        body = connection.getresponse().read()
        connection.close()
        return msgspec.json.decode(body, type=Snapshot)

    def until(self, is_so: Callable[[Snapshot], bool]) -> Snapshot:
        deadline_s = time.monotonic() + WAIT_S
        while not is_so(snapshot := self.snapshot()):
            assert time.monotonic() < deadline_s, snapshot
            time.sleep(0.05)
        return snapshot

    def ended(self, with_signal: signal.Signals) -> tuple[int, str]:
        """Exit code, and what was said on stderr."""
        self.process.send_signal(with_signal)
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said
