"""The optional local data folder: tests that need it skip with a reason where it is absent."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from certificates import Authority

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
settings.register_profile("edgetag", deadline=None)  # no test asserts a time
settings.load_profile("edgetag")

SHARED = Path(os.environ.get("EDGETAG_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A state directory of the tests' own: what is installed on this machine is left alone."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("state-home")
        patch.setenv("XDG_STATE_HOME", str(path))
        patch.delenv("STATE_DIRECTORY", raising=False)
        yield path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The local data folder: real recordings and reference values."""
    if not (SHARED / "golden" / "frontend_street.npz").is_file():
        pytest.skip(f"no local data folder at {SHARED} (EDGETAG_SHARED)")
    return SHARED


@pytest.fixture(scope="session")
def golden_front_end(shared: Path) -> dict[str, NDArray[np.generic]]:
    """A street recording with librosa's log-mel and the reference VGGish patches."""
    with np.load(shared / "golden" / "frontend_street.npz") as stored:
        return dict(stored)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who issues the certificates that are to be trusted."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who issues those that are not."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")
