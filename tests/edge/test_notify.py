"""The service manager is told what happens, word by word."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edgetag.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket as systemd's, and its name as in the environment."""
    name = f"@edgetag-test-{os.getpid()}-{time.monotonic_ns()}"
    name = name if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        sock.settimeout(1)
        yield sock, name


def test_each_word_is_a_datagram(manager: tuple[socket.socket, str]) -> None:
    """In order, as sd_notify(3) has them; ready only once; no more time once ready."""
    sock, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.more_time(60)
    notifier.ready()
    notifier.ready()
    notifier.more_time(60)
    notifier.status("hearing\nREADY=1  street")
    notifier.progress()
    notifier.stopping()
    words = [sock.recv(4096).decode() for _ in range(5)]
    assert words == [
        "EXTEND_TIMEOUT_USEC=60000000",
        "READY=1",
        "STATUS=hearing READY=1 street",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_without_a_manager_nothing_happens() -> None:
    """In a terminal there is nobody to tell."""
    Notifier({}).ready()


def test_a_manager_that_has_gone_is_logged_once(tmp_path: Path) -> None:
    """And never stops the sensor; nor does one that does not read."""
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with structlog.testing.capture_logs() as logs:
        notifier.ready()
        notifier.progress()
    assert [log["event"] for log in logs] == ["notify.failed"]


def test_a_manager_that_does_not_read_keeps_nobody(tmp_path: Path) -> None:
    """A full socket is a failure, not a wait."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "full"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "full")})
        with structlog.testing.capture_logs() as logs:
            for _ in range(1000):
                notifier.progress()
    assert [log["event"] for log in logs] == ["notify.failed"]
