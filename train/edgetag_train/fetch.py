"""Public files into a folder: fetched or brought by hand, checked, archives extracted.

What the folder holds besides the files, so that a second run takes up where the first one ended:

```
NAME.part       what has come of a file so far
CHECKSUMS.txt   SHA-256 of the files of which none is published, as they first came (`sha256sum -c` reads it)
EXTRACTED.txt   the archives that need not be extracted again
```
"""

import gzip
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pooch
import requests
import structlog
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from edgetag.contract.errors import InputError, NetworkError, OutputError
from edgetag_train.published import Collection, PublishedFile

log = structlog.get_logger("edgetag.fetch")
CHECKSUMS_NAME = "CHECKSUMS.txt"
EXTRACTED_NAME = "EXTRACTED.txt"
ARCHIVE_SUFFIX = ".tar.gz"
TIMEOUT_S = 30
_CHUNK_BYTES = 1 << 14  # what a broken connection loses at most


def fetch(
    collection: Collection,
    folder: Path,
    *,
    only: Sequence[str] = (),
    brought: Sequence[Path] = (),
    keep_archives: bool = True,
    base_url: str | None = None,
) -> None:
    """Have a collection's files in a folder, each checked; those that are there and right are left alone.

    Args:
        collection: what to fetch.
        folder: where to; made if absent.
        only: names of the files to fetch, with or without what follows the first dot; all if empty.
        brought: files fetched by other means, or folders of such, taken by their names.
        keep_archives: keep what has been extracted.
        base_url: fetch from there instead of from the publisher.

    Raises:
        InputError: an unknown name, or a file that is not the published one.
        NetworkError: a file could not be fetched; what has come of it is kept and continued next time.
        OutputError: the folder cannot be written, e.g. the disk is full.
    """
    files = _chosen(collection, only)
    sources = _sources(brought, files)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            if file.name in sources and not _is_there(file, folder):
                _bring(sources[file.name], file, folder)
        for file in files:
            if not _is_there(file, folder):
                _fetch_one(f"{base_url or collection.base_url}{file.name}{collection.query}", file, folder)
            if file.name.endswith(ARCHIVE_SUFFIX) and not _was_extracted(file, folder):
                _extract(folder / file.name, folder)
                if not keep_archives:
                    (folder / file.name).unlink()


def _chosen(collection: Collection, only: Sequence[str]) -> list[PublishedFile]:
    if not only:
        return list(collection.files)
    for name in only:
        if not any(_is_named(file, name) for file in collection.files):
            names = ", ".join(file.name for file in collection.files)
            raise InputError(f"{name!r} is no file of {collection.title}; there are {names}")
    return [file for file in collection.files if any(_is_named(file, name) for name in only)]


def _is_named(file: PublishedFile, name: str) -> bool:
    return name in (file.name, file.name.partition(".")[0])


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise OutputError(
            f"{where}: {error.strerror or error}; what has been fetched is kept, run again to go on"
        ) from error


def _is_there(file: PublishedFile, folder: Path) -> bool:
    """Whether nothing need be fetched.

    Raises:
        InputError: a file of that name is there, but it is another one.
    """
    if _was_extracted(file, folder):
        return True
    path = folder / file.name
    if not path.exists():
        return False
    try:
        _verify(path, file, folder)
    except _WrongChecksumError as wrong:
        raise InputError(
            f"{path} {wrong}; it was left alone: move it away to have {file.name} fetched"
        ) from None
    return True


# -- checksums -----------------------------------------------------------------------------------------


class _WrongChecksumError(Exception):
    """Says what was found and what was expected."""


def _verify(path: Path, file: PublishedFile, folder: Path) -> None:
    """Compare a file with its published checksum, else with the one recorded at first, else record that.

    Raises:
        _WrongChecksumError: it has another.
    """
    recorded = _recorded(folder)
    checksum = file.checksum or recorded.get(file.name)
    if checksum is None:
        digest = pooch.file_hash(str(path), "sha256")
        with (folder / CHECKSUMS_NAME).open("a", encoding="utf-8") as checksums:
            checksums.write(f"{digest}  {file.name}\n")
        log.warning(
            "no checksum is published: recorded, to be compared from now on", file=file.name, sha256=digest
        )
        return
    algorithm, _, digits = checksum.partition(":")
    found = pooch.file_hash(str(path), algorithm)
    if not found.startswith(digits):
        by = "is published" if file.checksum else f"was recorded in {CHECKSUMS_NAME}"
        raise _WrongChecksumError(f"has {algorithm} {found}; {digits} {by}")


def _recorded(folder: Path) -> dict[str, str]:
    path = folder / CHECKSUMS_NAME
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch(r"[0-9a-f]{64}  \S.*", line):
            raise InputError(f"{path}: line {number} is no SHA-256 and file name: {line[:80]!r}")
    return {line[66:]: f"sha256:{line[:64]}" for line in lines}


# -- files brought by hand -------------------------------------------------------------------------------


def _sources(brought: Sequence[Path], files: Sequence[PublishedFile]) -> dict[str, Path]:
    """Where each wanted file has been brought. A folder may hold other files, too."""
    names = {file.name for file in files}
    sources: dict[str, Path] = {}
    for path in brought:
        if path.is_dir():
            sources |= {name: path / name for name in names if (path / name).is_file()}
        elif not path.is_file():
            raise InputError(f"there is no file {path}")
        elif path.name not in names:
            raise InputError(f"{path.name} is not among the files wanted: {', '.join(sorted(names))}")
        else:
            sources[path.name] = path
    return sources


