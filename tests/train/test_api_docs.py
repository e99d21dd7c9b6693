"""The API's pages are made of docstrings that pdoc reads without a warning."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

from api_docs import PACKAGES


def test_every_module_has_a_page(tmp_path: Path) -> None:
    """In a process of its own: it imports all there is."""
    script = Path(__file__).parents[1] / "api_docs.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    pages = {page.relative_to(tmp_path).with_suffix("").as_posix() for page in tmp_path.rglob("*.html")}
    for package in map(importlib.import_module, PACKAGES):
        for _, name, _ in pkgutil.iter_modules(package.__path__):
            assert name == "__main__" or f"{package.__name__}/{name}" in pages
    assert "public Python API" in (tmp_path / "edgetag.html").read_text("utf-8")
    assert "start_utc_s" in (tmp_path / "edgetag.html").read_text("utf-8"), "Tagger's own documentation"
