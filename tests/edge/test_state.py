"""Where a sensor's state is, and whose."""

import os
from pathlib import Path

import pytest

from edgetag.contract.errors import InputError
from edgetag.state import service_directory, state_directory


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"STATE_DIRECTORY": "/var/lib/edgetag:/var/lib/other"}, "/var/lib/edgetag"),
        ({"STATE_DIRECTORY": "/a", "XDG_STATE_HOME": "/b"}, "/a"),
        ({"STATE_DIRECTORY": "", "XDG_STATE_HOME": "/b"}, "/b/edgetag"),
        ({"XDG_STATE_HOME": "b"}, str(Path.home() / ".local/state/edgetag")),
        ({}, str(Path.home() / ".local/state/edgetag")),
    ],
)
def test_the_state_directory_is_the_first_that_is_named(environment: dict[str, str], folder: str) -> None:
    assert state_directory(environment) == Path(folder)


def test_root_does_not_take_its_own_for_an_installed_service_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What root put into its own would never be found; everybody else means their own."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(InputError, match=f"{tmp_path}, .* sudo systemd-run .* -p User=edgetag"):
        service_directory({}, tmp_path)
    given = {"STATE_DIRECTORY": str(tmp_path)}
    assert service_directory(given, tmp_path) == tmp_path
    assert service_directory({}, tmp_path / "no service") == state_directory({})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert service_directory({}, tmp_path) == state_directory({})
