"""`edgetag replay` as a program: how much audio a minute of CPU chews, and how that grows.

What it prints is read and counted, and goes nowhere else.
"""

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import soundfile

from bench.side_by_side.processes import cpu_s, one_thread, resident_mb
from bench.side_by_side.results import Length, Middle, Run
from bench.side_by_side.street import RATE_HZ, STREET_S, pcm

REPLAY = (sys.executable, "-m", "edgetag", "replay", "--format", "json")
HOP_S = 5
PAUSE_S = 0.5  # between two looks at a process's memory


@dataclass(frozen=True)
class Done:
    """One run of one process and those that it started."""

    cpu_s: float
    wall_s: float
    n_windows: int
    peak_mb: float


def replay(*arguments: str | Path) -> Done:
    """Run it to its end."""
    began_s, peak_mb, n_windows = time.perf_counter(), 0.0, 0
    with _started(*arguments) as process:
        assert process.stdout is not None
        for _ in process.stdout:
            n_windows += 1
            peak_mb = max(peak_mb, resident_mb(process.pid, "VmHWM"))
        # Not `usage.ru_maxrss`: that begins with the memory of whoever starts a process.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"edgetag replay ended with {process.returncode}"
    return Done(usage.ru_utime + usage.ru_stime, time.perf_counter() - began_s, n_windows, peak_mb)


def _started(*arguments: str | Path, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    command = [*REPLAY, *map(str, arguments)]
    return subprocess.Popen(command, env=one_thread(os.environ), stdin=stdin, stdout=subprocess.PIPE)


def in_turns(commands: dict[str, tuple[Sequence[str | Path], float]], n_turns: int) -> dict[str, Run]:
    """Run each `n_turns` times, one after the other.

    Args:
        commands: by name, the arguments and how many seconds of audio they stand for.
    """
    done: dict[str, list[Done]] = {name: [] for name in commands}
    for _ in range(n_turns):
        for name, (arguments, _) in commands.items():
            done[name].append(replay(*arguments))
    return {name: _together(done[name], audio_s) for name, (_, audio_s) in commands.items()}


def _together(runs: Sequence[Done], audio_s: float) -> Run:
    return Run(
        audio_s,
        Middle.of([run.cpu_s for run in runs]),
        Middle.of([run.wall_s for run in runs]),
        runs[0].n_windows,
        round(max(run.peak_mb for run in runs), 1),
    )


# -- recordings ------------------------------------------------------------------------------------------


def write_recording(file: Path, duration_s: int, rate_hz: int = RATE_HZ) -> Path:
    """The street over and over, in what the name's ending says. Returns `file`."""
    minute = pcm(rate_hz)
    with soundfile.SoundFile(file, "w", rate_hz, 1) as sound:
        for at_s in range(0, duration_s, STREET_S):
            sound.write(minute[: (duration_s - at_s) * rate_hz])
    return file


def formats(folder: Path, duration_s: int, options: Sequence[str], n_turns: int) -> dict[str, Run]:
    """By what is decoded."""
    recordings = {
        "WAV, 44.1 kHz": write_recording(folder / "street.wav", duration_s),
        "FLAC, 44.1 kHz": write_recording(folder / "street.flac", duration_s),
        "FLAC, 48 kHz": write_recording(folder / "street48.flac", duration_s, 48_000),
        "MP3, 44.1 kHz": write_recording(folder / "street.mp3", duration_s),
    }
    return in_turns({name: ([*options, file], duration_s) for name, file in recordings.items()}, n_turns)


def hops(recording: Path, hops_s: Sequence[float], options: Sequence[str]) -> dict[str, Run]:
    """By hop, of a recording's audio."""
    duration_s = soundfile.info(recording).duration
    commands = {f"{hop_s:g}": ([*options, "--hop", f"{hop_s:g}", recording], duration_s) for hop_s in hops_s}
    return in_turns(commands, 1)


def files(folder: Path, duration_s: int, numbers: Sequence[int], options: Sequence[str]) -> dict[str, Run]:
    """By number of files that the same audio is cut into."""
    commands: dict[str, tuple[Sequence[str | Path], float]] = {}
    for n in numbers:
        piece = write_recording(folder / f"{duration_s // n}s.flac", duration_s // n)
        commands[f"{n}"] = ([*options, *[piece] * n], duration_s)
    return in_turns(commands, 1)


def can_have_jobs() -> bool:
    """Whether there is `replay --jobs`."""
    done = subprocess.run([*REPLAY, "--help"], capture_output=True, text=True, check=True)
    return "--jobs" in done.stdout


def jobs(recording: Path, n_files: int, options: Sequence[str], n_turns: int) -> dict[str, Run]:
    """By number of processes, of the same files."""
    audio_s = n_files * soundfile.info(recording).duration
    recordings = [recording] * n_files
    commands = {f"{n}": ([*options, "--jobs", f"{n}", *recordings], audio_s) for n in (1, 2)}
    return in_turns(commands, n_turns)


# -- an endless one --------------------------------------------------------------------------------------


def length(hours: float, options: Sequence[str]) -> Length:
    """One WAV stream of so many hours through a pipe: how memory and cost go on."""
    found = Length([], [], [])
    with _started(*options, "--hop", f"{HOP_S}", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        heard = _Heard(process.stdout)
        feeding = threading.Thread(target=_feed, args=(process.stdin, hours))
        feeding.start()
        while feeding.is_alive():
            feeding.join(PAUSE_S)
            if heard.n_windows:
                found.hours.append(round(heard.hours, 4))
                found.resident_mb.append(resident_mb(process.pid))
                found.cpu_s.append(round(cpu_s(process.pid), 2))
        heard.thread.join()
    assert process.returncode == 0, f"edgetag replay ended with {process.returncode}"
    return found


class _Heard:
    """Counts the events that come, and so the audio that was heard."""

    def __init__(self, lines: IO[bytes]) -> None:
        self.n_windows = 0
        self._lines = lines
        self.thread = threading.Thread(target=self._count)
        self.thread.start()

    @property
    def hours(self) -> float:
        return HOP_S * self.n_windows / 3600

    def _count(self) -> None:
        for _ in self._lines:
            self.n_windows += 1


def _feed(stream: IO[bytes], hours: float) -> None:
    minute = pcm().tobytes()
    with stream:
        stream.write(wav_header())
        for _ in range(round(60 * hours)):
            stream.write(minute)


def wav_header() -> bytes:
    """Of a mono stream of 16 bits whose length nobody knows."""
    fmt = struct.pack("<HHIIHH", 1, 1, RATE_HZ, 2 * RATE_HZ, 2, 16)
    endless = 0xFFFFFFFF
    return (
        struct.pack("<4sI4s4sI", b"RIFF", endless, b"WAVE", b"fmt ", len(fmt))
        + fmt
        + struct.pack("<4sI", b"data", endless)
    )
