"""Fourier transforms of real rows, in the precision they come in: SciPy's, without the rest of SciPy.

`import scipy.fft` also imports SciPy's special functions, NumPy's Fortran compiler interface and some eighty
more modules: 17 MB and 0.19 s of a sensor's start for three functions of one extension. That extension,
pocketfft, is loaded by itself; where it is not where it was, SciPy is imported whole. NumPy's own transforms
take five times as long: they do not compute several rows at once.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

_NAME = "scipy.fft._pocketfft.pypocketfft"


def _load() -> ModuleType:
    """pocketfft, under its own name: whoever imports SciPy later finds it there."""
    scipy = importlib.util.find_spec("scipy")
    folders = scipy and scipy.submodule_search_locations
    files = [
        file for folder in folders or () for file in Path(folder).glob("fft/_pocketfft/pypocketfft.*.so")
    ]
    spec = importlib.util.spec_from_file_location(_NAME, files[0]) if len(files) == 1 else None
    if _NAME in sys.modules or spec is None or spec.loader is None:
        return importlib.import_module(_NAME)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[_NAME] = module
    return module


_pocketfft = _load()
_LAST_AXIS = (-1,)


def rfft(
    rows: NDArray[np.floating], out: NDArray[np.complexfloating] | None = None
) -> NDArray[np.complexfloating]:
    """Spectra of rows, not scaled; into `out`, if given.

    Shape: [..., n] float32 or float64 -> [..., n // 2 + 1] complex64 or complex128
    """
    spectra: NDArray[np.complexfloating] = _pocketfft.r2c(rows, _LAST_AXIS, True, 0, out)
    return spectra


def irfft(
    spectra: NDArray[np.complexfloating], n: int, out: NDArray[np.floating] | None = None
) -> NDArray[np.floating]:
    """Rows of n, of which `rfft` gives these spectra; into `out`, if given.

    Shape: [..., n // 2 + 1] complex64 or complex128 -> [..., n] float32 or float64
    """
    rows: NDArray[np.floating] = _pocketfft.c2r(spectra, _LAST_AXIS, n, False, 2, out)
    return rows


def fast_length(n: int) -> int:
    """The shortest length from n on whose transforms are fast."""
    return int(_pocketfft.good_size(n, True))
