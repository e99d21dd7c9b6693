"""Files: what they hold, and in one sentence that they cannot be written."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetag.contract.errors import OutputError
from edgetag.contract.manifest import File


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Write below `where`.

    Raises:
        OutputError: the disk is full, or there is no writing there.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{error.filename or where} cannot be written ({reason})") from error


def sha256_of(path: Path) -> str:
    """Of a file's content, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_entry(path: Path) -> File:
    """A file as a manifest beside it states it: name, length and hash."""
    return File(path.name, path.stat().st_size, sha256_of(path))
