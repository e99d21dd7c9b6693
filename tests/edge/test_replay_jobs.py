"""`edgetag replay --jobs` as its users run it: the same output, and nobody left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fakes_bundle import write_bundle
from fakes_cli import peak_mb, refused

RATE_HZ = 8000
WAIT_S = 30
START = ("--start", "2026-11-22T10:00:00Z")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, recordings of 12 to 26 s, a long one, and a text that is none."""
    folder = tmp_path_factory.mktemp("archive")
    write_bundle(folder / "bundle", [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})
    rng = np.random.default_rng(0)
    for k in range(6):
        soundfile.write(folder / f"{k}.flac", rng.normal(0, 0.1, (12 + 3 * k) * RATE_HZ - k), RATE_HZ)
    soundfile.write(folder / "long.wav", rng.normal(0, 0.1, 900 * RATE_HZ), RATE_HZ)
    (folder / "3.flac").write_text("hello " * 100)
    return folder


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "edgetag", "replay", "--bundle", str(folder / "bundle"), *arguments]


def replay(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def lines(text: str) -> list[str]:
    """Without what is of a process by nature."""
    kept = []
    for line in text.splitlines():
        event = json.loads(line)
        assert event.pop("boot")
        assert event.pop("lag_s") >= 0
        kept.append(json.dumps(event))
    return kept


FILES = [f"{k}.flac" for k in (5, 0, 3, 1, 2, 4, 3, 0)]


def test_the_output_is_that_of_one_process(folder: Path) -> None:
    """Numbered and stamped on over the same recordings, the same complaints in the same order."""
    one, two = (replay(folder, *FILES, *START, "--jobs", n) for n in ("1", "2"))
    assert lines(two.stdout) == lines(one.stdout)
    assert [json.loads(line)["seq"] for line in two.stdout.splitlines()] == list(range(18))
    assert len({json.loads(line)["boot"] for line in two.stdout.splitlines()}) == 1
    assert (two.returncode, two.stderr) == (one.returncode, one.stderr) == (2, two.stderr)
    assert two.stderr.count("3.flac: no audio") == two.stderr.count("\n") == 2


@pytest.mark.parametrize("form", ["csv", "table"])
def test_every_format_is_that_of_one_process(folder: Path, form: str) -> None:
    """`--jobs 0` is one a core."""
    one, many = (replay(folder, *FILES, *START, "--format", form, "--jobs", n) for n in ("1", "0"))
    assert (many.stdout, many.stderr) == (one.stdout, one.stderr)


def test_without_a_start_each_recording_ends_now(folder: Path) -> None:
    """As it does with one process: by the length it states."""
    before_s = time.time()
    done = replay(folder, "0.flac", "5.flac", "--jobs", "2", "--hop", "10")
    ends = [json.loads(line)["end"] for line in done.stdout.splitlines()]
    starts = [json.loads(line)["start"] for line in done.stdout.splitlines()]
    assert len(ends) == 2 + 3
    for end in ends[1], ends[4]:
        ended_s = np.datetime64(end.rstrip("Z")).astype("datetime64[ms]").astype(int) / 1000
        assert before_s - 0.01 < ended_s < time.time() + 0.01
    assert starts[0] < ends[0]


@pytest.mark.parametrize("arguments", [["-"], ["0.flac", "--realtime"]])
def test_one_stream_of_time_is_heard_by_one_process(folder: Path, arguments: list[str]) -> None:
    """Told before anything is loaded."""
    done = replay(folder, *arguments, "--jobs", "2")
    refused(done, 2, "is heard by one process", "leave --jobs out")
    assert done.stdout == ""


def test_a_damaged_bundle_is_told_once(folder: Path, tmp_path: Path) -> None:
    """By whoever starts the others."""
    done = replay(folder, "0.flac", "1.flac", "--jobs", "2", "--bundle", str(tmp_path))
    refused(done, 3, "bundle.yaml is missing")


def test_a_reader_that_has_enough(folder: Path) -> None:
    """`edgetag replay --jobs 2 … | head -1` ends quietly, and at once."""
    line = " ".join(command(folder, "--jobs", "2", *["long.wav"] * 50))
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} | head -1"],
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 1


# -- signals -------------------------------------------------------------------------------------------------


def begun(folder: Path) -> "subprocess.Popen[str]":
    """A replay by two processes, of which something has been heard; a process group of its own."""
    process = subprocess.Popen(
        command(folder, "--jobs", "2", *["long.wav"] * 4),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's is ignored
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def assert_nobody_is_left(group: int) -> None:
    """In a process group, once what is ending has ended."""
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError(f"process group {group} lives on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kill", [os.killpg, os.kill], ids=["everybody", "the parent"])
def test_interrupted(folder: Path, kill: object, number: signal.Signals) -> None:
    """130, quietly, with whoever heard; as a terminal sends it to all, and as `kill` does to one."""
    assert callable(kill)
    process = begun(folder)
    kill(process.pid, number)
    _, stderr = process.communicate(timeout=WAIT_S)
    assert (process.returncode, stderr) == (130, "")
    assert_nobody_is_left(process.pid)


def test_killed(folder: Path) -> None:
    """Workers whose parent has no time to end them end by themselves."""
    process = begun(folder)
    process.kill()
    _, stderr = process.communicate(timeout=WAIT_S)
    assert stderr == ""
    assert_nobody_is_left(process.pid)


# -- memory --------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_a_recording(folder: Path, tmp_path: Path) -> None:
    """Twenty times as long: not a tenth of a second's audio more. Silence, so that no net is asked."""
    for name, minutes in ("short", 3), ("long", 60):
        soundfile.write(tmp_path / f"{name}.flac", np.zeros(minutes * 60 * RATE_HZ), RATE_HZ)
    short_mb, long_mb = (
        peak_mb(command(folder, str(tmp_path / f"{name}.flac")), folder) for name in ("short", "long")
    )
    assert long_mb < short_mb + 3


def test_memory_does_not_grow_with_the_number_of_recordings(folder: Path, tmp_path: Path) -> None:
    """Of whoever tells what others hear."""
    soundfile.write(tmp_path / "silence.flac", np.zeros(10 * RATE_HZ), RATE_HZ)
    few_mb, many_mb = (
        peak_mb(command(folder, "--jobs", "2", *[str(tmp_path / "silence.flac")] * n), folder)
        for n in (20, 400)
    )
    assert many_mb < few_mb + 3
