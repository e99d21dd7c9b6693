"""Several processes hear what one hears, in the same order, whatever becomes of them."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag import Tagger
from edgetag.contract.errors import BundleError, EdgetagError, InputError
from edgetag.hearing import Said
from edgetag.tagging.conditions import Conditions
from edgetag.tagging.stream import Heard
from edgetag.workers import Ears, Workers, _hear
from fakes_bundle import write_bundle

RATE_HZ = 8000
HOP = 5 * 44_100
NAMES = ("street.wav", "long.flac", "stereo.ogg", "street.mp3", "silent.wav")
BAD = ("none.wav", "text.wav", "short.wav", "cut.flac", "nan.wav", ".")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Good ones and bad ones, by name."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)

    def write(name: str, seconds: float, rate_hz: int = RATE_HZ, channels: int = 1, **options: str) -> None:
        samples = rng.normal(0, 0.1, (round(seconds * rate_hz), channels))
        soundfile.write(folder / name, samples, rate_hz, **options)

    write("street.wav", 12)
    write("long.flac", 31)
    write("stereo.ogg", 20, 48_000, 2)
    write("street.mp3", 15, 44_100)
    soundfile.write(folder / "silent.wav", np.zeros(11 * RATE_HZ), RATE_HZ)
    (folder / "text.wav").write_text("hello " * 100)
    write("short.wav", 3)
    write("cut.flac", 30)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:200_000])
    samples = rng.normal(0, 0.1, 12 * RATE_HZ)
    samples[1000:2000] = np.nan
    soundfile.write(folder / "nan.wav", samples, RATE_HZ, subtype="FLOAT")
    return {name: str(folder / name) for name in (*NAMES, *BAD)}


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Ears:
    bundle = write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})
    sha256 = Tagger.load(bundle).bundle.sha256
    return Ears(bundle, sha256, "fp32", 1, None, Conditions(calibration_db=94.0), HOP)


@pytest.fixture(scope="module")
def alone(ears: Ears, recordings: dict[str, str]) -> dict[str, list[object]]:
    """What one process hears in each recording."""
    stream = ears.stream()
    return {file: [*map(content, _hear(file, stream, HOP))] for file in recordings.values()}


def content(said: Said | EdgetagError) -> object:
    """All but when it was read."""
    if isinstance(said, EdgetagError):
        return type(said), str(said)
    return said._replace(delivered_s=0.0) if isinstance(said, Heard) else said


def taken(said: Iterator[Said]) -> list[object]:
    """All that is said of a recording, what it raises as the last word."""
    words: list[object] = []
    try:
        words.extend(map(content, said))
    except EdgetagError as error:
        words.append(content(error))
    return words


@pytest.fixture(scope="module", params=[1, 4096], ids=["nothing ahead", "far ahead"])
def workers(ears: Ears, request: pytest.FixtureRequest) -> Iterator[Workers]:
    with Workers(2, max_ahead=request.param) as workers:
        workers.equip(ears)
        yield workers


@contextlib.contextmanager
def equipped(ears: Ears, max_ahead: int = 100) -> Iterator[Workers]:
    with Workers(2, max_ahead=max_ahead) as workers:
        workers.equip(ears)
        yield workers


@settings(max_examples=10)
@given(names=st.lists(st.sampled_from(NAMES + BAD), max_size=9))
def test_what_several_hear_is_what_one_hears(
    workers: Workers, alone: dict[str, list[object]], recordings: dict[str, str], names: list[str]
) -> None:
    """Bit for bit and in the same order, whatever cannot be read between, however far workers run ahead."""
    files = [recordings[name] for name in names]
    told = [(file, taken(said)) for file, said in workers.hear(files)]
    assert told == [(file, alone[file]) for file in files]
    assert workers.n_ahead == 0


def test_who_is_told_late_waits(ears: Ears, recordings: dict[str, str]) -> None:
    """While nobody takes the first recording's windows, the others run ahead so far and no further."""
    files = [recordings["long.flac"]] + [recordings["street.wav"]] * 8
    with equipped(ears, max_ahead=5) as workers:
        most = 0
        for _, said in workers.hear(files):
            for _ in said:
                most = max(most, workers.n_ahead)
        assert 1 < most <= 5 + 2


