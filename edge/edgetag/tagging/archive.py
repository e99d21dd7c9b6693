"""A bundle as one file: a ZIP archive that is the same byte for byte wherever it was packed.

Any tool lists and unpacks it. Members are stored, since compressed bytes depend on the zlib that made them;
they have no time, owner or mode of their own; `bundle.yaml` and its signature come first, the others follow
by name. There is one way to write such an archive, and the reader accepts no other: it rebuilds every header
from name, length and CRC and compares. So no member can overlap another, hide between two, inflate, be a
link, or mean one thing to this reader and another to the next.
"""

import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from edgetag.contract.manifest import (
    MANIFEST_NAME,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    PLAIN_NAME,
    SIGNATURE_BYTES,
    SIGNATURE_NAME,
)

MAX_MEMBERS = MAX_FILES + 2
MAX_ARCHIVE_BYTES = 2**32 - 1  # what ZIP can say without its 64-bit extension
MAX_NAME_BYTES = 255

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_VERSION = 20
_UNIX = 3 << 8
_DOS_DATE = 1 << 5 | 1  # 1980-01-01, the first that ZIP knows
_PLAIN = (stat.S_IFREG | 0o644) << 16
_ENCRYPTED = 1
_FOREIGN = (
    "was not written by `edgetag bundle pack`; unpack it with the tool that wrote it, and use the folder"
)


class ArchiveError(ValueError):
    """Why a file is not a bundle's archive, to follow its name in a sentence."""


@dataclass(frozen=True)
class Member:
    """A file inside an archive.

    Attributes:
        name: plain, in ASCII.
        size: bytes.
        crc: CRC-32 of its content.
        offset: where its local header is, in bytes from the archive's beginning.
    """

    name: str
    size: int
    crc: int
    offset: int

    @property
    def start(self) -> int:
        """Where its content begins, in bytes."""
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        """Where its content ends, in bytes: the next member begins there."""
        return self.start + self.size

    def local_header(self) -> bytes:
        name = self.name.encode("ascii")
        sizes = (self.crc, self.size, self.size, len(name), 0)
        return _LOCAL.pack(b"PK\3\4", _VERSION, 0, 0, 0, _DOS_DATE, *sizes) + name

    def central_header(self) -> bytes:
        name = self.name.encode("ascii")
        sizes = (self.crc, self.size, self.size, len(name), 0, 0, 0, 0, _PLAIN, self.offset)
        return _CENTRAL.pack(b"PK\1\2", _UNIX | _VERSION, _VERSION, 0, 0, 0, _DOS_DATE, *sizes) + name


def packing_order(names: Sequence[str]) -> list[str]:
    """The order of an archive's members.

    >>> packing_order(["root.onnx", "bundle.yaml.sig", "a.onnx", "bundle.yaml"])
    ['bundle.yaml', 'bundle.yaml.sig', 'a.onnx', 'root.onnx']
    """
    return sorted(names, key=lambda name: (name not in (MANIFEST_NAME, SIGNATURE_NAME), name))


