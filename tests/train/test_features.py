"""Windows on disk: the same however they came about, found again by content, never half there."""

import csv
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
from structlog.testing import capture_logs
from threadpoolctl import threadpool_limits

from edgetag.contract.errors import EdgetagError, InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.dsp.logmel import LogMel
from edgetag.tagging.bundle import OnnxNet
from edgetag.tagging.embedding import Embedder
from edgetag_train.data import compute
from edgetag_train.data.annotations import presence_columns
from edgetag_train.data.augment import Augmentation, augment
from edgetag_train.data.dataset import content_digests, open_dataset
from edgetag_train.data.features import (
    Stack,
    Windows,
    default_cache,
    join,
    recording_windows,
    scene_windows,
)
from edgetag_train.data.scenes import SceneMixer, SceneSettings
from edgetag_train.data.sounds import Library, Sound, absent, read_library, read_window
from edgetag_train.data.store import Store, locked
from fakes_bundle import constant_net, mean_embedding_net

RATE_HZ = 44_100
N_RECORDINGS = 5
VARIED = Augmentation(variants=2, volume_db=6, noise_share=0.5)


def write(path: Path, samples: np.ndarray, rate_hz: int = RATE_HZ) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), rate_hz)


def tone(hz: float, seconds: float) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hz * np.arange(round(RATE_HZ * seconds)) / RATE_HZ)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five noisy recordings of three to twelve seconds, a siren, a dog and an engine, a hiss behind them."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    for k in range(N_RECORDINGS):
        write(folder / "audio" / f"{k}.wav", rng.normal(0, 0.05, (3 + 2 * k) * RATE_HZ))
    with (folder / "annotations.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["split", "sensor_id", "audio_filename", "annotator_id", *presence_columns(SONYC_UST)])
        for k in range(N_RECORDINGS):
            rows.writerow(["train", k, f"{k}.wav", 1, *(int(j == k) for j in range(37))])
    write_clips(
        folder / "clips", {"siren": 1, "dog-barking-whining": 1, "small-sounding-engine": 1, "hiss": 1}
    )
    return folder


def write_clips(folder: Path, n_recordings: dict[str, int]) -> None:
    coarse = {
        "siren": "5_alert-signal",
        "dog-barking-whining": "8_dog",
        "small-sounding-engine": "1_engine",
        "hiss": "background",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "coarse", "fine", "recording_id", "licence", "source_repo"])
        for number, (fine, n) in enumerate(n_recordings.items()):
            for k in range(n):
                rows.writerow([f"{fine}{k}.wav", coarse[fine], fine, f"{fine}{k}", "CC0 1.0", "made here"])
                write(folder / f"{fine}{k}.wav", tone(200 * (number + 1) + k, 1))


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "embedding.onnx").write_bytes(mean_embedding_net())
    return tmp_path / "embedding.onnx"


def of_recordings(data: Path, cache: Path, **changes: Any) -> Windows:
    dataset = open_dataset(data, ["train"])
    stated = {"augmentation": Augmentation(), "seed": 1, "backgrounds": (), "embedding": None} | changes
    return recording_windows(dataset, cache, labels=dataset.labels.binary(), **stated)


def of_scenes(data: Path, cache: Path, **changes: Any) -> Windows:
    stated = {"n": 4, "seed": 3, "split": "train", "embedding": None} | changes
    return scene_windows(data, cache, SceneSettings(), **stated)


def logmel(samples: np.ndarray) -> np.ndarray:
    """On one thread, as everywhere: with several the mel product is rounded otherwise."""
    with threadpool_limits(1):
        return LogMel()(samples).astype(np.float16)


def stores(cache: Path) -> dict[str, int]:
    """Every store's rows and when they were last written."""
    return {str(p.relative_to(cache)): p.stat().st_mtime_ns for p in sorted(cache.glob("*/*/rows.npy"))}


def equal(a: Windows, b: Windows) -> bool:
    return (
        np.array_equal(a.logmel[:], b.logmel[:])
        and np.array_equal(a.labels, b.labels, equal_nan=True)
        and a.digest == b.digest
    )


