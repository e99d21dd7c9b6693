"""edgetag tags urban sounds where they are heard.

`Tagger` is the public Python API; `edgetag --help` the command line.
"""

import os
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgetag.tagging.tagger import Tagger

__all__ = ["Tagger", "__version__"]

__version__ = version("edgetag")

# ONNX Runtime reads it when it is imported. Otherwise it keeps a database of events at home, and it knows a
# collector's address. A sensor sends nobody anything but its own messages.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def __getattr__(name: str) -> object:
    """`Tagger` is imported on first use, so that `edgetag --help` need not wait for onnxruntime."""
    if name == "Tagger":
        from edgetag.tagging.tagger import Tagger

        return globals().setdefault(name, Tagger)
    raise AttributeError(f"module 'edgetag' has no attribute {name!r}")
