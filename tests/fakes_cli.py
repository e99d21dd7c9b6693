"""`edgetag` in a process of its own, with a state directory of its own; and what a refusal looks like."""

import os
import subprocess
import sys
from pathlib import Path


def run_python(*arguments: object, state: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python …` to its end."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"STATE_DIRECTORY": str(state)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *sentence: str) -> None:
    """One sentence on stderr, the documented exit code, no traceback."""
    assert done.returncode == code, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("edgetag: ")
    for part in sentence:
        assert part in done.stderr
