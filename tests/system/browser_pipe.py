"""Chromium without a window, told what to do over a pipe, by its own DevTools protocol: no driver, no port.

Messages are JSON, each ended by a zero byte; Chromium reads them from descriptor 3 and writes to 4.
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
WAIT_S = 30
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium not installed")


class Browser:
    """One page in a browser of its own.

    Args:
        width, height: of its screen, in pixels.
        is_dark: what the reader's system prefers.
    """

    def __init__(self, width: int = 1300, height: int = 900, *, is_dark: bool = False) -> None:
        self._size, self._is_dark = (width, height), is_dark
        self._n_calls, self._session, self._pending = 0, "", b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._to = os.pipe()
        self._from, theirs_out = os.pipe()
        # Beyond 4, so that neither is overwritten before it is copied.
        far = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in (theirs_in, theirs_out)]
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        options += ["--autoplay-policy=no-user-gesture-required", "--mute-audio", "--no-first-run"]
        options += [f"--user-data-dir={self._folder.name}", "about:blank"]
        begin = (
            f"import os, sys; os.dup2({far[0]}, 3); os.dup2({far[1]}, 4); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", begin, CHROMIUM, *options], pass_fds=far, stderr=subprocess.DEVNULL
        )
        for descriptor in (theirs_in, theirs_out, *far):
            os.close(descriptor)
        try:
            self._attach()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _attach(self) -> None:
        """Take its one page in hand."""
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        width, height = self._size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(WAIT_S)
        os.close(self._to)
        os.close(self._from)
        self._folder.cleanup()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Have something done; what came of it."""
        self._n_calls += 1
        message: dict[str, Any] = {"id": self._n_calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._n_calls:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            some = os.read(self._from, 2**20)
            assert some, "the browser has ended"
            self._pending += some
        message, _, self._pending = self._pending.partition(b"\0")
        said: dict[str, Any] = json.loads(message)
        return said

    def open(self, file: Path) -> None:
        """Load a page, to its end."""
        self.call("Page.navigate", url=file.as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def value(self, expression: str) -> Any:
        """What a script finds; it is not the page's, and no policy holds for it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until it holds."""
        deadline_s = time.monotonic() + WAIT_S
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline_s, f"never: {expression}"
            time.sleep(0.05)
        return found

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def point(self, selector: str, share: float, *, click: bool = False) -> None:
        """Move the mouse to so much of an element's width, in its middle's height; and press there."""
        box = self.value(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        at = {"x": box["left"] + share * box["width"], "y": box["top"] + box["height"] / 2}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **at)
        for kind in ("mousePressed", "mouseReleased") if click else ():
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def choose(self, selector: str, file: Path) -> None:
        """Have the reader choose a file."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def requests(self) -> list[str]:
        """What the page has asked for."""
        sent = [event for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self) -> list[dict[str, Any]]:
        """Errors of its script, and what its policy has refused."""
        return [
            event
            for event in self.events
            if event.get("method") == "Runtime.exceptionThrown"
            or (event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error")
        ]
