"""What is written for others to read: in one sentence, where it cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetag.contract.errors import OutputError


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
