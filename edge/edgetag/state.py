"""Where edgetag keeps what it found out and was given: findings of `edgetag bench`, installed bundles."""

import os
from collections.abc import Mapping
from pathlib import Path


def state_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """systemd's `$STATE_DIRECTORY`, else `$XDG_STATE_HOME/edgetag`, else `~/.local/state/edgetag`.

    Where there is no home either, `/var/lib/edgetag`. It need not exist yet.
    """
    if given := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given)
    if (home := Path(environment.get("XDG_STATE_HOME", ""))).is_absolute():  # others are to be ignored
        return home / "edgetag"
    try:
        return Path.home() / ".local" / "state" / "edgetag"
    except RuntimeError:
        return Path("/var/lib/edgetag")


def nearest_existing(folder: Path) -> Path:
    """The folder, or the closest above it that is there already."""
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)
