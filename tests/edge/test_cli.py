"""`edgetag` as its users run it: processes, files, pipes, exit codes."""

import csv
import io
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from jsonschema import Draft202012Validator

from edgetag.contract.event import json_schema
from fakes_bundle import write_bundle
from fakes_cli import interrupted, refused

VALIDATOR = Draft202012Validator(json_schema("tags"))
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})


@pytest.fixture(scope="module")
def edgetag(bundle: Path) -> Run:
    """Run `edgetag replay … --bundle BUNDLE` in a process of its own."""

    def run(
        *arguments: object, stdin: bytes = b"", bundle: Path = bundle
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "edgetag", "replay", *map(str, arguments), "--bundle", str(bundle)]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)
        return subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


def noise(seconds: float, rate_hz: int = 44_100, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate_hz), channels)).astype(np.float32)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "street.wav"
    soundfile.write(path, noise(20), 44_100)
    return path


def test_json_lines(edgetag: Run, street: Path) -> None:
    """One valid event a line, nothing else on stdout, nothing on stderr."""
    done = edgetag(street)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert [event["seq"] for event in events] == [0, 1, 2]
    assert {event["source"] for event in events} == {str(street)}
    for event in events:
        VALIDATOR.validate(event)


def test_csv(edgetag: Run, street: Path) -> None:
    """A header and a row a window; columns named as the dataset names its tags."""
    rows = list(csv.DictReader(io.StringIO(edgetag(street, "--format", "csv").stdout)))
    assert [float(row["1_engine"]) for row in rows] == pytest.approx([0.9] * 3, abs=1e-3)
    assert rows[0]["refined"] == "1"


def test_table(edgetag: Run, street: Path) -> None:
    """For people: a header, and a row a window that names what was heard."""
    done = edgetag(street, "--format", "table")
    assert done.stdout.count("engine 90%") == 3
    assert "\x1b" not in done.stdout  # no terminal, no colours


def test_hop_and_start(edgetag: Run, street: Path) -> None:
    """`--hop` sets the grid, `--start` the first sample's time."""
    done = edgetag(street, "--hop", "2.5", "--start", "2026-11-22T10:00:00Z")
    starts = [json.loads(line)["start"][17:] for line in done.stdout.splitlines()]
    assert starts == ["00.000Z", "02.500Z", "05.000Z", "07.500Z", "10.000Z"]


