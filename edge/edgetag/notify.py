"""The service manager's side: sd_notify(3), one datagram a word.

It only says what it is told, when it is told: the watchdog is fed by progress, never by a timer.
"""

import os
import socket
from collections.abc import Mapping

import structlog

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.notify")


class Notifier:
    """Speaks to the socket that systemd names in `$NOTIFY_SOCKET`; without one, to nobody.

    A manager that does not listen is logged once; it never stops the sensor.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._is_ready = False
        self._has_failed = False

    def ready(self) -> None:
        """The sensor hears; only the first time counts."""
        if not self._is_ready:
            self._is_ready = True
            self._say("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._say("STATUS=" + " ".join(text.split()))

    def progress(self) -> None:
        """Something has been finished: the watchdog waits anew."""
        self._say("WATCHDOG=1")

    def more_time(self, seconds: float) -> None:
        """The start takes longer, for a reason that waiting may mend; nothing once the sensor is ready."""
        if not self._is_ready:
            self._say(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def _say(self, word: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(word.encode("utf-8", "replace"), self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                _log.warning("notify.failed", reason=error.strerror or str(error))