# -- what a row is ------------------------------------------------------------------------------------------


def test_a_recording_is_the_sensors_log_mel_of_its_window(data: Path, tmp_path: Path) -> None:
    """Cut or repeated to ten seconds, by the sensor's own front end; labels beside it."""
    windows = of_recordings(data, tmp_path / "cache")
    assert windows.logmel.shape == (N_RECORDINGS, 128, 862)
    assert windows.logmel.dtype == np.float16
    assert windows.embedding is None
    for k in range(N_RECORDINGS):
        samples = read_window(data / "audio" / f"{k}.wav")
        np.testing.assert_array_equal(windows.logmel[k], logmel(samples))
    np.testing.assert_array_equal(windows.labels.argmax(axis=1), np.arange(N_RECORDINGS))


def test_variants_follow_their_original(data: Path, tmp_path: Path) -> None:
    """Recording by recording; variant 0 is untouched; each is what `augment` makes of it, labels repeated."""
    plain, varied = (
        of_recordings(data, tmp_path / "cache", augmentation=a) for a in (Augmentation(), VARIED)
    )
    assert len(varied) == 3 * N_RECORDINGS
    np.testing.assert_array_equal(varied.logmel[::3], plain.logmel[:])
    np.testing.assert_array_equal(varied.labels, np.repeat(plain.labels, 3, axis=0))
    path = data / "audio" / "2.wav"
    rng = np.random.default_rng((1, 2, int(content_digests([path])[0], 16)))
    expected = logmel(augment(read_window(path), VARIED, rng, ()))
    np.testing.assert_array_equal(varied.logmel[3 * 2 + 2], expected)


def test_backgrounds_are_what_is_added(data: Path, tmp_path: Path) -> None:
    """Other backgrounds, other rows."""
    noisy = Augmentation(variants=1, noise_share=1.0)
    hum = Sound(tone(60, 1).astype(np.float32), absent(SONYC_UST), "hum")
    found = [of_recordings(data, tmp_path / "cache", augmentation=noisy, backgrounds=b) for b in ((), (hum,))]
    np.testing.assert_array_equal(found[0].logmel[::2], found[1].logmel[::2])
    assert not np.array_equal(found[0].logmel[1::2], found[1].logmel[1::2])


def test_the_embedding_is_the_sensors(data: Path, tmp_path: Path, net: Path) -> None:
    """Of the same samples as the log-mel, by the sensor's own `Embedder`."""
    windows = of_recordings(data, tmp_path / "cache", augmentation=VARIED, embedding=net)
    assert windows.embedding is not None
    assert windows.embedding.shape == (3 * N_RECORDINGS, 10, 128)
    assert windows.embedding.dtype == np.float32
    embedder = Embedder(OnnxNet(net.read_bytes(), "net"))
    expected = embedder(read_window(data / "audio" / "1.wav"))[0]
    np.testing.assert_array_equal(windows.embedding[3], expected)


def test_scene_k_is_drawn_from_seed_plus_k(data: Path, tmp_path: Path, net: Path) -> None:
    """Drawn alone, a scene is the same: log-mel, labels and embedding."""
    windows = of_scenes(data, tmp_path / "cache", embedding=net)
    mixer = SceneMixer(read_library(data, "train"), SceneSettings())
    for k in range(4):
        samples, labels = mixer.scene(3 + k)
        np.testing.assert_array_equal(windows.logmel[k], logmel(samples))
        np.testing.assert_array_equal(windows.labels[k], labels)
        expected = Embedder(OnnxNet(net.read_bytes(), "net"))(samples)[0]
        np.testing.assert_array_equal(windows.embedding[k], expected)


