"""The README's commands are run as they stand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from edgetag.tagging.store import BundleStore
from fakes_bundle import write_bundle
from fakes_cli import run_python

README = Path(__file__).parents[2] / "README.md"


def commands(heading: str) -> list[list[str]]:
    """The `edgetag …` lines of the shell blocks under a heading, without their comments."""
    section = README.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", section, re.S)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line[:1] == ["edgetag"]]


def test_bundles(tmp_path: Path) -> None:
    """From the card to the signed archive, onto the sensor and back, and which variant is faster."""
    pytest.importorskip("cryptography")
    write_bundle(tmp_path / "my-bundle", [0.2] * 37)
    BundleStore(tmp_path / "state" / "bundles").install(write_bundle(tmp_path / "earlier", [0.1] * 37))
    found = commands("Bundles")
    assert {line[2] for line in found if line[1] == "bundle"} == {
        *("inspect", "verify", "pack", "keygen", "sign", "install", "rollback")
    }
    for line in found:
        done = run_python("-m", *line, state=tmp_path / "state", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), line
        assert done.stdout


def test_configuration(tmp_path: Path) -> None:
    """The shipped file passes its own check, and is shown."""
    shutil.copy(README.parent / "deploy" / "edgetag.yaml", tmp_path)
    found = [line for line in commands("Listen") if line[1] == "config"]
    assert [line[1:3] for line in found] == [["config", "show"], ["config", "check"], ["config", "schema"]]
    for line in found:
        done = run_python("-m", *line, state=tmp_path / "state", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), line
        assert done.stdout
