"""CONTRIBUTING.md's map of the house is true: every room is on it, the layers are those that lint checks."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
HOUSE, LAYERS = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)


def on_the_map(part: str) -> list[str]:
    """The names that begin the indented lines under a part of the house."""
    lines = HOUSE.partition(f"{part}\n")[2].splitlines()
    indented = [line for line in lines[: next(k for k, line in enumerate(lines) if line[0] != " ")] if line]
    return [name for line in indented for name in re.split(r"\s{2,}", line.strip())[0].split(", ")]


@pytest.mark.parametrize("part", ["edge/edgetag", "train/edgetag_train"])
def test_every_room_is_on_the_map(part: str) -> None:
    """Each package, each module beside them and each folder of data, once; and nothing that is not there."""
    there = [
        path.stem
        for path in (ROOT / part).iterdir()
        if (path.suffix == ".py" and not path.stem.startswith("__"))
        or (path.is_dir() and any(file.suffix in {".py", ".yaml"} for file in path.iterdir()))
    ]
    bundles = {"bundles"} if part.startswith("edge") else set()  # the starter's folder: no room
    assert sorted(on_the_map(part)) == sorted(set(there) - bundles)


def test_the_layers_are_those_that_lint_checks() -> None:
    """
    run_cli | watch_cli         above
    delivery | tagging          below, beside each other
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    stated = project["tool"]["importlinter"]["contracts"][0]["layers"]
    assert LAYERS.split("\n")[:-1] == [layer.replace("edgetag.", "") for layer in stated]


def test_what_it_names_is_there() -> None:
    """Files and `make` targets."""
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`?make ([a-z-]+)", TEXT)
    assert named
    assert set(named) <= set(targets)
    for path in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"`([a-z_]+/[a-z_]+\.py)`", TEXT):
        assert any((ROOT / room / path).exists() for room in (".", "edge/edgetag", "train/edgetag_train")), (
            path
        )