def test_stdin(edgetag: Run, street: Path) -> None:
    """`-` reads a WAV from a pipe and hears the same as in the file."""
    piped, filed = edgetag("-", stdin=street.read_bytes()), edgetag(street)
    heard = [[json.loads(line)["level"] for line in done.stdout.splitlines()] for done in (piped, filed)]
    assert heard[0] == heard[1]


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_formats(edgetag: Run, tmp_path: Path, suffix: str) -> None:
    """Every format is heard, stereo and at 48 kHz as well."""
    soundfile.write(tmp_path / f"a.{suffix}", noise(12, 48_000, 2), 48_000)
    done = edgetag(tmp_path / f"a.{suffix}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["audio"]["rate_hz"] == 48_000


def test_eight_channels_at_192_khz(edgetag: Run, tmp_path: Path) -> None:
    """More than any street microphone delivers is heard, too."""
    soundfile.write(tmp_path / "a.wav", noise(10, 192_000, 8), 192_000)
    (line,) = edgetag(tmp_path / "a.wav").stdout.splitlines()
    assert json.loads(line)["audio"] == {"rate_hz": 192_000, "valid": 1.0, "overruns": 0, "clipped": 0.0}


def test_silence_is_said_to_be_silence(edgetag: Run, tmp_path: Path) -> None:
    """A bundle that hears an engine in everything does not hear one in nothing."""
    soundfile.write(tmp_path / "a.wav", np.zeros(441_000), 44_100)
    event = json.loads(edgetag(tmp_path / "a.wav").stdout)
    assert (event["verdict"], event["active"], event["coarse"]["1"]) == ("silent", [], 0.0)


def test_missing_file(edgetag: Run, tmp_path: Path) -> None:
    """Named, with nothing printed."""
    done = edgetag(tmp_path / "none.wav")
    refused(done, 2, "none.wav", "no such file")
    assert done.stdout == ""


def test_empty_and_false_files(edgetag: Run, tmp_path: Path) -> None:
    """An empty file and a text are no audio."""
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("hello " * 100)
    refused(edgetag(tmp_path / "empty.wav"), 2, "empty")
    refused(edgetag(tmp_path / "text.wav"), 2, "no audio")


def test_truncated_flac(edgetag: Run, tmp_path: Path) -> None:
    """What was decoded is tagged, the rest is reported."""
    soundfile.write(tmp_path / "a.flac", noise(30), 44_100)
    data = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data[: len(data) * 2 // 3])
    done = edgetag(tmp_path / "a.flac")
    refused(done, 2, "could be decoded")
    assert 2 <= len(done.stdout.splitlines()) <= 4


def test_nan_samples(edgetag: Run, tmp_path: Path) -> None:
    """They are lost audio: counted in `valid`, reported, the rest is tagged."""
    samples = noise(10)
    samples[1000:1441] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    done = edgetag(tmp_path / "a.wav")
    refused(done, 2, "441 samples are not finite")
    assert json.loads(done.stdout)["audio"]["valid"] == pytest.approx(0.999)


def test_nothing_but_nan(edgetag: Run, tmp_path: Path) -> None:
    """No window, and a sentence that says why."""
    soundfile.write(tmp_path / "a.wav", np.full(441_000, np.nan), 44_100, subtype="FLOAT")
    refused(edgetag(tmp_path / "a.wav"), 2, "441000 samples are not finite")


def test_short_files(edgetag: Run, tmp_path: Path) -> None:
    """9.5 s is a window of which `valid` says how much was audio; 3 s is reported."""
    soundfile.write(tmp_path / "long.wav", noise(9.5), 44_100)
    soundfile.write(tmp_path / "short.wav", noise(3), 44_100)
    event = json.loads(edgetag(tmp_path / "long.wav").stdout)
    assert (event["verdict"], event["audio"]["valid"]) == ("tagged", 0.95)
    refused(edgetag(tmp_path / "short.wav"), 2, "3.0 s of audio", "9.0 s")


def test_one_bad_file_does_not_stop_the_others(edgetag: Run, street: Path, tmp_path: Path) -> None:
    """Both good ones are tagged, numbered on; the exit code says that one failed."""
    done = edgetag(street, tmp_path / "none.wav", street)
    refused(done, 2, "none.wav")
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == list(range(6))


def test_a_damaged_bundle(edgetag: Run, street: Path, bundle: Path, tmp_path: Path) -> None:
    """A flipped byte, and no event is printed."""
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    net = bytearray((tmp_path / "root.onnx").read_bytes())
    net[100] ^= 1
    (tmp_path / "root.onnx").write_bytes(net)
    done = edgetag(street, bundle=tmp_path)
    refused(done, 3, "root.onnx", "damaged or was altered")
    assert done.stdout == ""


def test_no_bundle(edgetag: Run, street: Path, tmp_path: Path) -> None:
    """A directory that is none."""
    refused(edgetag(street, bundle=tmp_path / "nowhere"), 3, "there is no bundle")


def test_an_unreachable_broker(edgetag: Run, street: Path) -> None:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refused(edgetag(street, "--mqtt", f"mqtt://127.0.0.1:{port}"), 4, "127.0.0.1", "nothing listens")


@pytest.mark.parametrize("url", ["localhost", "http://localhost", "mqtt://", "mqtt://host:port", "mqtts://"])
def test_a_bad_url(edgetag: Run, street: Path, url: str) -> None:
    """Usage, not network."""
    refused(edgetag(street, "--mqtt", url), 2, "mqtt://")


def test_a_password_is_never_repeated(edgetag: Run, street: Path) -> None:
    """Not in any message, whatever is wrong with the URL."""
    for url in ("mqtt://me:s3cret@host:port", "http://me:s3cret@host", "mqtt://me:s3cret@127.0.0.1:1"):
        done = edgetag(street, "--mqtt", url)
        assert done.returncode in (2, 4)
        assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("hop", ["0", "-5", "nan"])
def test_a_bad_hop(edgetag: Run, street: Path, hop: str) -> None:
    """A hop goes forward."""
    refused(edgetag(street, "--hop", hop), 2, "hop")


def test_a_reader_that_has_enough(street: Path, bundle: Path) -> None:
    """`edgetag replay … | head -1` ends quietly."""
    command = f"{sys.executable} -m edgetag replay {street} {street} --bundle {bundle} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.splitlines()) == 1


def test_neither_torch_nor_librosa_is_loaded(street: Path, bundle: Path) -> None:
    """A fresh interpreter that replays holds none of the trainer's libraries, nor what it need not have."""
    program = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from edgetag.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*sorted(sys.modules), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, "edgetag", "replay", str(street), "--bundle", str(bundle)]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())
    assert "onnxruntime" in loaded
    assert not loaded & {
        "torch",
        "librosa",
        "pandas",
        "onnx",
        "sklearn",
        "sounddevice",
        "paho.mqtt.client",
        "amqtt",
        "distributed",
        "multiprocessing.spawn",
    }
    assert not {name for name in loaded if name.startswith("edgetag_train.") and name != "edgetag_train.cli"}


