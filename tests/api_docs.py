"""The API's pages, from its docstrings; a docstring that pdoc cannot read ends it.

python tests/api_docs.py FOLDER [PACKAGE…]
"""

import importlib
import pkgutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import pdoc
import pdoc.render

PACKAGES = ("edgetag", "edgetag_train")


def specifications(packages: Sequence[str]) -> Iterator[str]:
    """The packages, and by name what pdoc leaves out: modules of a package that states `__all__`."""
    for package in map(importlib.import_module, packages):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            parent, _, name = found.name.rpartition(".")
            stated = getattr(sys.modules[parent], "__all__", None)
            if stated is not None and name not in stated and name != "__main__":
                yield found.name


def build(folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Write a page a module.

    Raises:
        UserWarning: of a docstring, an annotation or a name in `__all__` that cannot be read.
    """
    import edgetag

    assert edgetag.Tagger  # imported on first use
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.render.configure(docformat="google", footer_text=f"edgetag {edgetag.__version__}")
        pdoc.pdoc(*specifications(packages), output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2:] or PACKAGES)
