"""`edgetag replay --plot` and `--html`: where pictures go, and what is refused before anything is heard."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fakes_bundle import write_bundle
from fakes_cli import interrupted, refused, run_python

Run = Callable[..., subprocess.CompletedProcess[str]]
OPTIONS = [("--plot", "png", b"\x89PNG"), ("--html", "html", b"<!doctype html>")]
each_option = pytest.mark.parametrize(("option", "suffix", "magic"), OPTIONS)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})


@pytest.fixture
def edgetag(bundle: Path, tmp_path: Path) -> Run:
    """Run `edgetag replay … --bundle BUNDLE` in a folder of its own, `without` modules."""

    def run(*arguments: object, without: str = "") -> subprocess.CompletedProcess[str]:
        program = f"import sys; sys.modules.update(dict.fromkeys({without.split()!r}))"
        program += "; from edgetag.cli import main; main()"
        return run_python(
            "-c", program, "replay", *arguments, "--bundle", bundle, state=tmp_path / "state", cwd=tmp_path
        )

    return run


@pytest.fixture
def street(tmp_path: Path) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, 20 * 44_100)
    for name in ("street.wav", "other.wav"):
        soundfile.write(tmp_path / name, samples, 44_100)
    return tmp_path / "street.wav"


def left(folder: Path) -> set[str]:
    """Files there, but for the recordings."""
    return {path.name for path in folder.iterdir() if path.suffix not in (".wav", "")}


@each_option
def test_a_picture_beside_the_events(
    edgetag: Run, street: Path, tmp_path: Path, option: str, suffix: str, magic: bytes
) -> None:
    """The events are as without it, but for the clock; nothing else is left behind, and nothing is said."""
    with_picture, without = edgetag(street, option, f"a.{suffix}", "--format", "json"), edgetag(street)
    assert (with_picture.returncode, with_picture.stderr) == (0, "")
    heard = [
        [json.loads(line)["coarse"] for line in done.stdout.splitlines()] for done in (with_picture, without)
    ]
    assert heard[0] == heard[1]
    assert left(tmp_path) == {f"a.{suffix}"}
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(magic)


def test_a_picture_alone_is_all_there_is(edgetag: Run, street: Path, tmp_path: Path) -> None:
    """No events over the terminal, unless they are asked for."""
    done = edgetag(street, "--html", "a.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert left(tmp_path) == {"a.html"}


def test_a_page_names_the_recording_and_not_its_folder(edgetag: Run, street: Path, tmp_path: Path) -> None:
    """A page is passed on; who has what folders is nobody's concern."""
    assert edgetag(street, "--html", "a.html").returncode == 0
    page = (tmp_path / "a.html").read_text()
    assert "street.wav" in page
    assert str(tmp_path) not in page


def test_with_a_start_times_are_utc_and_recordings_follow_each_other(
    edgetag: Run, street: Path, tmp_path: Path
) -> None:
    """The second of two goes on where the first one ended."""
    done = edgetag(street, "other.wav", "--html", "drawn", "--start", "2026-11-22T10:00:00Z")
    assert done.returncode == 0
    assert "from 2026-11-22 10:00:00 UTC" in (tmp_path / "drawn" / "street.html").read_text()
    assert "from 2026-11-22 10:00:20 UTC" in (tmp_path / "drawn" / "other.html").read_text()


@each_option
def test_several_recordings_need_a_folder(
    edgetag: Run, street: Path, tmp_path: Path, option: str, suffix: str, magic: bytes
) -> None:
    refused(edgetag("street.wav", "other.wav", option, f"a.{suffix}"), 2, "one picture for 2 recordings")
    assert left(tmp_path) == set()
    assert edgetag("street.wav", "other.wav", option, "drawn").returncode == 0
    assert left(tmp_path / "drawn") == {f"street.{suffix}", f"other.{suffix}"}


@each_option
def test_one_recording_goes_into_a_folder_that_is_named_as_one(
    edgetag: Run, street: Path, tmp_path: Path, option: str, suffix: str, magic: bytes
) -> None:
    assert edgetag("street.wav", option, "drawn/").returncode == 0
    assert left(tmp_path / "drawn") == {f"street.{suffix}"}


