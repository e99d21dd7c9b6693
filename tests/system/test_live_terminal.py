"""`edgetag run --mic` in a terminal, on a real sound server: a picture, and then the terminal as it was."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from edgetag.demo.scene import street_scene
from fakes_cli import refused, run_python
from system.sound_server import SoundServer, needs_sound_server

WAIT_S = 60


@pytest.fixture
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoundServer]:
    """A street is played."""
    with SoundServer(tmp_path_factory.mktemp("street")) as server:
        server.play(street_scene().samples, wait=False)
        yield server


class Terminal:
    """`edgetag run --mic` in a terminal of its own; what it shows is waited for.

    Args:
        server: to hear.
        folder: for its state.
        options: of the command.
        columns, rows: of the terminal.
        variables: of its environment, over the server's.
    """

    def __init__(
        self,
        server: SoundServer,
        folder: Path,
        *options: str,
        columns: int = 80,
        rows: int = 24,
        **variables: str,
    ) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, rows)
        self._before = termios.tcgetattr(self._slave)
        environment = server.environment() | {"STATE_DIRECTORY": str(folder), "TERM": "xterm-256color"}
        environment = {
            name: v for name, v in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgetag", "run", "--mic", "--hop", "1", *options],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=environment | variables,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            start_new_session=True,
        )
        self.all = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        os.close(self._master)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def shows(self, *words: str) -> str:
        """The first picture from now on with all these words, without colours."""
        pictures = b""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            pictures += self._read(1.0)
            for picture in pictures.split(b"\x1b[H")[1:-1]:  # the last may not be whole
                text = plain(picture)
                if all(word in text for word in words):
                    return text
        raise AssertionError(f"no picture with {words} in {pictures[-4000:]!r}")

    def says(self, words: str) -> None:
        """Wait for them, in whatever way they are printed."""
        deadline_s = time.monotonic() + WAIT_S
        while words not in plain(self.all):
            assert time.monotonic() < deadline_s, f"never {words!r} in {self.all[-4000:]!r}"
            self._read(1.0)

    def ended(self) -> int:
        """Its exit code, once all that it had to say is read."""
        deadline_s = time.monotonic() + WAIT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, "it goes on"
            self._read(0.1)
        while self._read(0.2):
            pass
        return self.process.wait()

    def interrupt(self) -> int:
        """Ctrl-C; the exit code."""
        os.write(self._master, b"\x03")
        return self.ended()

    @property
    def is_as_before(self) -> bool:
        """The first screen is shown, with a cursor, and keys do what they did."""
        is_first = self.all.count(b"\x1b[?1049h") == self.all.count(b"\x1b[?1049l")
        is_seen = self.all.rfind(b"\x1b[?25h") >= self.all.rfind(b"\x1b[?25l")
        return is_first and is_seen and termios.tcgetattr(self._slave) == self._before

    def _read(self, wait_s: float) -> bytes:
        if not select.select([self._master], [], [], wait_s)[0]:
            return b""
        data = os.read(self._master, 65_536)
        self.all += data
        return data


def plain(shown: bytes) -> str:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode("utf-8", "replace"))
    return text.replace("\r", "")


@needs_sound_server
def test_a_terminal_shows_what_is_heard_and_is_itself_again_afterwards(
    street: SoundServer, tmp_path: Path
) -> None:
    """The level before the first window, then tags; log lines in the picture and nowhere in between."""
    with Terminal(street, tmp_path, "--mqtt", "mqtt://127.0.0.1:1") as terminal:
        early = terminal.shows("online: hearing", "the first window", "dBFS(A) █")
        assert "[warning] delivery.failed" in early
        late = terminal.shows("window LAeq", "lag", "broker: nothing listens", "waiting")
        assert len(late.rstrip("\n").split("\n")) <= 24
        before_exit = terminal.all.rindex(b"\x1b[H")
        assert terminal.interrupt() == 0
    assert b"\x1b[?1049h" in terminal.all
    pictures, _, afterwards = terminal.all[before_exit:].partition(b"\x1b[?1049l")
    assert "delivery.failed" in plain(afterwards), "what was logged is still to be read"
    assert re.search(rb"T\d\d:\d\d:\d\d\.\d+Z", pictures) is None, "a log line tore a picture"


@needs_sound_server
def test_the_terminal_is_given_back_whatever_ends_it(street: SoundServer, tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM, and a Ctrl-C by somebody impatient."""
    for k, numbers in enumerate([[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGINT]]):
        with Terminal(street, tmp_path / str(k)) as terminal:
            terminal.shows("online: hearing")
            for number in numbers:
                terminal.process.send_signal(number)
            assert terminal.ended() in ((0,) if len(numbers) == 1 else (0, 130))
            assert terminal.is_as_before


@needs_sound_server
def test_it_takes_the_size_that_the_terminal_has_now(street: SoundServer, tmp_path: Path) -> None:
    with Terminal(street, tmp_path) as terminal:
        terminal.shows("non-machinery-impact")
        terminal.resize(40, 12)
        narrow = terminal.shows("imp ", "voice")
        while len(narrow.split("\n")) > 12:
            narrow = terminal.shows("imp ", "voice")
        assert max(map(len, narrow.split("\n"))) <= 40
        terminal.resize(3, 1)
        terminal.shows("edg")
        assert terminal.interrupt() == 0


@needs_sound_server
def test_an_ascii_terminal_without_colours_gets_neither(street: SoundServer, tmp_path: Path) -> None:
    variables = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}
    with Terminal(street, tmp_path, **variables) as terminal:
        terminal.shows("online: hearing", "dBFS(A) #")
        assert terminal.interrupt() == 0
    assert terminal.all.isascii()
    assert not re.search(rb"\x1b\[(3[0-7]|4[0-7]|9[0-7]|[34]8;)", terminal.all.partition(b"\x1b[?1049l")[0])


@pytest.mark.system
@needs_sound_server
def test_a_dumb_terminal_gets_the_table(street: SoundServer, tmp_path: Path) -> None:
    with Terminal(street, tmp_path, TERM="dumb") as terminal:
        terminal.says("heard")
        terminal.says("dB")
        assert terminal.interrupt() == 0
    assert b"\x1b[?1049h" not in terminal.all


@needs_sound_server
def test_the_table_can_still_be_had(street: SoundServer, tmp_path: Path) -> None:
    with Terminal(street, tmp_path, "--format", "table") as terminal:
        terminal.says("online: hearing")
        assert terminal.interrupt() == 0
    assert b"\x1b[?1049h" not in terminal.all


@needs_sound_server
def test_a_terminal_that_takes_nothing_does_not_keep_the_sensor(street: SoundServer, tmp_path: Path) -> None:
    """Nobody reads what it draws, as after Ctrl-S: it hears on, and ends when it is told to."""
    with Terminal(street, tmp_path, "--mqtt", "mqtt://127.0.0.1:1") as terminal:
        outbox = tmp_path / "outbox.db"
        deadline_s = time.monotonic() + WAIT_S
        while b"edgetag.tags/1" not in b"".join(path.read_bytes() for path in tmp_path.glob("outbox.db*")):
            assert time.monotonic() < deadline_s, f"no window in {outbox}"
            time.sleep(0.2)
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(WAIT_S) == 0


def test_a_picture_needs_a_terminal(tmp_path: Path) -> None:
    done = run_python("-m", "edgetag", "run", "--format", "live", state=tmp_path)
    refused(done, 2, "--format live needs a terminal", "table")
