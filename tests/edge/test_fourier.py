"""Fourier transforms: SciPy's, to the bit, without SciPy."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import scipy.fft
from hypothesis import given
from hypothesis import strategies as st

from edgetag.dsp import fourier

DTYPES = st.sampled_from([np.float32, np.float64])


def rows(n_rows: int, n: int, dtype: type) -> np.ndarray:
    return np.random.default_rng(n).normal(0, 1, (n_rows, n)).astype(dtype)


@given(st.integers(1, 9), st.integers(2, 700), DTYPES)
def test_spectra_are_scipys(n_rows: int, n: int, dtype: type) -> None:
    """To the bit and in the same precision, however many rows there are."""
    signal = rows(n_rows, n, dtype)
    spectra = fourier.rfft(signal)
    np.testing.assert_array_equal(spectra, scipy.fft.rfft(signal), strict=True)
    np.testing.assert_array_equal(fourier.irfft(spectra, n), scipy.fft.irfft(spectra, n), strict=True)


@given(st.integers(1, 5), st.integers(2, 300), DTYPES)
def test_results_go_where_they_are_told(n_rows: int, n: int, dtype: type) -> None:
    signal = rows(n_rows, n, dtype)
    spectra = np.empty((n_rows, n // 2 + 1), np.result_type(dtype, np.complex64))
    back = np.empty_like(signal)
    assert fourier.rfft(signal, out=spectra) is spectra
    assert fourier.irfft(spectra, n, out=back) is back
    np.testing.assert_allclose(back, signal, atol=1e-5)


@given(st.integers(1, 100_000))
def test_fast_lengths_are_scipys(n: int) -> None:
    assert fourier.fast_length(n) == scipy.fft.next_fast_len(n, real=True)


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_tagger_does_not_import_scipy() -> None:
    """Which is what it costs; whoever imports it afterwards has the same functions."""
    said = python(
        "import sys, edgetag; edgetag.Tagger.load(); print([m for m in sys.modules if m == 'scipy'])\n"
        "import numpy as np, scipy.fft; print(scipy.fft.rfft(np.ones(4)).real)"
    )
    assert said.splitlines() == ["[]", "[4. 0. 0.]"]


def test_where_the_extension_is_not_found_scipy_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert fourier._load().r2c is not None
