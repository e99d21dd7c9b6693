"""The bundles a sensor keeps: one that hears, and the last good one before it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edgetag import Tagger
from edgetag.contract.errors import BundleError, InputError, OutputError
from edgetag.tagging.bundle import starter_path
from edgetag.tagging.store import BundleStore
from fakes_bundle import write_bundle
from fakes_cli import run_python


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    return BundleStore(tmp_path / "state" / "bundles")


def bundle(folder: Path, p: float) -> Path:
    return write_bundle(folder / f"says-{p}", [p] * 37)


def model(path: Path | None) -> str:
    return Tagger.load(path).bundle.model


def kept(store: BundleStore) -> set[str]:
    return {entry.name for entry in store.root.iterdir() if entry.is_dir() and not entry.is_symlink()}


def test_an_empty_store_keeps_nothing(store: BundleStore) -> None:
    """And asking it does not make it."""
    assert store.current() is store.previous() is None
    assert not store.root.exists()
    with pytest.raises(InputError, match="keeps no earlier bundle"):
        store.rollback()


def test_what_is_installed_hears_and_the_one_before_is_kept(store: BundleStore, tmp_path: Path) -> None:
    """Two are kept, whole; a third pushes the first out; the sources may go."""
    sources = [bundle(tmp_path, p) for p in (0.1, 0.2, 0.3)]
    models = [model(source) for source in sources]
    for source in sources:
        (source / "notes.txt").write_text("not the bundle's")
        assert store.install(source) == store.current()
    assert [model(store.previous()), model(store.current())] == models[1:]
    assert len(kept(store)) == 2
    assert not list(store.root.glob("*/notes.txt"))


def test_rollback_goes_back_and_forth(store: BundleStore, tmp_path: Path) -> None:
    """The one that heard becomes the one before."""
    first, second = (store.install(bundle(tmp_path, p)) for p in (0.1, 0.2))
    assert store.rollback() == store.current() == first
    assert store.previous() == second
    assert store.rollback() == store.current() == second


def test_installing_the_same_again_changes_nothing(store: BundleStore, tmp_path: Path) -> None:
    """Above all it does not push out the bundle that one would go back to."""
    first, second = (store.install(bundle(tmp_path, p)) for p in (0.1, 0.2))
    assert store.install(bundle(tmp_path, 0.2)) == second
    assert store.previous() == first


def test_installing_the_same_again_mends_a_damaged_copy(store: BundleStore, tmp_path: Path) -> None:
    """What lies in the store is compared, not believed."""
    first, folder = (store.install(bundle(tmp_path, p)) for p in (0.1, 0.2))
    (folder / "root.onnx").write_bytes(b"")
    mended = store.install(bundle(tmp_path, 0.2))
    assert mended == store.current() != folder
    assert store.previous() == first
    model(mended)


def test_a_pointer_to_nowhere_is_mended_by_an_install(store: BundleStore, tmp_path: Path) -> None:
    """And one that is no link is told, never taken for an empty store: the starter would hear instead."""
    store.install(bundle(tmp_path, 0.1)).rename(tmp_path / "gone")
    assert store.install(bundle(tmp_path, 0.2)) == store.current()
    assert store.previous() is None
    (store.root / "current").unlink()
    (store.root / "current").mkdir()
    with pytest.raises(BundleError, match="current cannot be read as a link"):
        store.current()


def test_a_damaged_bundle_does_not_push_out_the_last_good_one(store: BundleStore, tmp_path: Path) -> None:
    """There is no going back to it."""
    first, damaged = (store.install(bundle(tmp_path, p)) for p in (0.1, 0.2))
    (damaged / "root.onnx").write_bytes(b"")
    third = store.install(bundle(tmp_path, 0.3))
    assert (store.current(), store.previous()) == (third, first)
    assert store.rollback() == first


def test_a_bundle_that_fails_its_checks_changes_nothing(store: BundleStore, tmp_path: Path) -> None:
    """Damaged, or golden windows that differ: the store stays as it was, without a trace of it."""
    good = store.install(bundle(tmp_path, 0.1))
    damaged = bundle(tmp_path, 0.2)
    (damaged / "root.onnx").write_bytes(b"")
    differs = write_bundle(tmp_path / "differs", [0.3] * 37, golden_root=[0.4] * 37)
    for source, sentence in (damaged, "truncated"), (differs, "differs by 0.1"), (tmp_path, "is missing"):
        with pytest.raises(BundleError, match=sentence):
            store.install(source)
        assert (store.current(), store.previous()) == (good, None)
        assert kept(store) == {good.name}


def test_a_previous_bundle_that_was_damaged_is_not_gone_back_to(store: BundleStore, tmp_path: Path) -> None:
    """Rollback checks before it points."""
    first, second = (store.install(bundle(tmp_path, p)) for p in (0.1, 0.2))
    (first / "root.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="truncated"):
        store.rollback()
    assert store.current() == second
    starter = store.install(starter_path())
    store.install(bundle(tmp_path, 0.3))
    (starter / "root.fp32.onnx").write_bytes(b"")  # of the variant that is not loaded unasked
    with pytest.raises(BundleError, match="truncated"):
        store.rollback()


def test_what_a_crash_left_behind_is_swept_up(store: BundleStore, tmp_path: Path) -> None:
    """A half-copied bundle and a pointer that never took its place."""
    store.root.mkdir(parents=True)
    (store.root / ".incoming-x").mkdir()
    (store.root / ".current").symlink_to("nowhere")
    store.install(bundle(tmp_path, 0.1))
    assert len(kept(store)) == 1
    model(store.current())


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    """One sentence, exit code 5."""
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        BundleStore(tmp_path / "file" / "bundles").install(bundle(tmp_path, 0.1))


INSTALL = "import sys; from pathlib import Path; from edgetag.tagging.store import BundleStore;"


def test_two_processes_do_not_get_into_each_others_way(store: BundleStore, tmp_path: Path) -> None:
    """Both are installed, one after the other."""
    sources = [bundle(tmp_path, p) for p in (0.1, 0.2)]
    code = f"{INSTALL} BundleStore(Path(sys.argv[1])).install(Path(sys.argv[2]))"
    processes = [subprocess.Popen([sys.executable, "-c", code, store.root, source]) for source in sources]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert {model(store.current()), model(store.previous())} == set(map(model, sources))


def test_the_service_may_read_what_root_installed(store: BundleStore, tmp_path: Path) -> None:
    """Folders and files are open to all, whatever root's umask: there is no secret in a bundle."""
    source = bundle(tmp_path, 0.1)
    before = os.umask(0o077)
    try:
        folder = store.install(source)
    finally:
        os.umask(before)
    assert store.root.stat().st_mode & folder.stat().st_mode & 0o055 == 0o055
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in folder.iterdir())


