"""`edgetag` in a process of its own, with a state directory of its own; and what a refusal looks like."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def run_python(
    *arguments: object, state: Path, cwd: Path | None = None, under: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """`python …` to its end; `under` is a command that starts it in its turn."""
    return subprocess.run(
        [*under, sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"STATE_DIRECTORY": str(state)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


ROOT_WITHOUT_RIGHTS = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
"""For `run_python`'s `under`: root, to whom others' files are as closed as to anybody."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have files of others")


def refused(done: subprocess.CompletedProcess[str], code: int, *sentence: str) -> None:
    """One sentence on stderr, the documented exit code, no traceback."""
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("edgetag: ")
    for part in sentence:
        assert part in done.stderr


def interrupted(*arguments: object, cwd: Path | None = None) -> tuple[int, str]:
    """`edgetag …` that is interrupted, as by Ctrl-C, when it has said a line: its exit code and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetag", *map(str, arguments)],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's is ignored
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    return process.returncode, stderr


def peak_mb(command: list[str], cwd: Path) -> float:
    """The most that a command held resident, of itself and not of what it starts, in 10^6 bytes.

    The kernel's `ru_maxrss` would begin with what its parent, the test, holds.
    """
    peak_kb = 0
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak_kb = max(peak_kb, *map(int, re.findall(r"VmHWM:\s*(\d+)", status)), 0)
            time.sleep(0.01)
    assert process.returncode == 0
    return peak_kb * 1024 / 1e6
