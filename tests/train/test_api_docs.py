"""The API's pages are made of docstrings that pdoc reads without a warning."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("package", "word"),
    [("edgetag", "start_utc_s"), pytest.param("edgetag_train", "recordings", marks=pytest.mark.system)],
)
def test_every_module_has_a_page(tmp_path: Path, package: str, word: str) -> None:
    """In a process of its own: it imports all there is."""
    script = Path(__file__).parents[1] / "api_docs.py"
    command = [sys.executable, script, tmp_path, package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page.relative_to(tmp_path).with_suffix("").as_posix() for page in tmp_path.rglob("*.html")}
    for _, name, _ in pkgutil.iter_modules(importlib.import_module(package).__path__):
        assert name == "__main__" or f"{package}/{name}" in pages
    assert word in (tmp_path / f"{package}.html").read_text("utf-8")
