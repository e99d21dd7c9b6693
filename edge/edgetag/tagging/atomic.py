"""A file that changes in one step: a loss of power leaves the old one or the new one."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(file: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes `file` when the block ends without an error.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    new = file.with_name(f".{secrets.token_hex(8)}")
    try:
        with new.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
