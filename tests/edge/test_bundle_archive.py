"""Archives: one file, the same bytes everywhere, and nothing in it that a bundle does not have."""

import os
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from edgetag import Tagger
from edgetag.contract.errors import BundleError, InputError, OutputError
from edgetag.contract.manifest import MAX_FILE_BYTES
from edgetag.tagging.bundle import load_bundle
from edgetag.tagging.packing import pack, put_signature, unpack
from edgetag.tagging.signature import create_keys, read_private_key, sign
from fakes_bundle import edit_manifest, write_bundle

ROOT_8 = [0.9] + [0.1] * 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "b", ROOT_8, {"1": [0.7, 0.1, 0.1, 0.1]})


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    return pack(folder, folder.parent / "constant.zip")


def copy(archive: Path, to: Path) -> Path:
    return Path(shutil.copy(archive, to / "copy.zip"))


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_an_archive_is_the_bundle(folder: Path, packed: Path) -> None:
    """It loads as it is, is the same model, and says the same."""
    assert load_bundle(packed).model == load_bundle(folder).model
    noise = np.random.default_rng(0).normal(0, 0.1, 441_000).astype(np.float32)
    assert Tagger.load(packed).analyse(noise).fine == Tagger.load(folder).analyse(noise).fine


def test_the_same_bundle_gives_the_same_bytes(folder: Path, packed: Path, tmp_path: Path) -> None:
    """Whatever the files' times, modes and order, and from an archive as from a folder."""
    other = tmp_path / "other"
    other.mkdir()
    for file in sorted(folder.iterdir(), reverse=True):
        shutil.copyfile(file, other / file.name)
        (other / file.name).chmod(0o600)
        os.utime(other / file.name, (1e9, 1e9))
    for source in (other, packed):
        assert pack(source, tmp_path / f"{source.name}.again").read_bytes() == packed.read_bytes()


def test_the_bytes_of_an_archive_are_fixed(packed: Path, folder: Path) -> None:
    """Stored members of 1980, plain files of mode 644, the manifest first: what any ZIP tool reads."""
    with zipfile.ZipFile(packed) as archive:
        members = archive.infolist()
        assert [m.filename for m in members] == ["bundle.yaml", "branch-1.onnx", "golden.npz", "root.onnx"]
        assert {(m.compress_type, m.date_time, m.external_attr >> 16) for m in members} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), 0o100644)
        }
        assert archive.testzip() is None
        assert {m.filename: archive.read(m) for m in members} == files_of(folder)


def test_unpacking_gives_the_folder_back(folder: Path, packed: Path, tmp_path: Path) -> None:
    """Into a new folder or an empty one, and nothing else is left beside it."""
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        assert files_of(unpack(packed, out)) == files_of(folder)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty", "new"]


