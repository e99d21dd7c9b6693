"""The audio device: it opens, and hears."""

import contextlib
import math
import re
from contextlib import closing
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from edgetag.contract.errors import InputError
from edgetag.doctor.finding import Case, Finding, failed

if TYPE_CHECKING:
    from edgetag.capture.microphone import OpenDevice

CGROUPS = Path("/sys/fs/cgroup")
LISTEN_S = 2.0
_READ_S = 0.1


def audio_device(case: Case) -> Finding:
    """Opened as the sensor opens it, and heard: a microphone never delivers only zeros."""
    from edgetag.capture.devices import NoDeviceError, load_portaudio
    from edgetag.capture.microphone import DeviceError
    from edgetag.capture.portaudio import opener

    audio = case.settings.audio
    try:
        portaudio = load_portaudio()
    except NoDeviceError as error:
        return failed(error, "`sudo apt install libportaudio2`", InputError)
    open_device = opener(portaudio, device=audio.device, channel=audio.channel, rate_hz=audio.rate_hz)
    try:
        with closing(open_device()) as device:
            return _heard(device)
    except DeviceError as error:
        return not_opened(str(error), capturing())


def _heard(device: "OpenDevice") -> Finding:
    """What two seconds are like; the first of them may take two more to come.

    Raises:
        DeviceError: it stops.
    """
    import numpy as np

    n_read = round(device.rate_hz * _READ_S)
    heard = np.concatenate([device.read(n_read)[0] for _ in range(round(LISTEN_S / _READ_S))])
    peak, rms = float(np.abs(heard).max()), float(np.sqrt(np.square(heard).mean()))
    channels = f"{device.n_channels} channel{'s' * (device.n_channels > 1)}"
    where = f"{device.name}, {channels} at {device.rate_hz} Hz"
    if peak > 0:
        return Finding("ok", f"{where}: hears {_dbfs(rms):.1f} dBFS, peak {_dbfs(peak):.1f} dBFS")
    remedy = (
        "is it muted (alsamixer, F4), is audio.channel the one with the microphone? "
        "`edgetag devices` says which devices hear something"
    )
    return failed(f"{where}: nothing but zeros, digital silence", remedy, InputError)


def _dbfs(amplitude: float) -> float:
    return 20 * math.log10(amplitude)


def not_opened(reason: str, owners: dict[int, list[str]], cgroups: Path = CGROUPS) -> Finding:
    """A device that cannot be opened, while processes (with these command lines) have a sound card's input.

    PortAudio does not list a card that somebody has: it seems not to be there.
    """
    for pid, command in owners.items():
        if _is_sensor(command) or _is_the_service(pid, cgroups):
            found = f"a running edgetag (process {pid}) hears with it; its status says how that goes"
            return Finding("ok", f"in use: {found}")
    if owners:
        pid, command = next(iter(owners.items()))
        who = PurePath(command[0]).name if command else "a program that cannot be seen from here"
        found = f"{reason}; a sound card's input is in use by {who} (process {pid})"
        return failed(found, "end that program, or choose another device", InputError)
    remedy = (
        "plug it in, and let audio.device name it as `edgetag devices` does; "
        "this user must be in the group `audio`, or reach its sound server"
    )
    return failed(reason, remedy, InputError)


def capturing(proc: Path = Path("/proc")) -> dict[int, list[str]]:
    """Command lines, by process, of those who have a sound card's input; empty where they are hidden."""
    owners: dict[int, list[str]] = {}
    for status in sorted(proc.glob("asound/card*/pcm*c/sub*/status")):
        with contextlib.suppress(OSError):
            if match := re.search(r"owner_pid\s*:\s*(\d+)", status.read_text()):
                owners[int(match[1])] = _command(proc / match[1])
    return owners


def _command(process: Path) -> list[str]:
    try:
        command = (process / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    return command.rstrip("\0").split("\0")


def _is_sensor(command: list[str]) -> bool:
    return "run" in command and any(PurePath(part).name == "edgetag" for part in command)


def _is_the_service(pid: int, cgroups: Path) -> bool:
    """Whether systemd started it as edgetag.service, which no process in another sandbox can see."""
    members: list[str] = []
    for file in cgroups.glob("**/edgetag.service/cgroup.procs"):
        with contextlib.suppress(OSError):
            members += file.read_text().split()
    return str(pid) in members
