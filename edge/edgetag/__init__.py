"""edgetag tags urban sounds where they are heard.

`Tagger` is the public Python API; `edgetag --help` the command line.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetag.tagging.tagger import Tagger

__all__ = ["Tagger", "__version__"]

__version__ = version("edgetag")


def __getattr__(name: str) -> object:
    """`Tagger` is imported on first use, so that `edgetag --help` need not wait for onnxruntime."""
    if name == "Tagger":
        from edgetag.tagging.tagger import Tagger

        return Tagger
    raise AttributeError(f"module 'edgetag' has no attribute {name!r}")
