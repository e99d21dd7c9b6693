"""The heap: what is freed goes back to the system when that is asked for, whatever lies between."""

import subprocess
import sys

# In a process of its own, since what is set of a heap holds for all of a process: every eighth block stays.
FREES = """
from edgetag import heap
from edgetag.tagging.machine import resident_bytes

heap.begin_loading()
{}
blocks = [bytes([k % 256]) * 100_000 for k in range(800)]
full = resident_bytes()
blocks = blocks[::8]
heap.{}()
print(full, resident_bytes())
"""


def freed_share(before: str, ask: str) -> float:
    """Of 70 MB that a process has freed between what it keeps, how much it has given back."""
    code = FREES.format(before, ask)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    full, left = map(int, found.stdout.split())
    return (full - left) / 70e6


def test_what_loading_frees_is_given_back() -> None:
    assert freed_share("", "begin_hearing") > 0.9


def test_what_windows_free_is_given_back_when_it_is_asked_for() -> None:
    assert freed_share("heap.begin_hearing()", "trim") > 0.9
