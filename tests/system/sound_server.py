"""A street without a street: a private PulseAudio whose null sink's monitor is the microphone.

```
play() ─ paplay ─> sink "street" ─> street.monitor ─ ALSA's pulse plugin ─> PortAudio "pulse", "default"
```

Everything of the server lies in one folder, and so do the configurations of its clients: nothing of the
user's is read or written, real sound cards are not seen, and several servers can run at once. Processes with
`environment()` hear this street and no other. It can misbehave on demand, in ways that were measured:

- `kill()`: a blocking read raises PortAudioError −9999, "Input/output error".
- `stop()`: a blocking read waits; after `resume()` all of it comes in one burst, nothing is lost.
- The first read of a monitor returns after about two seconds.
- `read_available` never says that there is anything: read, and wait.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from ctypes.util import find_library
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

SINK = "street"
WAIT_S = 20
_LEFT_BEHIND_S = 600  # a server whose tests were killed ends after so long without clients
_MAX_SOCKET_PATH_BYTES = 107

_ALSA = """\
pcm.pulse { type pulse hint { show on } }
ctl.pulse { type pulse }
pcm.default { type pulse hint { show on } }
ctl.default { type pulse }
"""


def missing() -> str | None:
    """Why no sound server can be had here, if it cannot."""
    absent = [program for program in ("pulseaudio", "paplay", "pactl") if not shutil.which(program)]
    if absent:
        return f"{', '.join(absent)} not installed"
    if not any(Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")):
        return "libasound2-plugins not installed"
    return None if find_library("portaudio") else "libportaudio2 not installed"


needs_sound_server = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class SoundServer:
    """A PulseAudio of its own folder, which should have a short path: there is a socket in it.

    Args:
        rate_hz, n_channels: of the street; the server converts for whoever asks for others, and makes up
            as many channels as that is: those without a place in space may be silent.
    """

    def __init__(self, folder: Path, *, rate_hz: int = 44_100, n_channels: int = 1) -> None:
        self._folder, self._rate_hz, self._n_channels = folder, rate_hz, n_channels
        self._socket = folder / "socket"
        assert len(os.fsencode(self._socket)) <= _MAX_SOCKET_PATH_BYTES, f"{self._socket} is too long"
        self._process: subprocess.Popen[bytes] | None = None
        self._players: list[subprocess.Popen[bytes]] = []
        folder.chmod(0o700)  # PulseAudio insists
        (folder / "asound.conf").write_text(_ALSA)
        (folder / "client.conf").write_text("autospawn = no\nenable-shm = no\n")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        for player in self._players:
            player.kill()
            player.wait(WAIT_S)

    def environment(self) -> dict[str, str]:
        """This process's environment, with this street as the only microphone."""
        folder = str(self._folder)
        return os.environ | {
            "ALSA_CONFIG_PATH": str(self._folder / "asound.conf"),
            "HOME": folder,
            "XDG_RUNTIME_DIR": folder,
            "XDG_CONFIG_HOME": folder,
            "PULSE_RUNTIME_PATH": folder,
            "PULSE_STATE_PATH": folder,
            "PULSE_CLIENTCONFIG": str(self._folder / "client.conf"),
            "PULSE_COOKIE": str(self._folder / "cookie"),
            "PULSE_SERVER": f"unix:{self._socket}",
            "PULSE_SINK": SINK,
            "PULSE_SOURCE": f"{SINK}.monitor",
        }

    def start(self) -> None:
        """Begin, or begin again after `kill()`. Returns when there is a street to hear."""
        self._socket.unlink(missing_ok=True)
        script = self._folder / "server.pa"
        # Clients come in by the last line: what they find is complete.
        script.write_text(
            f"load-module {self._null_sink()}\n"
            f"load-module module-native-protocol-unix socket={self._socket} auth-anonymous=1\n"
        )
        options = [f"--exit-idle-time={_LEFT_BEHIND_S}", "--daemonize=no", "--use-pid-file=no"]
        options += ["--disable-shm", "--high-priority=no", "--realtime=no", "-n", "-F", str(script)]
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["pulseaudio", *options],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_for_socket()

    def kill(self) -> None:
        """Gone at once, whether it runs, is stopped or is gone already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(WAIT_S)
            self._process = None

    def stop(self) -> None:
        """It does nothing any more; its connections stay open."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on, and catches up."""
        self._signal(signal.SIGCONT)

    def unload_sink(self) -> None:
        """The microphone is pulled out; the server runs on."""
        self._pactl("unload-module", "module-null-sink")

    def load_sink(self) -> None:
        """The microphone is plugged in again."""
        self._pactl("load-module", *self._null_sink().split())

    def play(
        self,
        sound: Path | NDArray[np.float32],
        rate_hz: int | None = None,
        *,
        wait: bool = True,
        ahead_s: float = 2.0,
    ) -> subprocess.Popen[bytes]:
        """Play a recording, or samples of shape [n] or [n, n_channels] at the street's rate or `rate_hz`.

        The server is given it `ahead_s` before it is due: after a `stop()` that is longer, there is a hole.
        Returns when it has been played, or, unless it is to `wait`, at once: the process is the player.
        """
        if not isinstance(sound, Path):
            samples, sound = sound, self._folder / f"played-{len(self._players)}.wav"
            soundfile.write(sound, samples, rate_hz or self._rate_hz, subtype="FLOAT")
        command = ["paplay", f"--device={SINK}", f"--latency-msec={ahead_s * 1000:.0f}", str(sound)]
        player = subprocess.Popen(command, env=self.environment(), stderr=subprocess.DEVNULL)
        self._players.append(player)
        if wait:
            assert player.wait(soundfile.info(sound).duration + WAIT_S) == 0, "paplay failed"
        return player

    def wait_for_listener(self) -> None:
        """Returns when somebody listens to the street, and not only tries whether that could be done."""
        deadline_s = time.monotonic() + WAIT_S
        before = ""
        while not before or self._listeners() != before:
            assert time.monotonic() < deadline_s, "nobody listens"
            before = self._listeners()
            time.sleep(0.5)

    def _listeners(self) -> str:
        return self._pactl("list", "short", "source-outputs")

    def _null_sink(self) -> str:
        return f"module-null-sink sink_name={SINK} rate={self._rate_hz} channels={self._n_channels}"

    def _pactl(self, *arguments: str) -> str:
        command, environment = ["pactl", *arguments], self.environment()
        return subprocess.run(
            command, env=environment, check=True, timeout=WAIT_S, stdout=subprocess.PIPE, text=True
        ).stdout

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the sound server does not run"
        self._process.send_signal(number)

    def _wait_for_socket(self) -> None:
        assert self._process is not None
        deadline_s = time.monotonic() + WAIT_S
        while not self._accepts():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline_s, "the sound server does not listen"
            time.sleep(0.02)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self._socket))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
        return True
