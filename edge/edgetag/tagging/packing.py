"""From a folder to an archive and back, and a signature into either: written whole, or not at all."""

import contextlib
import io
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edgetag.contract.errors import InputError, OutputError
from edgetag.contract.manifest import MANIFEST_NAME, SIGNATURE_BYTES, SIGNATURE_NAME, Manifest
from edgetag.tagging.archive import ArchiveError, ArchiveWriter, packing_order
from edgetag.tagging.atomic import replacing
from edgetag.tagging.bundle import read_file, read_manifest
from edgetag.tagging.container import Archive, Container, Folder, open_container
from edgetag.tagging.verification import verify


def pack(bundle: Path, out: Path | None = None, *, force: bool = False) -> Path:
    """Write a bundle as one archive, which is the same byte for byte for the same bundle.

    Args:
        bundle: a folder, or an archive; it is verified first.
        out: the archive, or a folder for it; if absent, NAME-VERSION.zip in the working directory.
        force: whether an existing file is replaced.

    Returns:
        The archive.

    Raises:
        BundleError: the bundle does not pass.
        InputError: the archive exists, or is to be something else than a file.
        OutputError: it cannot be written; what was there before still is.
    """
    container = open_container(bundle)
    text, manifest = read_manifest(container)
    try:
        if out is None or out.is_dir():
            out = (out or Path()) / archive_name(manifest)
        if out.exists() and not force:
            raise InputError(f"{out} exists; replace it with --force, or give another --out")
        if out.exists() and not out.is_file():
            raise InputError(f"{out} is no file that an archive could replace")
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror})") from error
    for _ in verify(bundle):
        pass
    _write_archive(out, contents(container, text, manifest, signature_of(container)))
    return out


def packed(bundle: Path) -> bytes:
    """A bundle as the content of an archive. Its files are checked, but nothing is run.

    Raises:
        BundleError: the bundle does not pass.
        InputError: it is too large.
    """
    container = open_container(bundle)
    text, manifest = read_manifest(container)
    stream = io.BytesIO()
    _write_members(stream, bundle, contents(container, text, manifest, signature_of(container)))
    return stream.getvalue()


def unpack(archive: Path, out: Path, public_key: Path | None = None) -> Path:
    """Write an archive's files into a folder of their own.

    Args:
        archive: the archive; every file's length and hash is checked, and the signature with a key.
        out: a folder that is empty or not there yet.
        public_key: a PEM file whose owner must have signed the bundle.

    Returns:
        The folder.

    Raises:
        BundleError: the archive does not pass.
        InputError: it is a folder, `out` is not empty, or the key cannot be used.
        OutputError: the folder cannot be written; nothing is left in it.
    """
    container = open_container(archive)
    with contextlib.suppress(OSError):  # reading its manifest says what is wrong
        if isinstance(container, Folder) and archive.exists():
            raise InputError(f"{archive} is a folder, not an archive")
    text, manifest = read_manifest(container, public_key)
    existed = _is_empty_folder(out)
    stage = (out if existed else out.parent) / f".unpacking-{secrets.token_hex(4)}"
    names: list[str] = []
    try:
        stage.mkdir()
        for name, content in contents(container, text, manifest, signature_of(container)):
            (stage / name).write_bytes(content)
            names.append(name)
        if existed:
            _move(stage, out, names)
        else:
            stage.rename(out)
    except OSError as error:
        raise OutputError(f"{out} cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return out


def put_signature(bundle: Path, sign: Callable[[bytes], bytes]) -> None:
    """Sign a bundle where it lies; an earlier signature is replaced.

    Args:
        bundle: a folder or an archive; every file's length and hash is checked first.
        sign: from the bytes of `bundle.yaml` to its signature.

    Raises:
        BundleError: a file is not what the manifest states.
        OutputError: it cannot be written; the bundle is as it was.
    """
    container = open_container(bundle)
    text, manifest = read_manifest(container)
    for file in manifest.files.values():
        read_file(container, file)
    signature = sign(text)
    if isinstance(container, Archive):
        _write_archive(bundle.resolve(), contents(container, text, manifest, signature))
    else:
        with _replacing(bundle / SIGNATURE_NAME) as stream:
            stream.write(signature)


def archive_name(manifest: Manifest) -> str:
    """NAME-VERSION.zip, without what a file name cannot have."""
    version = re.sub(r"[^A-Za-z0-9._+-]+", "_", manifest.version)[:64]
    return f"{manifest.name}-{version}.zip"


def contents(
    container: Container, text: bytes, manifest: Manifest, signature: bytes | None
) -> Iterator[tuple[str, bytes]]:
    """Names and contents in packing order: the manifest as it was read, every file checked against it."""
    yield MANIFEST_NAME, text
    if signature is not None:
        yield SIGNATURE_NAME, signature
    files = manifest.files
    for name in packing_order(list(files)):
        yield name, read_file(container, files[name])


def signature_of(container: Container) -> bytes | None:
    """A bundle's signature, unchecked, if it has one."""
    if SIGNATURE_NAME not in container.names():
        return None
    return container.read(SIGNATURE_NAME, SIGNATURE_BYTES)


def _write_archive(out: Path, contents: Iterator[tuple[str, bytes]]) -> None:
    with _replacing(out) as stream:
        _write_members(stream, out, contents)


def _write_members(stream: BinaryIO, path: Path, contents: Iterator[tuple[str, bytes]]) -> None:
    writer = ArchiveWriter(stream)
    try:
        for name, content in contents:
            writer.add(name, content)
        writer.finish()
    except ArchiveError as error:
        raise InputError(f"{path} {error}") from error


@contextmanager
def _replacing(file: Path) -> Iterator[BinaryIO]:
    try:
        with replacing(file) as stream:
            yield stream
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror})") from error


def _is_empty_folder(out: Path) -> bool:
    """Whether `out` is an empty folder, or not there.

    Raises:
        InputError: it is anything else.
    """
    try:
        entries = any(out.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InputError(f"{out} is no folder to unpack into ({error.strerror})") from error
    if entries:
        raise InputError(f"{out} is not empty; unpack into a folder that is empty or not there yet")
    return True


def _move(stage: Path, out: Path, names: list[str]) -> None:
    """Move files into an empty folder, the manifest last: without it there is no bundle."""
    try:
        for name in reversed(names):
            (stage / name).rename(out / name)
    except BaseException:
        for name in names:
            (out / name).unlink(missing_ok=True)
        raise