@each_option
def test_two_recordings_of_one_name_are_not_drawn_over_each_other(
    edgetag: Run, street: Path, tmp_path: Path, option: str, suffix: str, magic: bytes
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "street.wav").write_bytes(street.read_bytes())
    refused(edgetag("street.wav", "b/street.wav", option, "drawn"), 2, "would both be", f"street.{suffix}")


@each_option
@pytest.mark.parametrize(
    ("out", "code", "sentence"),
    [
        ("street.wav", 2, "ends in none of"),
        ("nowhere/a.{}", 5, "No such file"),
        ("street.wav/", 5, "cannot be made"),
        ("/proc/a.{}", 5, "cannot be written"),
        ("x" * 300 + ".{}", 5, "cannot be written"),
        ("folder.{}", 0, ""),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is_heard(
    edgetag: Run,
    street: Path,
    tmp_path: Path,
    option: str,
    suffix: str,
    magic: bytes,
    out: str,
    code: int,
    sentence: str,
) -> None:
    """And a folder with a picture's name is a folder all the same."""
    (tmp_path / f"folder.{suffix}").mkdir()
    before = street.read_bytes()
    done = edgetag("street.wav", option, out.format(suffix))
    if code:
        refused(done, code, option, sentence)
        assert done.stdout == ""
    else:
        assert left(tmp_path / f"folder.{suffix}") == {f"street.{suffix}"}
    assert street.read_bytes() == before


@each_option
def test_processes_and_clusters_do_not_draw(
    edgetag: Run, street: Path, option: str, suffix: str, magic: bytes
) -> None:
    refused(edgetag("street.wav", "other.wav", option, "drawn", "--jobs", 2), 2, option, "--jobs")
    cluster = ["--cluster", "tcp://a:1", "--out", "o"]
    refused(edgetag("street.wav", option, "drawn", *cluster), 2, option, "--cluster")


def test_without_matplotlib_one_sentence_names_the_command(edgetag: Run, street: Path) -> None:
    refused(edgetag(street, "--plot", "a.png", without="matplotlib"), 2, "pip install 'edgetag[plot]'")
    assert edgetag(street, "--html", "a.html", without="matplotlib").returncode == 0


@each_option
def test_a_recording_without_a_window_leaves_no_picture_and_the_others_get_theirs(
    edgetag: Run, street: Path, tmp_path: Path, option: str, suffix: str, magic: bytes
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    refused(edgetag("broken.wav", "street.wav", option, "drawn"), 2, "broken.wav")
    assert left(tmp_path / "drawn") == {f"street.{suffix}"}


@pytest.mark.parametrize(("option", "suffix", "magic"), OPTIONS[1:])
def test_what_was_heard_until_ctrl_c_is_drawn(
    bundle: Path, street: Path, tmp_path: Path, option: str, suffix: str, magic: bytes
) -> None:
    drawn = (option, f"a.{suffix}", "--format", "json")
    code, stderr = interrupted("replay", "--realtime", "street.wav", "--bundle", bundle, *drawn, cwd=tmp_path)
    assert (code, "Traceback" in stderr) == (130, False)
    assert left(tmp_path) == {f"a.{suffix}"}
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(magic)


@each_option
def test_a_full_disk_leaves_what_was_there(
    bundle: Path, street: Path, tmp_path: Path, option: str, suffix: str, magic: bytes
) -> None:
    """A picture that cannot be written whole takes nobody's place."""
    (tmp_path / f"a.{suffix}").write_text("before")
    replay = f"{sys.executable} -m edgetag replay street.wav --bundle {bundle} {option} a.{suffix}"
    command = ["bash", "-c", f"ulimit -f 8; exec {replay}"]  # blocks of 1024 bytes
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    refused(done, 5, f"a.{suffix} cannot be written")
    assert (tmp_path / f"a.{suffix}").read_text() == "before"
    assert left(tmp_path) == {f"a.{suffix}"}


def test_a_person_is_told_where_the_picture_is(bundle: Path, street: Path, tmp_path: Path) -> None:
    """On stderr, if that is a terminal."""
    terminal, end = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "edgetag",
        "replay",
        "street.wav",
        "--bundle",
        bundle,
        "--html",
        "a.html",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, stderr=end, timeout=60)
    os.close(end)
    said = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert said.splitlines()[-1].endswith("a.html written")
