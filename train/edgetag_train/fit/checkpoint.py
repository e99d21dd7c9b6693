"""States on disk: written whole or not at all, and read without running anything that they hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from edgetag.contract.errors import InputError, OutputError, first_line
from edgetag_train.files import writing


def save(state: Mapping[str, Any], path: Path) -> None:
    """
    Raises:
        OutputError: it cannot be written; what was there before still is.
    """
    unfinished = path.with_suffix(".tmp")
    try:
        with writing(path):
            torch.save(dict(state), unfinished)
            unfinished.replace(path)
    except RuntimeError as error:  # what torch makes of a full disk
        raise OutputError(f"{path} cannot be written; is the disk full? ({first_line(error)})") from error
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """The state, on the CPU.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is damaged.
    """
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged pickle makes it raise
        raise damaged(path, error) from error
    if not isinstance(state, dict):
        raise damaged(path, TypeError(f"a {type(state).__name__}, not a state"))
    return state


def damaged(path: Path, error: Exception) -> InputError:
    """What to say of a file that holds no state, or another net's."""
    return InputError(
        f"{path} is damaged ({first_line(error)}); remove it and run the same again "
        "(edgetag train fit … --resume)"
    )