def test_held_out_scenes_are_of_held_out_clips(data: Path, tmp_path: Path, net: Path) -> None:
    """No street in them; with too few clips held out there are none, of the right shape."""
    none = of_scenes(data, tmp_path / "cache", split="validate", embedding=net)
    assert len(none) == 0
    assert none.logmel.shape == (0, 128, 862)
    assert none.embedding.shape == (0, 10, 128)
    write_clips(data / "clips", {"siren": 30, "hiss": 30})
    shutil.rmtree(data / "audio")
    windows = of_scenes(data, tmp_path / "cache", split="validate")
    assert len(windows) == 4
    present = {SONYC_UST.ids[tag] for tag in np.flatnonzero((windows.labels == 1).any(axis=0))}
    assert present == {"5", "5-3"}


def test_a_train_split_without_events_is_refused(data: Path, tmp_path: Path) -> None:
    """There is nothing to mix."""
    write_clips(data / "clips", {"hiss": 2})
    with pytest.raises(InputError, match="no event"):
        of_scenes(data, tmp_path / "cache")


# -- found again ---------------------------------------------------------------------------------------------


def test_nothing_is_computed_twice(data: Path, tmp_path: Path) -> None:
    """The same windows again, from the disk; other labels as well."""
    cache = tmp_path / "cache"
    first = of_recordings(data, cache)
    before = stores(cache)
    dataset = open_dataset(data, ["train"])
    again = recording_windows(
        dataset,
        cache,
        labels=dataset.labels.soft() / 2,
        augmentation=Augmentation(),
        seed=2,  # of variants, of which there are none
        backgrounds=(),
        embedding=None,
    )
    assert stores(cache) == before
    np.testing.assert_array_equal(again.labels, first.labels / 2)
    assert again.digest != first.digest


def test_a_moved_dataset_is_the_same(data: Path, tmp_path: Path) -> None:
    """Neither the place nor the date of the files matters, nor the layout of the folder."""
    cache = tmp_path / "cache"
    first = of_recordings(data, cache), of_scenes(data, cache)
    before = stores(cache)
    moved = tmp_path / "elsewhere"
    shutil.copytree(data / "clips", moved / "clips", copy_function=shutil.copyfile)
    shutil.copytree(data / "audio", moved / "train", copy_function=shutil.copyfile)
    shutil.copyfile(data / "annotations.csv", moved / "annotations.csv")
    shutil.rmtree(data)
    assert equal(of_recordings(moved, cache), first[0])
    assert equal(of_scenes(moved, cache), first[1])
    assert stores(cache) == before


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"augmentation": msgspec.structs.replace(VARIED, volume_db=7.0)},
        {"augmentation": msgspec.structs.replace(VARIED, variants=1)},
    ],
)
def test_a_changed_parameter_is_another_store(data: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """Nothing of the old one is taken."""
    cache = tmp_path / "cache"
    stated = {"augmentation": VARIED}
    first, other = of_recordings(data, cache, **stated), of_recordings(data, cache, **stated | change)
    assert len(stores(cache)) == 2
    assert first.digest != other.digest
    if len(first) == len(other):
        assert not np.array_equal(first.logmel[:], other.logmel[:])


def test_an_embedding_leaves_the_log_mels(data: Path, tmp_path: Path, net: Path) -> None:
    """Added or exchanged, it is a store of its own."""
    cache = tmp_path / "cache"
    of_recordings(data, cache)
    (logmels,) = stores(cache).items()
    of_recordings(data, cache, embedding=net)
    assert stores(cache).items() >= {logmels}
    assert len(stores(cache)) == 2


def test_a_changed_recording_is_computed_anew_and_alone(data: Path, tmp_path: Path) -> None:
    """The rows of the others are taken over; those of a fresh cache are the same."""
    of_recordings(data, tmp_path / "cache", augmentation=VARIED)
    write(data / "audio" / "3.wav", tone(500, 10))
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "_chunks", lambda missing, workers: drawn.extend(missing) or [missing])
        found = of_recordings(data, tmp_path / "cache", augmentation=VARIED)
    assert drawn == [3]
    assert equal(found, of_recordings(data, tmp_path / "fresh", augmentation=VARIED))