def test_a_refused_archive_leaves_nothing(packed: Path, tmp_path: Path) -> None:
    """The last file is damaged: neither a new folder nor a file in the empty one."""
    archive = copy(packed, tmp_path)
    data = bytearray(archive.read_bytes())
    data[data.rindex(b"Sigmoid")] ^= 1
    archive.write_bytes(data)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        with pytest.raises(BundleError, match=r"'root\.onnx' is not what was packed"):
            unpack(archive, out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["copy.zip", "empty"]
    assert not any((tmp_path / "empty").iterdir())


def test_nothing_is_overwritten_unasked(folder: Path, packed: Path, tmp_path: Path) -> None:
    """Neither a file by an archive, unless forced, nor a folder's files by an archive's."""
    (tmp_path / "mine.zip").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(InputError, match="--force"):
        pack(folder, tmp_path / "mine.zip")
    with pytest.raises(InputError, match="not empty"):
        unpack(packed, tmp_path / "full")
    with pytest.raises(InputError, match="no folder"):
        unpack(packed, tmp_path / "mine.zip")
    assert (tmp_path / "mine.zip").read_text() == "mine"
    assert pack(folder, tmp_path / "mine.zip", force=True).read_bytes() == packed.read_bytes()


def test_where_nothing_can_be_written(folder: Path, packed: Path, tmp_path: Path) -> None:
    """A missing parent is told by the output it stands in the way of."""
    for write in (pack, unpack):
        with pytest.raises(OutputError, match="nowhere"):
            write(packed if write is unpack else folder, tmp_path / "nowhere" / "x")
    endless = tmp_path / ("x" * 300)
    with pytest.raises(OutputError, match="File name too long"):
        pack(folder, endless)
    with pytest.raises(BundleError, match="File name too long"):
        unpack(endless, tmp_path / "new")


def test_a_damaged_bundle_is_not_packed(folder: Path, tmp_path: Path) -> None:
    """Nor one with a file that its manifest does not state."""
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"holds 'notes\.txt', which bundle\.yaml does not state"):
        pack(tmp_path / "b", tmp_path / "b.zip")
    (tmp_path / "b" / "notes.txt").unlink()
    (tmp_path / "b" / "root.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="truncated"):
        pack(tmp_path / "b", tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_an_archives_own_name_is_a_name(folder: Path, tmp_path: Path) -> None:
    """A version that would lead elsewhere does not."""
    shutil.copytree(folder, tmp_path / "b")
    edit_manifest(tmp_path / "b", version="../../1\n")
    (tmp_path / "out").mkdir()
    assert pack(tmp_path / "b", tmp_path / "out") == tmp_path / "out" / "constant-.._.._1_.zip"


def test_an_archive_is_signed_as_its_folder_is(folder: Path, packed: Path, tmp_path: Path) -> None:
    """The same signature, behind the manifest; every other byte of content is as it was."""
    key, public = create_keys(tmp_path / "k")
    private = read_private_key(key, lambda: b"")
    archive, signed = copy(packed, tmp_path), tmp_path / "signed"
    shutil.copytree(folder, signed)
    for bundle in (archive, signed, archive):
        put_signature(bundle, lambda text: sign(text, private))
    assert pack(signed, tmp_path / "signed.zip").read_bytes() == archive.read_bytes()
    assert zipfile.ZipFile(archive).namelist()[:2] == ["bundle.yaml", "bundle.yaml.sig"]
    assert load_bundle(archive, public_key=public).model == load_bundle(packed).model
    with pytest.raises(BundleError, match="is not signed"):
        load_bundle(packed, public_key=public)
    assert files_of(unpack(archive, tmp_path / "x", public)) == files_of(signed)


# -- what an attacker packs ----------------------------------------------------------------------------


def rewritten(
    change: Callable[[zipfile.ZipInfo], object] = lambda info: None,
    more: Sequence[tuple[str, bytes]] = (),
    method: int = zipfile.ZIP_STORED,
) -> Callable[[Path], object]:
    """Pack the members again with Python's zipfile, each entry changed."""

    def rewrite(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            contents = [(m.filename, archive.read(m)) for m in archive.infolist()]
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in [*contents, *more]:
                info = zipfile.ZipInfo(name)
                info.compress_type = method
                change(info)
                archive.writestr(info, content)

    return rewrite


def patched(offset_of: Callable[[bytes], int], value: bytes) -> Callable[[Path], object]:
    def patch(path: Path) -> None:
        data = bytearray(path.read_bytes())
        at = offset_of(bytes(data))
        data[at : at + len(value)] = value
        path.write_bytes(data)

    return patch


def entry(name: str, field: int) -> Callable[[bytes], int]:
    """Where a field of a member's central header is."""
    return lambda data: data.rindex(name.encode()) - 46 + field


def link(info: zipfile.ZipInfo) -> None:
    if info.filename == "root.onnx":
        info.external_attr = 0o120777 << 16


def pipe(info: zipfile.ZipInfo) -> None:
    if info.filename == "root.onnx":
        info.external_attr = 0o010644 << 16


def append(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes() + data)


def cut(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:-size])


def overlapping(path: Path) -> None:
    """One content, many members: each points at the first one's header."""
    name, content = b"a.onnx", b"x" * 1000
    local = struct.pack(
        "<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, zlib.crc32(content), 1000, 1000, len(name), 0
    )
    entries = b"".join(
        struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 788, 20, 0, 0, 0, 33, zlib.crc32(content), 1000, 1000, 6, 0, 0, 0, 0,
            0o100644 << 16, 0,
        )
        + b"%c.onnx" % (97 + k)
        for k in range(20)
    )  # fmt: skip
    start = len(local) + len(name) + len(content)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 20, 20, len(entries), start, 0)
    path.write_bytes(local + name + content + entries + end)


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty file": (lambda p: p.write_bytes(b""), "no archive of a bundle"),
    "a text": (lambda p: p.write_text("hello " * 100), "no archive of a bundle"),
    "an empty ZIP": (lambda p: p.write_bytes(b"PK\5\6" + bytes(18)), "no archive of a bundle"),
    "a beginning and nothing else": (lambda p: p.write_bytes(b"PK\3\4"), "truncated"),
    "truncated by a byte": (cut(1), "truncated, or goes on"),
    "truncated by half": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "truncated"),
    "something behind the end": (append(b"\0"), "truncated, or goes on"),
    "a comment": (
        lambda p: p.write_bytes(p.read_bytes()[:-2] + b"\1\0!"),
        "truncated, or goes on",
    ),
    "compressed members": (rewritten(method=zipfile.ZIP_DEFLATED), "compressed member"),
    "a symbolic link": (rewritten(link), "symbolic link"),
    "a named pipe": (rewritten(pipe), "no plain file"),
    "other times": (rewritten(lambda i: setattr(i, "date_time", (2026, 1, 1, 0, 0, 0))), "bundle pack"),
    "an encrypted member": (patched(entry("root.onnx", 8), b"\1"), "encrypted"),
    "a size beyond the file": (
        patched(entry("root.onnx", 20), struct.pack("<2I", 2**30, 2**30)),
        "contradicts itself",
    ),
    "a size beyond the limit": (
        patched(entry("root.onnx", 20), struct.pack("<2I", MAX_FILE_BYTES + 1, MAX_FILE_BYTES + 1)),
        "may have",
    ),
    "a manifest beyond the limit": (
        patched(entry("bundle.yaml", 20), struct.pack("<2I", 2**21, 2**21)),
        "which may have 1048576",
    ),
    "overlapping members": (overlapping, "overlap"),
    "an absolute path": (rewritten(more=[("/etc/cron.d/x", b"x")]), "no plain file name"),
    "a parent's path": (rewritten(more=[("../x", b"x")]), "no plain file name"),
    "a subfolder": (rewritten(more=[("nets/x", b"x")]), "no plain file name"),
    "a folder": (rewritten(more=[("nets/", b"")]), "no plain file name"),
    "a name with an escape": (rewritten(more=[("a\x1b[2J", b"x")]), "no plain file name"),
    "a name beyond ASCII": (rewritten(more=[("straße", b"x")]), "no plain file name"),
    "too many members": (rewritten(more=[(f"n{k:03}", b"x") for k in range(80)]), "at most 66"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(("damage", "sentence"), CASES.values(), ids=CASES.keys())
def test_a_hostile_archive_is_refused_with_one_sentence(
    packed: Path, tmp_path: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    """Before any of its content is read."""
    archive = copy(packed, tmp_path)
    damage(archive)
    with pytest.raises(BundleError, match=sentence) as refusal:
        load_bundle(archive)
    assert str(refusal.value).startswith(str(archive))
    assert str(refusal.value).isprintable()


def repacked(path: Path, contents: Sequence[tuple[str, bytes]]) -> Path:
    from edgetag.tagging.archive import ArchiveWriter

    with path.open("wb") as stream:
        writer = ArchiveWriter(stream)
        for name, content in contents:
            writer.add(name, content)
        writer.finish()
    return path


def test_archives_that_only_pretend_to_be_packed(folder: Path, tmp_path: Path) -> None:
    """Right in every header, and still refused: a name twice, another order, a member unstated or missing."""
    files = [(name, (folder / name).read_bytes()) for name in ("bundle.yaml", "branch-1.onnx", "golden.npz")]
    files.append(("root.onnx", (folder / "root.onnx").read_bytes()))
    for contents, sentence in (
        ([*files, files[-1]], "two members of one name"),
        ([files[1], files[0], *files[2:]], "not written by `edgetag bundle pack`"),
        ([*files, ("zebra.txt", b"")], r"holds 'zebra\.txt', which bundle\.yaml does not state"),
        (files[:-1], r"root\.onnx is missing"),
        (files[1:], r"bundle\.yaml is missing"),
    ):
        with pytest.raises(BundleError, match=sentence):
            load_bundle(repacked(tmp_path / "a.zip", contents))


def test_a_pipe_or_a_device_is_not_waited_for(tmp_path: Path) -> None:
    """Neither as the bundle nor as one of its files."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BundleError, match="pipe or a device"):
            load_bundle(path)


@pytest.mark.skipif(shutil.which("unzip") is None, reason="no unzip command")
def test_unzip_agrees(folder: Path, packed: Path, tmp_path: Path) -> None:
    """A bundle can be had out of its archive without edgetag."""
    subprocess.run(["unzip", "-q", str(packed), "-d", str(tmp_path / "x")], check=True)
    assert files_of(tmp_path / "x") == files_of(folder)
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "x").iterdir()} == {0o644}
