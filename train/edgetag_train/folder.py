"""A folder that is written whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetag.contract.errors import InputError
from edgetag_train.files import writing


def check_room(out: Path, kind: str, manifest: str, is_ours: Callable[[str], bool]) -> None:
    """Whether `out` may be written: it is absent, empty, or holds an older one of its kind and nothing else.

    Args:
        kind: what it is a folder of, for messages.
        manifest: the file by which one is known.
        is_ours: whether one may hold a file of this name.

    Raises:
        InputError: it holds something else.
        OutputError: it is no folder.
    """
    with writing(out):
        names = sorted(file.name for file in out.iterdir()) if out.exists() else []
    if strangers := [name for name in names if not is_ours(name)]:
        raise InputError(f"{out} holds {strangers[0]}, which no {kind} does; choose an empty folder")
    if names and manifest not in names:
        raise InputError(f"{out} is not empty and holds no {kind}; choose an empty folder")


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which takes its place if all goes well. If not, `out` is what it was.

    Raises:
        OutputError: there is no writing there.
    """
    with writing(out):
        target = out.resolve()
        new, old = (target.with_name(f".{target.name}.{os.getpid()}.{age}") for age in ("new", "old"))
        new.mkdir(parents=True)
        try:
            yield new
            _exchange(new, target, old)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _exchange(new: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