# -- workers that die ----------------------------------------------------------------------------------------


def pids() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def test_a_worker_that_is_killed_loses_nothing(
    ears: Ears, alone: dict[str, list[object]], recordings: dict[str, str]
) -> None:
    """All of them in the middle of a recording that is being told: it goes on where it was. Once only: they
    may be at work on the next ones already, and a recording that two of them died of is given up."""
    files = [recordings[name] for name in ("long.flac", "street.wav", "cut.flac")]
    before = pids()
    with equipped(ears) as workers:
        told = []
        for file, said in workers.hear(files):
            words = [content(next(said)), content(next(said))]
            if file == files[0]:
                for pid in pids() - before:
                    os.kill(pid, signal.SIGKILL)
            told.append((file, words + taken(said)))
    assert told == [(file, alone[file]) for file in files]


def hearers(file: Path) -> Iterator[int]:
    """Processes of ours that have a file open."""
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError):
            links = [link.readlink() for link in Path(f"/proc/{child.pid}/fd").iterdir()]
            if file in links and child.pid is not None:
                yield child.pid


def kill_whoever_hears(file: Path, stop: threading.Event) -> None:
    while not stop.wait(0.001):
        for pid in hearers(file):
            os.kill(pid, signal.SIGKILL)


def test_a_recording_that_kills_twice_is_given_up(
    ears: Ears, alone: dict[str, list[object]], recordings: dict[str, str], tmp_path: Path
) -> None:
    """One sentence in its place; its neighbours are heard."""
    poison = tmp_path / "poison.wav"
    soundfile.write(poison, np.random.default_rng(0).normal(0, 0.1, 1800 * RATE_HZ), RATE_HZ)
    street = recordings["street.wav"]
    stop = threading.Event()
    killer = threading.Thread(target=kill_whoever_hears, args=(poison, stop))
    killer.start()
    try:
        with equipped(ears) as workers:
            heard = workers.hear([street, str(poison), street])
            told = [taken(said) for _, said in heard]
    finally:
        stop.set()
        killer.join()
    assert told[0] == told[2] == alone[street]
    assert told[1][-1] == (
        InputError,
        f"{poison}: 2 processes that heard it were killed (SIGKILL); it is given up",
    )


def test_workers_that_cannot_begin_are_not_started_for_ever(
    ears: Ears, recordings: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it is that ends them."""
    (tmp_path / "soundfile.py").write_text("import os; os._exit(7)")
    monkeypatch.syspath_prepend(tmp_path)
    with (
        pytest.raises(EdgetagError, match="ended with exit code 7 as they begin"),
        equipped(ears) as workers,
    ):
        next(next(workers.hear([recordings["street.wav"]]))[1])


def test_a_bundle_that_was_replaced_meanwhile_hears_nothing(ears: Ears, recordings: dict[str, str]) -> None:
    """Half a replay by one bundle and half by another would be neither's."""
    with (
        pytest.raises(BundleError, match="another bundle than it was"),
        equipped(ears._replace(sha256="0" * 64)) as workers,
    ):
        next(next(workers.hear([recordings["street.wav"]]))[1])


BLOCKED = """
from pathlib import Path
from edgetag.workers import Workers

if __name__ == "__main__":
    with Workers(2) as workers:
        for worker in workers._workers:
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
            print(int(status.partition("SigBlk:")[2].split()[0], 16))
"""


def test_no_worker_ever_sees_an_interrupt(tmp_path: Path) -> None:
    """A Ctrl-C goes to everybody at the terminal; not even the first process of all is to say so."""
    script = tmp_path / "blocked.py"
    script.write_text(BLOCKED)
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=60)
    masks = [int(line) for line in said.stdout.split()]
    assert len(masks) == 2
    assert all(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


def test_nobody_is_left(ears: Ears, recordings: dict[str, str]) -> None:
    """Whoever stops in the middle has ended all of them."""
    before = pids()
    with contextlib.suppress(KeyboardInterrupt), equipped(ears) as workers:
        next(next(workers.hear([recordings["long.flac"]]))[1])
        raise KeyboardInterrupt
    assert pids() == before
