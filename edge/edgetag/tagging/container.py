"""Where a bundle's files are: a folder or an archive (`edgetag bundle pack`)."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from edgetag.contract.errors import BundleError
from edgetag.contract.manifest import MANIFEST_NAME
from edgetag.tagging.archive import ArchiveError, read_member, read_members


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


_REMEDY = "`edgetag train export` makes bundles, and the one that ships needs no path"


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
            return read_plain_file(file, limit)
        except FileNotFoundError:
            if name != MANIFEST_NAME:
                raise BundleError(f"{file} is missing") from None
            if not self.path.exists():
                raise BundleError(f"there is no bundle {self.path}; {_REMEDY}") from None
            raise BundleError(f"{file} is missing, so {self.path} is no bundle; {_REMEDY}") from None
        except NotPlainError as error:
            raise BundleError(f"{file} is {error}; a bundle holds plain files only") from None
        except OSError as error:
            raise BundleError(f"{file} cannot be read ({error.strerror})") from error


class Archive(Container):
    """A bundle packed by `edgetag bundle pack`; its directory is read and checked at once, its content when
    it is asked for.

    Raises:
        BundleError: it is not such an archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._stream() as stream:
            members = read_members(stream, os.fstat(stream.fileno()).st_size)
        self._members = {member.name: member for member in members}

    def names(self) -> list[str]:
        return sorted(self._members)

    def read(self, name: str, limit: int) -> bytes:
        if name not in self._members:
            raise BundleError(f"{self.path / name} is missing")
        with self._stream() as stream:
            return read_member(stream, self._members[name], limit)

    @contextmanager
    def _stream(self) -> Iterator[BinaryIO]:
        try:
            with open_plain_file(self.path, follow=True) as stream:
                yield stream
        except ArchiveError as error:
            raise BundleError(f"{self.path} {error}") from None
        except NotPlainError as error:
            raise BundleError(f"{self.path} is {error}, neither a bundle's folder nor its archive") from None
        except OSError as error:
            raise BundleError(f"{self.path} cannot be read ({error.strerror})") from error


def open_container(path: Path) -> Container:
    """A folder as it is, and any plain file as an archive.

    Raises:
        BundleError: a file that is no bundle's archive.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        is_folder = True  # reading its manifest says what is wrong
    return Folder(path) if is_folder else Archive(path)


class NotPlainError(ValueError):
    """What a directory entry is, where it is not a plain file."""


def read_plain_file(file: Path, limit: int, *, follow: bool = False) -> bytes:
    """A plain file's first `limit` bytes and one more; memory is taken for what is there, not for `limit`.

    Args:
        file: the file.
        limit: bytes.
        follow: whether the last part of the path may be a symbolic link.

    Raises:
        OSError: it is not there or cannot be read.
        NotPlainError: it is something else.
    """
    with open_plain_file(file, follow=follow) as stream:
        return stream.read(min(limit, os.fstat(stream.fileno()).st_size) + 1)


def open_plain_file(file: Path, *, follow: bool = False) -> BinaryIO:
    """A plain file for reading. A pipe or a device is refused, never waited for.

    Raises:
        OSError, NotPlainError: as for `read_plain_file`.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(file, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotPlainError("a symbolic link") from None
        if error.errno == errno.ENXIO:
            raise NotPlainError("a socket or a device") from None
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotPlainError("a folder" if stat.S_ISDIR(mode) else "a pipe or a device")
    return os.fdopen(descriptor, "rb")
