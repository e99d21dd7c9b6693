"""Where edgetag keeps what it found out and was given: findings of `edgetag bench`, installed bundles."""

import os
from collections.abc import Mapping
from pathlib import Path

from edgetag.contract.errors import InputError

SERVICE = Path("/var/lib/edgetag")
"""The state directory of a service that `deploy/install.sh` has made."""


def state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """systemd's `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/edgetag`, else `~/.local/state/edgetag`.

    Where there is no home either, `SERVICE`. It need not exist yet.
    """
    if given := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    if (home := Path(environment.get("XDG_STATE_HOME", ""))).is_absolute():  # others are to be ignored
        return home / "edgetag"
    try:
        return Path.home() / ".local" / "state" / "edgetag"
    except RuntimeError:
        return SERVICE


def service_directory(environment: Mapping[str, str] = os.environ, folder: Path = SERVICE) -> Path:
    """`state_directory`, for what an installed service is to find there.

    Raises:
        InputError: root asks, who has a state directory of his own, and there is a service that has another.
    """
    if os.geteuid() == 0 and not environment.get("STATE_DIRECTORY") and folder.is_dir():
        raise InputError(
            f"root's state directory is not {folder}, that of the service that is installed here; run it as "
            "the service, on a file that everybody may read: "
            "sudo systemd-run --pipe --wait --quiet -p User=edgetag -p StateDirectory=edgetag edgetag …"
        )
    return state_directory(environment)


def nearest_existing(folder: Path) -> Path:
    """The folder, or the closest above it that is there already."""
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)