def test_more_scenes_are_the_same_scenes_and_more(data: Path, tmp_path: Path) -> None:
    """Scenes that were mixed are not mixed again because others are wanted as well."""
    few, many = of_scenes(data, tmp_path / "cache"), of_scenes(data, tmp_path / "cache", n=6)
    np.testing.assert_array_equal(many.logmel[:4], few.logmel[:])
    assert equal(many, of_scenes(data, tmp_path / "fresh", n=6))


def test_a_damaged_store_is_made_anew(data: Path, tmp_path: Path) -> None:
    """A truncated or foreign file is never read as features."""
    cache = tmp_path / "cache"
    first = of_recordings(data, cache)
    expected = Windows(np.array(first.logmel), first.labels, None, first.digest)
    (rows,) = cache.glob("*/*/rows.npy")
    for content in (b"", rows.read_bytes()[:100_000]):
        rows.unlink()
        rows.write_bytes(content)
        assert equal(of_recordings(data, cache), expected)


def test_the_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the XDG base directory specification."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/edgetag/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "edgetag" / "features"


# -- killed, shared, damaged, full --------------------------------------------------------------------------


RUN = """
    import sys
    from pathlib import Path
    from edgetag_train.data import compute
    from edgetag_train.data.features import *
    from edgetag_train.data.dataset import open_dataset
    compute._FLUSH_S, compute._CHUNK_ITEMS = 0.0, 1  # so that it can be killed between two items
    data, cache = map(Path, sys.argv[1:3])
    dataset = open_dataset(data, ["train"])
    how = Augmentation(variants=2, volume_db=6, noise_share=0.5)
    stated = {"augmentation": how, "seed": 1, "backgrounds": (), "embedding": None}
    recording_windows(dataset, cache, labels=dataset.labels.binary(), **stated)
"""