def _bring(source: Path, file: PublishedFile, folder: Path) -> None:
    try:
        _verify(source, file, folder)
    except _WrongChecksumError as wrong:
        raise InputError(f"{source} {wrong}; it was not taken") from None
    copy = folder / f"{file.name}.copy"
    shutil.copyfile(source, copy)
    copy.rename(folder / file.name)
    log.info("taken", file=file.name, source=str(source))


# -- files from the network --------------------------------------------------------------------------------


def _fetch_one(url: str, file: PublishedFile, folder: Path) -> None:
    part = folder / f"{file.name}.part"
    _download(url, part, file.name)
    try:
        _verify(part, file, folder)
    except _WrongChecksumError as wrong:
        part.unlink()
        raise NetworkError(
            f"{url} gave a file that {wrong}; it was removed: run again, or bring the right one with --from"
        ) from None
    part.rename(folder / file.name)
    log.info("fetched", file=file.name, size=_megabytes(folder / file.name))


def _download(url: str, part: Path, name: str) -> None:
    """Fetch what is missing of a file, and go on after a broken connection as long as that brings more.

    Raises:
        NetworkError: nothing more has come.
    """
    whole = False
    while not whole:
        n_before = _n_bytes(part)
        try:
            _continue(url, part, name)
            whole = True
        except requests.RequestException as error:
            if n_before and _is_beyond_end(error):
                whole = n_before == _stated_size(error)
                if not whole:
                    part.unlink()
            elif _n_bytes(part) <= n_before:
                if not n_before:
                    part.unlink()
                raise NetworkError(
                    f"{url} cannot be fetched ({_reason(error)}); run again later to go on, or fetch it by "
                    f"other means and bring it with --from {name}"
                ) from error


def _continue(url: str, part: Path, name: str) -> None:
    n_before = _n_bytes(part)

    def check(response: requests.Response, **_: object) -> None:
        begins = response.status_code in (requests.codes.ok, requests.codes.partial)
        if begins and response.headers.get("Content-Type", "").startswith("text/html"):
            raise NetworkError(f"{url} gave a web page instead of {name}; see what it says in a browser")
        if n_before and response.status_code == requests.codes.ok:  # not "partial": from the beginning
            file.truncate(0)
            bar.begin_at(0)

    # The file as it is, not packed for the way: otherwise bytes here and bytes there would not be the same.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={n_before}-"} if n_before else {})
    with _bar(name, n_before) as bar:
        downloader = pooch.HTTPDownloader(
            bar, _CHUNK_BYTES, headers=headers, hooks={"response": check}, timeout=TIMEOUT_S
        )
        with part.open("ab") as file:
            downloader(url, file, None)


def _n_bytes(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _is_beyond_end(error: requests.RequestException) -> bool:
    status = requests.codes.requested_range_not_satisfiable
    return error.response is not None and error.response.status_code == status


def _stated_size(error: requests.RequestException) -> int | None:
    """The size of the whole file, from `Content-Range: bytes */SIZE` (RFC 9110, section 15.5.17)."""
    assert error.response is not None
    size = error.response.headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None


def _reason(error: requests.RequestException) -> str:
    match error:
        case requests.HTTPError(response=requests.Response() as response):
            return f"the server answers {response.status_code} {response.reason}"
        case requests.Timeout():
            return f"no answer within {TIMEOUT_S} s"
        case requests.exceptions.ProxyError():
            return "the proxy cannot be used"
        case requests.exceptions.SSLError():
            return "the server cannot prove that it is what it says it is"
        case requests.exceptions.ChunkedEncodingError():
            return "the connection broke off"
        case _:
            return "no connection"


class _Bar:
    """A progress bar as pooch drives one: it sets `total`, the bytes that this connection brings."""

    def __init__(self, progress: Progress, name: str, n_before: int) -> None:
        self.total = 0
        self._progress = progress
        self._task = progress.add_task(name, total=None)
        self.begin_at(n_before)

    def begin_at(self, n_before: int) -> None:
        """Bytes that are there already."""
        self._n_before = n_before
        self.reset()

    def update(self, n_bytes: int) -> None:
        """So many more have come."""
        self._progress.update(self._task, advance=n_bytes, total=self._n_before + self.total)

    def reset(self) -> None:
        """Begin again."""
        self._progress.update(self._task, completed=self._n_before)

    def close(self) -> None:
        """The file is here."""


@contextmanager
def _bar(name: str, n_before: int) -> Iterator[_Bar]:
    """On stderr, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bar(progress, name, n_before)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.2f} MB"


# -- archives ------------------------------------------------------------------------------------------


def _was_extracted(file: PublishedFile, folder: Path) -> bool:
    marks = folder / EXTRACTED_NAME
    return marks.exists() and file.name in marks.read_text(encoding="utf-8").splitlines()


def _extract(archive: Path, folder: Path) -> None:
    """Write an archive's files under the folder, and mark it as done.

    Raises:
        InputError: it is damaged, or has a file that would lie elsewhere.
    """
    try:
        with gzip.open(archive) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r|") as tar:
                n_files = sum(_extract_member(tar, member, folder) for member in tar)
            # tarfile takes what it cannot read for the end; gzip's own checksum stands at the real one.
            while unpacked.read(_CHUNK_BYTES):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{archive} is damaged ({error}); move it away to have it fetched again") from error
    with (folder / EXTRACTED_NAME).open("a", encoding="utf-8") as marks:
        marks.write(f"{archive.name}\n")
    log.info("extracted", file=archive.name, n_files=n_files)


def _extract_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> bool:
    """Write a plain file; links and devices have no place in a dataset and are passed over.

    By hand, because tarfile's own filter for data is missing from Python before 3.11.4.
    """
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise tarfile.ExtractError(f"a file {member.name!r}, outside of its folder")
    if not member.isfile():
        return False
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None
    with source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    return True
