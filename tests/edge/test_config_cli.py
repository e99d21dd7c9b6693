"""`edgetag config …` as its users run it: what is in force and why, what is wrong, what an editor needs."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
import msgspec
import pytest

from edgetag.config import Settings
from edgetag.contract.strict_yaml import load_yaml
from fakes_cli import ROOT_WITHOUT_RIGHTS, needs_root, refused, run_python

DEPLOYED = Path(__file__).parents[2] / "deploy" / "edgetag.yaml"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def edgetag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `edgetag config …` in the test's folder."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as here:
            for variable, value in environment.items():
                here.setenv(variable, value)
            return run_python("-m", "edgetag", "config", *arguments, state=tmp_path / "state", cwd=tmp_path)

    return run


def test_show_says_what_is_in_force_and_where_it_comes_from(edgetag: Run, tmp_path: Path) -> None:
    """As a configuration file; what is written, but default anyway, comes from nowhere."""
    (tmp_path / "edgetag.yaml").write_text(
        "runtime: {variant: int8, threads: 1}\n"
        "audio: {rate_hz: 48000}\n"
        "events: {tags: {5: {on: 0.6}}}\n"
        "mqtt: {user: sensor, password_file: password}\n"
    )
    (tmp_path / "password").write_text("hunter2\n")
    done = edgetag("show", "--config", "edgetag.yaml", EDGETAG_AUDIO_RATE_HZ="44100", EDGETAG_SHARED="x")
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        "  variant: int8  # edgetag.yaml\n  threads: 1\n",
        "  rate_hz: 44100  # EDGETAG_AUDIO_RATE_HZ\n",
        "  # edgetag.yaml\n  tags:\n    '5':\n      'on': 0.6\n",
        "  password_file: password  # edgetag.yaml\n",
    ):
        assert line in done.stdout
    assert "hunter2" not in done.stdout
    (tmp_path / "shown.yaml").write_text(done.stdout)
    again = edgetag("show", "--config", "shown.yaml")
    assert load_yaml(again.stdout.encode()) == load_yaml(done.stdout.encode())


def test_show_without_a_file_shows_the_defaults(edgetag: Run) -> None:
    """And the environment's."""
    shown = load_yaml(edgetag("show", EDGETAG_LEVEL_CALIBRATION_DB="94.2").stdout.encode())
    assert shown.pop("level") == {"calibration_db": 94.2}
    defaults = msgspec.to_builtins(Settings())
    assert shown == {section: keys for section, keys in defaults.items() if section != "level"}


def test_check_says_ok_in_one_line(edgetag: Run) -> None:
    """Of the file that ships, for example."""
    done = edgetag("check", DEPLOYED)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{DEPLOYED}: ok\n", "")


def test_check_says_one_sentence_a_fault(edgetag: Run, tmp_path: Path) -> None:
    """All of them, and nothing on stdout."""
    (tmp_path / "edgetag.yaml").write_text(
        "audio: {devise: x, rate_hz: 7}\nmqtt: {url: 'mqtt://u:hunter2@broker'}\n"
    )
    done = edgetag("check", "edgetag.yaml", EDGETAG_GATE_MIN_LAEQ="40")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "edgetag: edgetag.yaml: audio.devise is unknown; did you mean audio.device?",
        "edgetag: edgetag.yaml: audio.rate_hz is 7; expected null or a whole number from 4000 to 384000",
        "edgetag: edgetag.yaml: mqtt.url: a user and a password do not belong here; write mqtt.user, and "
        "mqtt.password_file for a file with the password (or mqtt.password_credential)",
        "edgetag: EDGETAG_GATE_MIN_LAEQ is unknown; did you mean EDGETAG_GATE_MIN_LAEQ_DB?",
    ]


def test_what_cannot_be_read_gets_one_sentence(edgetag: Run, tmp_path: Path) -> None:
    """From both, exit code 2."""
    (tmp_path / "edgetag.yaml").write_text("a: b: c")
    for command in (["check"], ["show", "--config"]):
        refused(edgetag(*command, "edgetag.yaml"), 2, "edgetag.yaml: line 1, column 5: mapping values")
        refused(edgetag(*command, "absent.yaml"), 2, "absent.yaml cannot be read (No such file or directory)")
    refused(edgetag("show", EDGETAG_LOG_LEVEL="loud"), 2, 'EDGETAG_LOG_LEVEL is "loud"; expected debug, ')


@needs_root
@pytest.mark.parametrize(
    "command", [["config", "check"], ["config", "show", "--config"], ["run", "--config"]]
)
def test_a_file_that_is_not_ours_to_read_gets_one_sentence(tmp_path: Path, command: list[str]) -> None:
    """Who may not read it, and what that takes; also where it is the folder that is closed."""
    folder = tmp_path / "etc"
    folder.mkdir()
    file = folder / "edgetag.yaml"
    file.touch(mode=0o600)
    for closed in file, folder:
        os.chown(closed, 65_534, 65_534)
        closed.chmod(0o700)
        done = run_python("-m", "edgetag", *command, file, state=tmp_path, under=ROOT_WITHOUT_RIGHTS)
        refused(
            done, 2, f"{file} cannot be read (Permission denied): root must be allowed to read it, and to"
        )
        os.chown(file, 0, 0)


def test_the_schema_is_one(edgetag: Run) -> None:
    """JSON Schema 2020-12, with a word on every section; it takes the file that ships."""
    schema = json.loads(edgetag("schema").stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(load_yaml(DEPLOYED.read_bytes()), schema)
    assert all(definition["description"] for definition in schema["$defs"].values())
