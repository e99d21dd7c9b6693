"""Where a bundle's files are: a folder or an archive (`edgetag bundle pack`)."""

import stat
from pathlib import Path
from typing import Protocol

from edgetag.contract.errors import BundleError
from edgetag.contract.manifest import MANIFEST_NAME


class Container(Protocol):
    """Files by plain name.

    path: what it was opened as, for messages.
    """

    path: Path

    def names(self) -> list[str]:
        """Every entry's name, sorted."""
        ...

    def read(self, name: str, limit: int) -> bytes:
        """A file's content, at most `limit` bytes and one more, so that a longer file shows.

        Raises:
            BundleError: there is no such plain file, or it cannot be read.
        """
        ...


class Folder(Container):
    """A bundle directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in self.path.iterdir())
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read ({error.strerror})") from error

    def read(self, name: str, limit: int) -> bytes:
        file = self.path / name
        try:
            mode = file.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise BundleError(f"{file} is a symbolic link; a bundle holds plain files only")
            if not stat.S_ISREG(mode):
                raise BundleError(f"{file} is no plain file; a bundle holds nothing else")
            with file.open("rb") as stream:
                return stream.read(limit + 1)
        except FileNotFoundError:
            hint = f"; is {self.path} a bundle?" if name == MANIFEST_NAME else ""
            raise BundleError(f"{file} is missing{hint}") from None
        except OSError as error:
            raise BundleError(f"{file} cannot be read ({error.strerror})") from error


def open_container(path: Path) -> Container:
    """A folder as it is, and any plain file as an archive."""
    return Folder(path)
