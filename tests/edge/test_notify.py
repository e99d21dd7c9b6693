"""What systemd is told, as a manager on the other end of the socket reads it."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from edgetag.notify import MAX_STATUS_CHARACTERS, Notifier


class Manager:
    """systemd's end: a datagram socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.setblocking(False)

    def heard(self) -> list[str]:
        """Every datagram since the last time."""
        datagrams = []
        while True:
            try:
                datagrams.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return datagrams

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    manager = Manager(path if request.param == "path" else f"@{path}")
    yield manager
    manager.close()


def test_a_service_s_life_in_datagrams(manager: Manager) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address})
    notifier.extend_timeout(2.5)
    notifier.ready()
    notifier.status("hearing USB Audio: 12 windows")
    notifier.watchdog()
    notifier.watchdog()
    notifier.stopping()
    assert manager.heard() == [
        "EXTEND_TIMEOUT_USEC=2500000",
        "READY=1",
        "STATUS=hearing USB Audio: 12 windows",
        "WATCHDOG=1",
        "WATCHDOG=1",
        "STOPPING=1",
    ]


def test_more_time_is_asked_for_only_to_start_and_to_stop(manager: Manager) -> None:
    """While the service runs it would put off the watchdog; and what stops is never ready again."""
    notifier = Notifier(manager.address)
    for step in notifier.ready, notifier.stopping, notifier.ready:
        notifier.extend_timeout(1)
        step()
    words = [datagram.partition("=")[0] for datagram in manager.heard()]
    assert words == ["EXTEND_TIMEOUT_USEC", "READY", "STOPPING", "EXTEND_TIMEOUT_USEC"]


def test_ready_is_said_once(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready()
    notifier.ready()
    assert manager.heard() == ["READY=1"]


@given(st.text() | st.text(min_size=400, max_size=4000) | st.just("ready\nREADY=1\x1b[2J\ud800"))
def test_a_status_is_one_line_of_printable_text_and_never_another_word(text: str) -> None:
    manager = Manager("@edgetag-test-notify-status")
    try:
        Notifier(manager.address).status(text)
        (datagram,) = manager.heard()
    finally:
        manager.close()
    key, _, said = datagram.partition("=")
    assert key == "STATUS"
    assert said.isprintable()
    assert len(said) <= MAX_STATUS_CHARACTERS


@pytest.mark.parametrize(
    ("environment", "patience_s", "told"),
    [
        ({"WATCHDOG_USEC": "120000000"}, 75, []),
        ({"WATCHDOG_USEC": "120000000"}, 120, []),
        ({"WATCHDOG_USEC": "120000000"}, 120.5, ["WATCHDOG_USEC=120500000"]),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}, 300, ["WATCHDOG_USEC=300000000"]),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, 300, []),  # another process is watched
        ({"WATCHDOG_USEC": "0"}, 300, []),
        ({"WATCHDOG_USEC": "soon"}, 300, []),
        ({}, 300, []),
    ],
)
def test_a_watchdog_is_only_ever_given_more_patience(
    manager: Manager, environment: dict[str, str], patience_s: float, told: list[str]
) -> None:
    """Together with READY: not a moment lies between."""
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": manager.address, **environment})
    notifier.expect(patience_s)
    assert manager.heard() == []
    notifier.ready()
    assert manager.heard() == ["\n".join(["READY=1", *told])]


def test_progress_of_a_start_is_no_sign_of_life(manager: Manager) -> None:
    """It would start the watchdog beside the start's own timeout."""
    notifier = Notifier(manager.address)
    notifier.watchdog()
    notifier.ready()
    notifier.watchdog()
    notifier.stopping()
    notifier.watchdog()
    words = [datagram.partition("=")[0] for datagram in manager.heard()]
    assert words == ["READY", "WATCHDOG", "STOPPING", "WATCHDOG"]


def test_every_word_is_one_that_systemd_notify_would_say(manager: Manager) -> None:
    program = shutil.which("systemd-notify")
    if program is None:
        pytest.skip("systemd-notify is not installed")
    Notifier(manager.address).ready()
    Notifier(manager.address).status("hearing")
    ours = manager.heard()
    environment = {"NOTIFY_SOCKET": manager.address}
    subprocess.run([program, "--no-block", "--ready", "--status=hearing"], env=environment, check=True)
    assert set(ours) <= set("\n".join(manager.heard()).splitlines())


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_manager_nothing_is_said_and_nothing_logged(environment: dict[str, str]) -> None:
    with structlog.testing.capture_logs() as logs:
        say_everything(Notifier.from_environment(environment))
    assert logs == []


@pytest.mark.parametrize(
    "address", ["/nowhere/notify", "@edgetag-nobody", "vsock:2:1234", "/a\0b", "/" + 200 * "x"]
)
def test_a_socket_that_cannot_be_reached_is_one_line_in_the_log(address: str) -> None:
    with structlog.testing.capture_logs() as logs:
        say_everything(Notifier(address))
    assert [line["event"] for line in logs] == ["notify.failed"]


def test_a_socket_that_vanishes_does_not_stop_the_service(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.address)
    notifier.ready()
    manager.close()
    with structlog.testing.capture_logs() as logs:
        say_everything(notifier)
    assert len(logs) == 1


def test_ready_that_was_not_heard_is_said_again(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    notifier = Notifier(path)
    notifier.ready()
    manager = Manager(path)
    notifier.ready()
    notifier.ready()
    assert manager.heard() == ["READY=1"]
    manager.close()


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    """Its queue is full after a few datagrams (net.unix.max_dgram_qlen)."""
    manager = Manager(str(tmp_path / "notify"))
    notifier = Notifier(manager.address)
    notifier.ready()
    with structlog.testing.capture_logs() as logs:
        for _ in range(10_000):
            notifier.watchdog()
    assert [line["event"] for line in logs] == ["notify.failed"]
    assert set(manager.heard()) == {"READY=1", "WATCHDOG=1"}
    manager.close()


def say_everything(notifier: Notifier) -> None:
    notifier.ready()
    notifier.status("hearing")
    notifier.watchdog()
    notifier.extend_timeout(1)
    notifier.stopping()
