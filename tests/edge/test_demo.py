"""The demonstration, as `make demo` runs it."""

import re
import subprocess
import sys


def test_the_demo_ends_by_itself_with_a_summary() -> None:
    """Eleven windows of a minute, each received over MQTT and shown; one line of summary, exit code 0."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetag", "demo"], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    *rows, summary = done.stdout.splitlines()
    assert len([row for row in rows if re.match(r"\d\d:\d\d:\d\d ", row)]) == 11
    assert re.match(
        r"11 windows of a synthetic 60-s street published to mqtt://127\.0\.0\.1:\d+ and received", summary
    )