class ArchiveWriter:
    """Writes members, which must come in packing order, to a stream at its beginning; `finish` ends it.

    Raises:
        ArchiveError: it would be larger than such an archive can be.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._members: list[Member] = []

    def add(self, name: str, content: bytes) -> None:
        member = Member(name, len(content), zlib.crc32(content), self._end)
        if member.end > MAX_ARCHIVE_BYTES:
            raise ArchiveError(f"would be longer than the {MAX_ARCHIVE_BYTES} bytes of an archive")
        self._members.append(member)
        self._stream.write(member.local_header())
        self._stream.write(content)

    def finish(self) -> None:
        directory = b"".join(member.central_header() for member in self._members)
        if self._end + len(directory) + _END.size > MAX_ARCHIVE_BYTES:
            raise ArchiveError(f"would be longer than the {MAX_ARCHIVE_BYTES} bytes of an archive")
        self._stream.write(directory + _end_record(len(self._members), len(directory), self._end))

    @property
    def _end(self) -> int:
        return self._members[-1].end if self._members else 0


def read_members(stream: BinaryIO, size: int) -> list[Member]:
    """The members of an archive of `size` bytes. Their content is not read.

    Raises:
        ArchiveError: it is not an archive as `ArchiveWriter` writes it.
        OSError: it cannot be read.
    """
    if not _at(stream, 0, 4) == b"PK\3\4":
        raise ArchiveError("is no archive of a bundle")
    if size > MAX_ARCHIVE_BYTES:
        raise ArchiveError(f"is longer than the {MAX_ARCHIVE_BYTES} bytes an archive may have")
    end = _at(stream, max(0, size - _END.size), _END.size)
    if len(end) < _END.size or not end.startswith(b"PK\5\6"):
        raise ArchiveError("is truncated, or goes on behind its end")
    _, _, _, _, n_members, directory_size, directory_offset, _ = _END.unpack(end)
    if not 0 < n_members <= MAX_MEMBERS:
        raise ArchiveError(f"has {n_members} members; a bundle has at most {MAX_MEMBERS}")
    if directory_offset + directory_size + _END.size != size:
        raise ArchiveError("is truncated, or goes on behind its end")
    if directory_size > MAX_MEMBERS * (_CENTRAL.size + MAX_NAME_BYTES):
        raise ArchiveError("has a directory that is none of a bundle's")
    directory = _at(stream, directory_offset, directory_size)
    members = list(_entries(directory, n_members))
    headers = b"".join(member.central_header() for member in members)
    if directory + end != headers + _end_record(n_members, directory_size, directory_offset):
        raise ArchiveError(_FOREIGN)
    names = [member.name for member in members]
    if len(set(names)) != len(names):
        raise ArchiveError("has two members of one name")
    if names != packing_order(names):
        raise ArchiveError(_FOREIGN)
    position = 0
    for member in members:
        if member.offset != position:
            raise ArchiveError(f"has members that overlap, or something between them, at {member.name!r}")
        header = member.local_header()
        if member.end > directory_offset or _at(stream, position, len(header)) != header:
            raise ArchiveError(f"contradicts itself about {member.name!r}: it is damaged or was altered")
        position = member.end
    if position != directory_offset:
        raise ArchiveError("has something between its members and its directory")
    return members


def read_member(stream: BinaryIO, member: Member, limit: int) -> bytes:
    """The first `limit` bytes of a member and one more; memory is taken for what is there.

    Raises:
        ArchiveError: the content is not what was packed.
        OSError: it cannot be read.
    """
    content = _at(stream, member.start, min(limit + 1, member.size))
    if len(content) < min(limit + 1, member.size):
        raise ArchiveError(f"is truncated in {member.name!r}")
    if len(content) == member.size and zlib.crc32(content) != member.crc:
        raise ArchiveError(f"is damaged: the content of {member.name!r} is not what was packed")
    return content


def _entries(directory: bytes, n_members: int) -> Iterator[Member]:
    position = 0
    for _ in range(n_members):
        header = directory[position : position + _CENTRAL.size]
        if len(header) < _CENTRAL.size or not header.startswith(b"PK\1\2"):
            raise ArchiveError("has a damaged directory")
        fields = _CENTRAL.unpack(header)
        flags, method, crc, packed_size, size, n_name, n_extra, n_comment = (*fields[3:5], *fields[7:13])
        after_name = position + _CENTRAL.size + n_name
        name = _checked_name(directory[position + _CENTRAL.size : after_name])
        if flags & _ENCRYPTED:
            raise ArchiveError(f"has an encrypted member, {name!r}")
        if method != 0 or packed_size != size:
            raise ArchiveError(f"has a compressed member, {name!r}; a bundle's are stored")
        _check_kind(name, fields[-2] >> 16)
        if size > (limit := _limit(name)):
            raise ArchiveError(f"states {size} bytes for {name!r}, which may have {limit}")
        yield Member(name, size, crc, fields[-1])
        position = after_name + n_extra + n_comment
    if position != len(directory):
        raise ArchiveError("has a damaged directory")


def _checked_name(raw: bytes) -> str:
    name = raw.decode("ascii", "backslashreplace")
    if not PLAIN_NAME.fullmatch(name):
        raise ArchiveError(f"has a member {name[:80]!r}, which is no plain file name")
    return name


def _check_kind(name: str, mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise ArchiveError(f"has a symbolic link, {name!r}; a bundle holds plain files only")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise ArchiveError(f"has a member that is no plain file, {name!r}")


def _limit(name: str) -> int:
    return {MANIFEST_NAME: MAX_MANIFEST_BYTES, SIGNATURE_NAME: SIGNATURE_BYTES}.get(name, MAX_FILE_BYTES)


def _end_record(n_members: int, directory_size: int, directory_offset: int) -> bytes:
    return _END.pack(b"PK\5\6", 0, 0, n_members, n_members, directory_size, directory_offset, 0)


def _at(stream: BinaryIO, position: int, size: int) -> bytes:
    stream.seek(position)
    return stream.read(size)
