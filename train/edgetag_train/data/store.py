"""Rows that were computed once and are kept on disk, found again by what they were computed from.

A store is the folder `<kind>-<hash of the parameters>/<hash of the items>`: `rows.npy`, `done.npy` (a byte
an item, written after its rows), `items.json`, and `made_from.json` for people. Rows are written to the file,
not through a memory map: on a full disk a map dies of SIGBUS, a write says what is wrong.
"""

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

log = structlog.get_logger("edgetag.train")
FORMAT = 1
"""Of rows and folders: with another number everything is computed anew."""
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def sha256(value: object) -> str:
    """Of a value's JSON, keys sorted."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


@dataclass(frozen=True, eq=False)
class Store:
    """`rows_per_item` rows for each item, in this order.

    Attributes:
        cache: the folder of all stores.
        kind: what a row is: `logmel`, `embedding`, `labels`.
        made_from: every parameter that a row depends on, besides its item.
        items: what each item is, by content; where two stores have an item in common, so have they its rows.
        rows_per_item: rows an item.
        row_shape: one row's shape.
        dtype: of the rows.
    """

    cache: Path
    kind: str
    made_from: Mapping[str, Any]
    items: Sequence[str]
    rows_per_item: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @cached_property
    def digest(self) -> str:
        """sha256 of all that the rows were made from."""
        return sha256([self._key, list(self.items)])

    @cached_property
    def _key(self) -> str:
        return sha256([FORMAT, self.kind, self.made_from])

    @cached_property
    def folder(self) -> Path:
        """Where it lies: by content and parameters, not by the recordings' places or dates."""
        return self.cache / f"{self.kind}-{self._key[:16]}" / sha256(list(self.items))[:16]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.items) * self.rows_per_item, *self.row_shape)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape)) * self.dtype.itemsize

    @property
    def n_bytes(self) -> int:
        """Size of all rows on the disk."""
        return self.shape[0] * self.row_bytes

    def rows(self) -> NDArray[Any]:
        """All rows, mapped from the disk, read-only."""
        return _mapped(self.folder / "rows.npy")

    def done(self) -> NDArray[np.bool_]:
        """Which items are there; none where there is no store yet, or a damaged one. Shape: [n_items]"""
        try:
            done: NDArray[np.bool_] = np.load(self.folder / "done.npy")
            sound = self.rows().shape == self.shape and done.shape == (len(self.items),)
        except (OSError, ValueError, EOFError):
            sound = False
        return done if sound else np.zeros(len(self.items), bool)

    def mark(self, done: NDArray[np.bool_]) -> None:
        """State which items are there, after their rows have reached the disk."""
        with (self.folder / "rows.npy").open("rb") as rows:
            os.fdatasync(rows.fileno())
        unfinished = self.folder / "done.tmp"
        with unfinished.open("wb") as file:
            np.save(file, done)
            file.flush()
            os.fdatasync(file.fileno())
        unfinished.replace(self.folder / "done.npy")

    def write(self, item: int, rows: NDArray[Any]) -> None:
        """Write an item's rows; from any process.

        Raises:
            OSError: the disk is full or gone.
        """
        data = memoryview(np.ascontiguousarray(rows, self.dtype)).cast("B")
        assert len(data) == self.rows_per_item * self.row_bytes
        with (self.folder / "rows.npy").open("r+b", buffering=0) as file:
            header_bytes = file.seek(0, os.SEEK_END) - self.n_bytes
            file.seek(header_bytes + item * len(data))
            while data:
                data = data[file.write(data) :]

    def reserve(self) -> NDArray[np.bool_]:
        """Make the store, with room for every row, unless it is there; tell which items it holds.

        Raises:
            OSError: there is no room for it, or the folder cannot be written; nothing is left of it then.
        """
        if (self.folder / "done.npy").exists() and (done := self.done()).any():
            return done
        try:
            self.remove()
            self.folder.mkdir(parents=True)
            _allocate(self.folder / "rows.npy", self.shape, self.dtype)
            for name, value in ("items.json", list(self.items)), ("made_from.json", self.made_from):
                (self.folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))
            done = self._taken_over()
            self.mark(done)
        except OSError:
            self.remove()
            raise
        return done

    def remove(self) -> None:
        """Delete it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _taken_over(self) -> NDArray[np.bool_]:
        """Copy what stores of the same kind and parameters have of the same items. Shape: [n_items]"""
        done = np.zeros(len(self.items), bool)
        for sibling in self.folder.parent.iterdir():
            if sibling != self.folder and not done.all():
                self._copy(sibling, done)
        return done

    def _copy(self, sibling: Path, done: NDArray[np.bool_]) -> None:
        try:
            items = msgspec.json.decode((sibling / "items.json").read_bytes(), type=list[str])
            theirs, rows = np.load(sibling / "done.npy"), _mapped(sibling / "rows.npy")
        except (OSError, ValueError, EOFError):
            return  # another process is just making it
        where = {item: k for k, item in enumerate(items) if theirs[k]}
        for k, item in enumerate(self.items):
            if not done[k] and item in where:
                start = where[item] * self.rows_per_item
                self.write(k, rows[start : start + self.rows_per_item])
                done[k] = True


@contextmanager
def locked(stores: Sequence[Store]) -> Iterator[None]:
    """Have the stores to oneself; wait, and say so, while another process has one of them."""
    files = []
    try:
        # Always in the same order: two processes that want the same two never wait for each other.
        for folder in sorted(store.folder for store in stores):
            folder.parent.mkdir(parents=True, exist_ok=True)
            files.append(file := folder.with_suffix(".lock").open("wb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process is computing the same features; waiting for it", store=str(folder))
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        for file in files:
            file.close()


def _mapped(path: Path) -> NDArray[Any]:
    rows: NDArray[Any] = np.load(path, mmap_mode="r")
    return rows


def _allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """A .npy file whose every block is there, so that no later write can find the disk full."""
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), 0, file.tell() + n_bytes)
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
            _grow(file, n_bytes)


def _grow(file: BinaryIO, n_bytes: int) -> None:
    """The best there is on a file system that cannot reserve blocks: look whether there are as many."""
    if shutil.disk_usage(file.name).free < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    file.truncate(file.tell() + n_bytes)
