"""Where pictures go: one recording's into a file, several into a folder, known to be writable beforehand."""

import secrets
from collections.abc import Sequence
from pathlib import Path

from edgetag.contract.errors import InputError, OutputError

MAX_STEM_BYTES = 200  # leaves room for a suffix in the 255 that a name may have


def places(option: str, out: str, files: Sequence[str], suffixes: Sequence[str]) -> dict[str, Path]:
    """Each recording's picture, by the recording's name; its folder is made if it is not there.

    Args:
        option: whose `out` it is, for the sentence.
        out: a file for one recording; else a folder, where pictures are called as recordings are.
        files: recordings; `-` is standard input.
        suffixes: that a file may have, in small letters; the first is a folder's pictures'.

    Raises:
        InputError: several recordings and one file, two recordings of one name, or another suffix.
        OutputError: it cannot be written there.
    """
    target = Path(out)
    n_files = len(set(files))
    is_folder = out.endswith("/") or _is_folder(option, target)
    has_suffix = target.suffix.lower() in suffixes
    if n_files > 1 and has_suffix and not is_folder:
        raise InputError(
            f"{option} {out} is one picture for {n_files} recordings; give a folder, as {target.stem}/"
        )
    if is_folder or n_files > 1:
        return _in_folder(option, target, files, suffixes[0])
    if not has_suffix:
        raise InputError(
            f"{option} {out} ends in none of {', '.join(suffixes)}; name such a file, or a folder/"
        )
    _try(option, target)
    return dict.fromkeys(files, target)


def _in_folder(option: str, folder: Path, files: Sequence[str], suffix: str) -> dict[str, Path]:
    """Pictures called as their recordings are."""
    found: dict[str, Path] = {}
    for file in dict.fromkeys(files):
        path = folder / f"{_stem(file)}{suffix}"
        if path in found.values():
            other = next(name for name, taken in found.items() if taken == path)
            raise InputError(f"{option}: {other} and {file} would both be {path}; draw them into two folders")
        found[file] = path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{option}: the folder {folder} cannot be made ({error.strerror})") from error
    _try(option, next(iter(found.values())))
    return found


def _stem(file: str) -> str:
    """Short enough for a name, whatever its recording's is."""
    stem = "stdin" if file == "-" else Path(file).stem
    return stem.encode("utf-8", "surrogateescape")[:MAX_STEM_BYTES].decode("utf-8", "surrogateescape")


def _try(option: str, path: Path) -> None:
    """Whether a file can be made there that then takes this name.

    Raises:
        OutputError: it cannot.
    """
    if _is_folder(option, path):
        raise OutputError(f"{option}: {path} is a folder")
    probe = path.with_name(f".{secrets.token_hex(8)}")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise unwritable(option, path, error) from error


def _is_folder(option: str, path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # a name that no file can have
        raise unwritable(option, path, error) from error


def unwritable(option: str, path: Path, error: OSError) -> OutputError:
    """What to say of a picture that cannot be written."""
    return OutputError(f"{option}: {path} cannot be written ({error.strerror or type(error).__name__})")