def child(data: Path, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", dedent(RUN), str(data), str(cache)],
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def until_begun(cache: Path) -> None:
    """Wait until some items are done."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if any(np.load(done).any() for done in cache.glob("*/*/done.npy")):
            return
        time.sleep(0.01)
    raise AssertionError("nothing was computed in a minute")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(data: Path, tmp_path: Path, how: signal.Signals) -> None:
    """What a run that was cut off leaves, and the next one completes, is to the bit what one run makes."""
    for k in range(N_RECORDINGS, 32):
        write(data / "audio" / f"{k}.wav", tone(100 + k, 3))
    with (data / "annotations.csv").open("a", newline="") as file:
        csv.writer(file).writerows(["train", k, f"{k}.wav", 1, *[0] * 37] for k in range(N_RECORDINGS, 32))
    cache = tmp_path / "cache"
    process = child(data, cache)
    until_begun(cache)
    os.killpg(process.pid, how) if how == signal.SIGINT else process.kill()
    process.communicate()
    assert process.returncode != 0
    (done,) = (np.load(path) for path in cache.glob("*/*/done.npy"))
    assert done.any()
    assert not done.all()
    assert equal(
        of_recordings(data, cache, augmentation=VARIED),
        of_recordings(data, tmp_path / "fresh", augmentation=VARIED),
    )


def test_two_processes_make_one_store(data: Path, tmp_path: Path) -> None:
    """The second waits for the first and finds everything done."""
    cache = tmp_path / "cache"
    processes = [child(data, cache) for _ in range(2)]
    assert [(process.communicate(), process.returncode)[1] for process in processes] == [0, 0]
    before = stores(cache)
    assert equal(
        of_recordings(data, cache, augmentation=VARIED),
        of_recordings(data, tmp_path / "fresh", augmentation=VARIED),
    )
    assert stores(cache) == before


def test_waiting_is_said(tmp_path: Path) -> None:
    """Whoever finds a store taken says so before waiting."""
    store = Store(tmp_path, "logmel", {}, ["a"], 1, (2,), np.dtype(np.float32))
    with locked([store]):
        (lock,) = tmp_path.glob("*/*.lock")
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        waiting = subprocess.Popen(
            [sys.executable, "-c", dedent(WAIT), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert "waiting for it" in waiting.stdout.readline()
    assert "mine" in waiting.communicate(timeout=30)[0]


WAIT = """
    import sys
    from pathlib import Path
    import numpy as np
    from edgetag_train.data.store import Store, locked
    store = Store(Path(sys.argv[1]), "logmel", {}, ["a"], 1, (2,), np.dtype(np.float32))
    with locked([store]):
        print("mine")
"""


def test_damaged_recordings_are_named_when_all_others_are_done(data: Path, tmp_path: Path) -> None:
    """A header may be whole and the rest not: one sentence at the end, nothing of the others is lost."""
    cache = tmp_path / "cache"
    samples = np.full(10 * RATE_HZ, np.nan, np.float32)
    soundfile.write(data / "audio" / "1.wav", samples, RATE_HZ, subtype="FLOAT")
    flac = data / "audio" / "3.flac"
    write(flac, np.random.default_rng(0).normal(0, 0.1, 10 * RATE_HZ))
    flac.write_bytes(flac.read_bytes()[:40_000])
    (data / "audio" / "3.wav").unlink()
    with pytest.raises(
        InputError, match=r"^2 of the recordings .*1\.wav.*; .*3\.flac.*the others are computed"
    ):
        of_recordings(data, cache)
    (done,) = (np.load(path) for path in cache.glob("*/*/done.npy"))
    assert done.tolist() == [True, False, True, False, True]
    flac.unlink()
    for k in (1, 3):
        write(data / "audio" / f"{k}.wav", tone(100 * k, 10))
    assert equal(of_recordings(data, cache), of_recordings(data, tmp_path / "fresh"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "edgetag", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_without_room_is_one_sentence(data: Path, tmp_path: Path, small_disk: Path, net: Path) -> None:
    """Before anything is computed; nothing is left behind that claims to be features."""
    with pytest.raises(InputError, match=r"need 3.4 MB and .* has 2.1 MB free; .*--cache"):
        of_recordings(data, small_disk, augmentation=VARIED, embedding=net)
    assert not list(small_disk.glob("*/*/*"))
    assert len(of_recordings(data, small_disk)) == N_RECORDINGS
    with pytest.raises(InputError, match="--cache"):
        of_scenes(data, small_disk, n=40)
    assert len(stores(small_disk)) == 1


def test_a_disk_that_fills_loses_nothing(data: Path, small_disk: Path) -> None:
    """What others write after the space was reserved does no harm: every row has its place."""
    store = Store(small_disk, "logmel", {}, ["a", "b"], 1, (100_000,), np.dtype(np.float32))
    with locked([store]):
        assert not store.reserve().any()
        with pytest.raises(OSError, match="No space"), (small_disk / "other").open("wb") as other:
            other.write(bytes(4_000_000))
        store.write(1, np.ones(100_000, np.float32))
    np.testing.assert_array_equal(store.rows()[1], np.ones(100_000))


def test_a_file_system_that_reserves_nothing(data: Path, tmp_path: Path) -> None:
    """The same rows; too little room is found by asking."""

    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "posix_fallocate", unsupported)
        found = of_recordings(data, tmp_path / "cache")
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        with pytest.raises(InputError, match=r"need 1\.3 MB and .* has 1\.0 MB free; .*--cache"):
            of_scenes(data, tmp_path / "cache", n=6)
    assert equal(found, of_recordings(data, tmp_path / "fresh"))


def test_a_folder_that_cannot_be_written(data: Path, tmp_path: Path) -> None:
    """One sentence with the way out."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--cache"):
        of_recordings(data, tmp_path / "file" / "cache")


def test_a_killed_worker_is_one_sentence(data: Path, tmp_path: Path) -> None:
    """Most likely for want of memory; what was done stays."""

    def killed(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compute, "_start", killed)
        with pytest.raises(EdgetagError, match="was killed, perhaps for want of memory"):
            of_recordings(data, tmp_path / "cache")
    assert len(of_recordings(data, tmp_path / "cache")) == N_RECORDINGS


