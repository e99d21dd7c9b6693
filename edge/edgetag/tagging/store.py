"""The bundles a sensor keeps: the one that hears, and the last good one before it.

```
<state>/bundles/
  starter-0123456789ab/    bundle.yaml, nets, golden.npz
  starter-ba9876543210/
  current  -> starter-ba9876543210
  previous -> starter-0123456789ab
```

A bundle is copied in, checked whole where it will be read from, and only then pointed at; each pointer is
replaced in one step, so that a loss of power leaves the old or the new one, never half of it.
"""

import fcntl
import filecmp
import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetag.contract.errors import BundleError, InputError, OutputError
from edgetag.contract.manifest import MANIFEST_NAME
from edgetag.tagging.bundle import read_manifest, starter_path
from edgetag.tagging.container import open_container
from edgetag.tagging.packing import contents, signature_of
from edgetag.tagging.tagger import Tagger

CURRENT, PREVIOUS = "current", "previous"
_OPEN, _READABLE = 0o755, 0o644  # installed by root with whatever umask, read by the service


class BundleStore:
    """Bundles below `root`, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def current(self) -> Path | None:
        """The folder of the bundle that is to hear; None where none was installed.

        Raises:
            BundleError: it cannot be known.
        """
        return self._target(CURRENT)

    def current_or_starter(self) -> Path:
        """The folder of the bundle that is to hear: the one that ships, where none was installed.

        Raises:
            BundleError: it cannot be known.
        """
        return self.current() or starter_path()

    def previous(self) -> Path | None:
        """The folder of the bundle that heard before; None where there was none.

        Raises:
            BundleError: it cannot be known.
        """
        return self._target(PREVIOUS)

    def install(self, source: Path, public_key: Path | None = None) -> Path:
        """Copy a bundle in, check every variant of it, and make it the one that hears next.

        Args:
            source: a bundle folder or archive.
            public_key: whose signature it must bear.

        Returns:
            Its folder in the store.

        Raises:
            BundleError: it does not pass; nothing has changed.
            OutputError: the store cannot be written.
        """
        with self._changing():
            incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self.root))
            incoming.chmod(_OPEN)
            try:
                name = _copy(source, incoming, public_key)
                _check(incoming, public_key)
                before = self.current()
                if before is not None and _same(before, incoming):
                    return before
                is_other = before is None or not _same(before, incoming, MANIFEST_NAME)
                folder = self._free(name)
                incoming.rename(folder)
            finally:
                shutil.rmtree(incoming, ignore_errors=True)
            if is_other and before is not None and _passes(before):  # else it is nothing to go back to
                self._point(PREVIOUS, before)
            self._point(CURRENT, folder)
            self._forget_others()
            return folder

    def rollback(self, public_key: Path | None = None) -> Path:
        """Make the bundle before the current one hear next; the current one becomes the one before.

        Returns:
            Its folder in the store.

        Raises:
            InputError: there is none.
            BundleError: it does not pass its checks any more; nothing has changed.
            OutputError: the store cannot be written.
        """
        with self._changing():
            before, folder = self.current(), self.previous()
            if folder is None:
                raise InputError(f"{self.root} keeps no earlier bundle to go back to")
            _check(folder, public_key)
            self._point(CURRENT, folder)
            self._point(PREVIOUS, before)
            return folder

    def _target(self, pointer: str) -> Path | None:
        try:
            return self.root / (self.root / pointer).readlink().name
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BundleError(f"{self.root / pointer} cannot be read as a link ({error.strerror})") from error

    def _point(self, pointer: str, folder: Path | None) -> None:
        """Replace a pointer in one step; None removes it."""
        if folder is None:
            (self.root / pointer).unlink(missing_ok=True)
            return
        new = self.root / f".{pointer}"
        new.unlink(missing_ok=True)
        new.symlink_to(folder.name)
        new.replace(self.root / pointer)
        _sync(self.root)

    def _free(self, name: str) -> Path:
        names = (name if n == 0 else f"{name}.{n}" for n in itertools.count())
        return next(folder for n in names if not (folder := self.root / n).exists())

    def _forget_others(self) -> None:
        kept = {self.current(), self.previous()}
        for folder in self.root.iterdir():
            if folder.is_dir() and not folder.is_symlink() and folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, by whatever process."""
        try:
            if not self.root.exists():
                self.root.mkdir(parents=True, exist_ok=True)
                self.root.chmod(_OPEN)
            with (self.root / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            where = error.filename or self.root
            raise OutputError(f"{where} cannot be written ({error.strerror or error})") from error


def store_in(state: Path) -> BundleStore:
    """The store of a state directory."""
    return BundleStore(state / "bundles")


def _copy(source: Path, folder: Path, public_key: Path | None) -> str:
    """Copy a bundle's own files and no others; what to call its folder."""
    container = open_container(source)
    text, manifest = read_manifest(container, public_key)
    for name, content in contents(container, text, manifest, signature_of(container)):
        _write(folder / name, content)
    _sync(folder)
    return f"{manifest.name}-{hashlib.sha256(text).hexdigest()[:12]}"


def _same(one: Path, other: Path, *names: str) -> bool:
    """Whether two folders hold the same files, byte for byte; of all of them, if no names are given."""
    if not names:
        names = tuple(sorted(file.name for file in other.iterdir()))
        try:
            if list(names) != sorted(file.name for file in one.iterdir()):
                return False
        except OSError:  # a pointer to nowhere
            return False
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == list(names)


def _check(folder: Path, public_key: Path | None = None) -> None:
    """Load every variant, each with its self-test."""
    for variant in read_manifest(open_container(folder), public_key)[1].variants:
        Tagger.load(folder, variant, public_key=public_key)


def _passes(folder: Path) -> bool:
    try:
        _check(folder)
    except BundleError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        os.fchmod(file.fileno(), _READABLE)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make what a folder lists survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