def test_help_names_every_command_and_exit_code() -> None:
    """`edgetag --help` reads like a table of contents."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetag", "--help"], capture_output=True, text=True, check=True
    )
    for word in ("replay", "demo", "train", "Exit codes"):
        assert word in done.stdout


def test_version() -> None:
    """`edgetag --version` says which."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetag", "--version"], capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"edgetag \d+\.\d+\.\d+\n", done.stdout)


@pytest.mark.parametrize("arguments", [["replay"], ["replay", "--colour", "x.wav"], ["sing"]])
def test_usage_errors(arguments: list[str]) -> None:
    """Exit code 2, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "edgetag", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["json", "csv", "table"])
def test_a_full_disk(street: Path, bundle: Path, form: str) -> None:
    """Events that cannot be written are an error of their own, told once."""
    command = [
        sys.executable,
        "-m",
        "edgetag",
        "replay",
        str(street),
        "--bundle",
        str(bundle),
        "--format",
        form,
    ]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    refused(done, 5, "stdout", "No space left")


def test_a_closed_stdin(bundle: Path) -> None:
    """`edgetag replay - <&-` says what is missing."""
    command = f"{sys.executable} -m edgetag replay - --bundle {bundle} <&-"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    refused(done, 2, "standard input is closed")


@pytest.mark.parametrize(
    "arguments", [["--sensor", "a/b"], ["--prefix", "a/#"], ["--start", "9999-12-31T23:59:59Z"]]
)
def test_names_and_times_that_no_event_can_carry(edgetag: Run, street: Path, arguments: list[str]) -> None:
    """Refused before anything is tagged, with or without a broker."""
    done = edgetag(street, *arguments)
    refused(done, 2)
    assert done.stdout == ""


def test_a_file_name_that_is_no_utf_8(edgetag: Run, street: Path, tmp_path: Path) -> None:
    """It is tagged; its name is written as well as it can be."""
    odd = Path(str(tmp_path)) / "stra\udcdfe.wav"
    odd.write_bytes(street.read_bytes())
    done = edgetag(odd)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["source"].endswith("stra\ufffde.wav")


def test_recordings_follow_each_other_from_the_start_given(edgetag: Run, street: Path) -> None:
    """The second begins where the first ended: no two windows claim one time."""
    done = edgetag(street, street, "--hop", "10", "--start", "2026-11-22T10:00:00Z")
    assert [json.loads(line)["start"][14:19] for line in done.stdout.splitlines()] == [
        "00:00",
        "00:10",
        "00:20",
        "00:30",
    ]


def test_a_recording_of_next_to_nothing_is_reported(edgetag: Run, tmp_path: Path) -> None:
    """Three frames at 384 kHz are not one sample at 44.1."""
    soundfile.write(tmp_path / "a.wav", noise(1)[:3], 384_000)
    refused(edgetag(tmp_path / "a.wav"), 2, "0.0 s of audio")


def test_ctrl_c(street: Path, bundle: Path) -> None:
    """130, quietly."""
    code, stderr = interrupted("replay", "--realtime", street, "--bundle", bundle)  # after the first window
    assert (code, "Traceback" in stderr) == (130, False)
