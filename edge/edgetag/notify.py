"""What systemd is told of a service: sd_notify(3), one datagram a word.

Nothing is said by a timer: `watchdog` is for whoever has made progress. A service that was not started by
systemd talks to nobody.
"""

import os
import socket
from collections.abc import Mapping
from typing import Literal, Self

import structlog

from edgetag.contract.errors import first_line, printable

MAX_STATUS_CHARACTERS = 500  # systemd reads 4,096 bytes of a datagram, and a character has up to four

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.notify")


class Notifier:
    """Says how the service is to the socket at `address`: a path, or an abstract name behind an `@`.

    A socket that has gone, is full, or never was one, is worth one line in the log and no error: whether
    systemd hears us must not decide over whether we hear the street.

    Args:
        watchdog_s: how long the manager waits for the next sign of life; None if it waits for none.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s
        self._patience_s = 0.0
        self._phase: Literal["starting", "running", "stopping"] = "starting"
        self._complained = False
        self._status: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """To `$NOTIFY_SOCKET`; to nobody where it is not set."""
        return cls(environment.get("NOTIFY_SOCKET"), _watchdog_s(environment))

    def expect(self, patience_s: float) -> None:
        """Progress may take so long: from `ready` on, a watchdog of less patience is given as much."""
        self._patience_s = patience_s

    def ready(self) -> None:
        """The service has started; said once."""
        if self._phase == "starting" and self._say("\n".join(["READY=1", *self._longer_watchdog()])):
            self._phase = "running"

    def status(self, text: str) -> None:
        """What `systemctl status` shows: one line, with escapes for what a terminal would obey; said once."""
        if text != self._status:
            self._say(f"STATUS={printable(text[:MAX_STATUS_CHARACTERS])[:MAX_STATUS_CHARACTERS]}")
        self._status = text

    def watchdog(self) -> None:
        """There was progress: begin `WatchdogSec=` anew. Before `ready` that would only start it too soon."""
        if self._phase != "starting":
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """The service is on its way out; it will not be ready any more."""
        self._phase = "stopping"
        self._say("STOPPING=1")

    def extend_timeout(self, seconds: float) -> None:
        """Starting, or stopping, takes so long from now on. In between it would only dull the watchdog."""
        if self._phase != "running":
            self._say(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def _longer_watchdog(self) -> list[str]:
        if self._watchdog_s is None or self._watchdog_s >= self._patience_s:
            return []
        return [f"WATCHDOG_USEC={round(self._patience_s * 1e6)}"]

    def _say(self, words: str) -> bool:
        """Whether it was said, or there is nobody to say it to."""
        if not self._address:
            return True
        try:
            _send(self._address, words.encode())
        except (OSError, ValueError) as error:  # ValueError: a null in a path
            self._complain(error)
            return False
        return True

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            _log.warning("notify.failed", socket=self._address, reason=first_line(error))
        self._complained = True


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """`$WATCHDOG_USEC`, if it is this process that is watched: sd_watchdog_enabled(3)."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    is_ours = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    return int(microseconds) / 1e6 or None if is_ours and microseconds.isdecimal() else None


def _send(address: str, datagram: bytes) -> None:
    """To a path or an abstract name; every time by a new socket, for systemd may have made its own anew."""
    if address[0] not in "/@":
        raise ValueError("expected a path that begins with / or an abstract name that begins with @")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)  # a manager that does not read is a failure, not a wait
        sock.sendto(datagram, f"\0{address[1:]}" if address[0] == "@" else address)