@pytest.mark.parametrize("content", [None, b"", b"no net", constant_net([0.5] * 37)])
def test_what_is_no_embedding_net_is_refused(data: Path, tmp_path: Path, content: bytes | None) -> None:
    """Missing, no ONNX, another contract: before anything is computed."""
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"net\.onnx"):
        of_recordings(data, tmp_path / "cache", embedding=path)
    assert not stores(tmp_path / "cache")


def test_labels_of_other_recordings(data: Path, tmp_path: Path) -> None:
    """One row a recording."""
    with pytest.raises(ValueError, match="3 rows of labels for 5 recordings"):
        recording_windows(
            open_dataset(data, ["train"]),
            tmp_path,
            labels=np.zeros((3, 37), np.float32),
            augmentation=Augmentation(),
            seed=0,
            backgrounds=(),
            embedding=None,
        )


def test_progress_is_logged_where_nobody_watches(data: Path, tmp_path: Path) -> None:
    """A line now and then, with what is left."""
    with pytest.MonkeyPatch.context() as patch, capture_logs() as logs:
        patch.setattr(compute, "_LOG_S", 0.0)
        of_recordings(data, tmp_path / "cache")
    assert logs[-1]["done"] == logs[-1]["total"] == N_RECORDINGS
    assert logs[-1]["event"] == "computing features"


# -- several stores as one ----------------------------------------------------------------------------------


def some(n: int, seed: int, embedding: bool = False) -> Windows:
    rng = np.random.default_rng(seed)
    return Windows(
        rng.normal(size=(n, 3, 4)).astype(np.float16),
        rng.random((n, 37), np.float32),
        rng.random((n, 10, 128), np.float32) if embedding else None,
        str(seed),
    )


def test_joined_windows_equal_their_parts() -> None:
    """Integer, slice, integer array in any order, boolean: as of one array."""
    parts = [some(3, 0, True), some(0, 1, True), some(5, 2, True)]
    joined = join(*parts)
    assert isinstance(joined.logmel, Stack)
    whole = np.concatenate([part.logmel for part in parts])
    assert (len(joined), joined.logmel.shape, joined.logmel.dtype) == (8, (8, 3, 4), np.float16)
    rows = (0, 7, -1, slice(None), slice(2, 5), slice(None, None, -2), np.array([1, 4, 4, 0]), np.arange(0))
    for row in rows:
        np.testing.assert_array_equal(joined.logmel[row], whole[row])
        np.testing.assert_array_equal(
            joined.embedding[row], np.concatenate([part.embedding for part in parts])[row]
        )
    np.testing.assert_array_equal(joined.labels, np.concatenate([part.labels for part in parts]))
    for row in (8, -9, np.array([3, 8])):
        with pytest.raises(IndexError):
            joined.logmel[row]


def test_joining_says_of_what() -> None:
    """Other parts, or another order, another digest; embeddings are everywhere or nowhere."""
    assert join(some(1, 0), some(1, 1)).digest != join(some(1, 1), some(1, 0)).digest
    assert join(some(1, 0)).embedding is None
    with pytest.raises(ValueError, match="cannot be joined"):
        join(some(1, 0), some(1, 0, True))
    with pytest.raises(ValueError, match="one row shape"):
        Stack(np.zeros((1, 2)), np.zeros((1, 3)))


def test_nothing_of_a_stack_is_copied(data: Path, tmp_path: Path) -> None:
    """Joined stores stay memory maps."""
    windows = of_recordings(data, tmp_path / "cache")
    assert isinstance(windows.logmel, np.memmap)
    joined = join(windows, windows)
    np.testing.assert_array_equal(joined.logmel[N_RECORDINGS:], windows.logmel[:])


def test_a_library_may_be_given_as_any_sequence() -> None:
    """Scenes ask for one recording at a time."""
    sound = Sound(np.ones(441_000, np.float32), absent(SONYC_UST), "")
    assert SceneMixer(Library([sound], [], [sound], SONYC_UST), SceneSettings()).scene(0)[0].shape == (
        441_000,
    )