# -- as the operator uses it ---------------------------------------------------------------------------------


def edgetag(state: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "edgetag", *arguments, state=state)


def heard(state: Path, street: Path) -> float:
    """The coarse score that a replay prints."""
    done = edgetag(state, "replay", street)
    assert done.returncode == 0, done.stderr
    return float(json.loads(done.stdout.splitlines()[0])["coarse"]["1"])


def test_install_and_rollback(tmp_path: Path) -> None:
    """What is installed is what the next replay hears with; a damaged archive is refused, exit code 3."""
    state, street = tmp_path / "state", tmp_path / "street.wav"
    soundfile.write(street, np.random.default_rng(0).normal(0, 0.1, 12 * 8000), 8000)
    for p in (0.1, 0.2):
        archive = tmp_path / f"{p}.zip"
        assert edgetag(state, "bundle", "pack", bundle(tmp_path, p), "--out", archive).returncode == 0
        done = edgetag(state, "bundle", "install", archive)
        assert (done.returncode, done.stderr) == (0, "")
        assert "hears next" in done.stdout
        assert heard(state, street) == pytest.approx(p, abs=1e-3)
    archive.write_bytes(archive.read_bytes()[:-100])
    refused = edgetag(state, "bundle", "install", archive)
    assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (3, "", 1)
    assert heard(state, street) == pytest.approx(0.2, abs=1e-3)
    assert edgetag(state, "bundle", "rollback").returncode == 0
    assert heard(state, street) == pytest.approx(0.1, abs=1e-3)
    nothing = edgetag(tmp_path / "elsewhere", "bundle", "rollback")
    assert (nothing.returncode, len(nothing.stderr.splitlines())) == (2, 1)
