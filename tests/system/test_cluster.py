"""`edgetag replay --cluster`, with a real scheduler and real workers on this machine."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import psutil
import pytest
import soundfile

from fakes_bundle import write_bundle
from fakes_cli import peak_mb, refused

RATE_HZ = 8000
WAIT_S = 60
SENSOR = "archive"
_DEATHS = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}  # fewer than the usual three
N = 12


class Cluster:
    """A scheduler, and workers of one thread each, with nannies that replace those that die.

    Args:
        folder: theirs.
        n_workers: how many.
        env: of the scheduler, of the workers.
    """

    def __init__(self, folder: Path, n_workers: int = 2, **env: dict[str, str]) -> None:
        self._folder, self._n_workers, self._env = folder, n_workers, env
        self._file = folder / "scheduler.json"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        wait_for(self._file.exists)
        for _ in range(self._n_workers):
            self.nanny = self._start("worker", "--nthreads", "1", "--local-directory", str(self._folder))
        wait_for(lambda: len(self.workers()) == self._n_workers)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait(WAIT_S)

    @property
    def address(self) -> str:
        address: str = json.loads(self._file.read_text())["address"]
        return address

    def workers(self) -> list[psutil.Process]:
        """The processes that hear: below the nannies."""
        found = []
        for nanny in self._processes[1:]:
            with contextlib.suppress(psutil.Error):
                children = psutil.Process(nanny.pid).children()
                found += [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        return found

    def _start(self, what: str, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "dask", what]
        options = ["--scheduler-file", str(self._file), "--no-dashboard", *arguments]
        with (self._folder / f"{what}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, *options],
                cwd=self._folder,
                env=os.environ | _DEATHS | self._env.get(what, {}),
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process


def wait_for(happens: Any) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not happens():
        assert time.monotonic() < deadline_s, "it does not happen"
        time.sleep(0.02)


# -- what is there to be heard -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and an archive of recordings, of which some are bad."""
    folder = tmp_path_factory.mktemp("cluster")
    write_bundle(folder / "bundle", [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})
    rng = np.random.default_rng(0)
    for k in range(N):
        (folder / f"archive/{k % 3}").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"archive/{k % 3}/{k}.FLAC", rng.normal(0, 0.1, (12 + k) * RATE_HZ), RATE_HZ)
    (folder / "archive/0/notes.txt").write_text("no recording")
    (folder / "bad").mkdir()
    (folder / "bad/text.wav").write_text("hello " * 100)
    soundfile.write(folder / "bad/cut.flac", rng.normal(0, 0.1, 30 * RATE_HZ), RATE_HZ)
    (folder / "bad/whole.flac").write_bytes((folder / "bad/cut.flac").read_bytes())
    (folder / "bad/cut.flac").write_bytes((folder / "bad/whole.flac").read_bytes()[:250_000])
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


def command(folder: Path, *arguments: object) -> list[str]:
    fixed = ["replay", "--bundle", str(folder / "bundle"), "--sensor", SENSOR]
    return [sys.executable, "-m", "edgetag", *fixed, *map(str, arguments)]


def replay(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def counts(done: subprocess.CompletedProcess[str]) -> tuple[int, ...]:
    """Recordings heard, heard before, failed."""
    found = re.fullmatch(r"(\S+) recordings heard \(.* h\), (\S+) heard before, (\S+) failed\n", done.stdout)
    assert found is not None, done.stdout + done.stderr
    return tuple(int(n.replace(",", "")) for n in found.groups())


def events(text: str) -> list[dict[str, Any]]:
    """All but what is of a process by nature, and the number, which begins anew in every file."""
    found = [json.loads(line) for line in text.splitlines()]
    return [{key: event[key] for key in event if key not in ("boot", "lag_s", "seq")} for event in found]


def written(out: Path) -> dict[str, str]:
    """Files of events by name."""
    paths = [path for path in out.rglob("*.jsonl") if path.name != "failed.jsonl"]
    return {str(path.relative_to(out)): path.read_text() for path in paths}


# -- the laws ------------------------------------------------------------------------------------------------


def test_events_are_those_of_a_plain_replay(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """A file a recording, by its own name; numbered from 0, each with a boot of its own."""
    done = replay(folder, "--cluster", cluster.address, "--out", tmp_path / "out", "archive")
    assert (done.returncode, done.stderr, counts(done)) == (0, "", (N, 0, 0))
    files = written(tmp_path / "out")
    assert set(files) == {f"archive/{k % 3}/{k}.FLAC.jsonl" for k in range(N)}
    plain = events(replay(folder, *sorted(name.removesuffix(".jsonl") for name in files)).stdout)
    for name, text in files.items():
        from_1970 = [event | {"start": "", "end": ""} for event in events(text)]
        here = [event | {"start": "", "end": ""} for event in plain if f"{event['source']}.jsonl" == name]
        assert from_1970 == here
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["seq"] for line in lines] == list(range(len(lines)))
        assert lines[0]["start"] == "1970-01-01T00:00:00.000Z"
    assert len({json.loads(text.splitlines()[0])["boot"] for text in files.values()}) == N
    assert not any((tmp_path / "out/.partial").iterdir())


def test_what_is_done_is_not_done_again(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """The second time only what is missing, or cut short by a loss of power, is heard, to the same bytes."""
    arguments = "--cluster", cluster.address, "--out", tmp_path / "out", "archive"
    replay(folder, *arguments)
    before = written(tmp_path / "out")
    (tmp_path / "out/archive/0/0.FLAC.jsonl").unlink()
    (tmp_path / "out/archive/1/1.FLAC.jsonl").write_text("")
    (tmp_path / "out/archive/2/2.FLAC.jsonl").write_text(before["archive/2/2.FLAC.jsonl"][:-10])
    untouched = (tmp_path / "out/archive/0/3.FLAC.jsonl").stat().st_ino
    assert counts(replay(folder, *arguments)) == (3, N - 3, 0)
    after = written(tmp_path / "out")
    assert [*map(events, after.values())] == [*map(events, before.values())]
    assert boots(after) == boots(before)
    assert (tmp_path / "out/archive/0/3.FLAC.jsonl").stat().st_ino == untouched


def boots(files: dict[str, str]) -> dict[str, str]:
    return {name: json.loads(text.splitlines()[0])["boot"] for name, text in files.items()}


def test_another_run_has_another_folder_or_begins_again(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    """Another hop: refused with what differs; `--again` hears all of it, also when it is resumed."""
    arguments = "--cluster", cluster.address, "--out", tmp_path / "out", "archive/0"
    replay(folder, *arguments)
    before = written(tmp_path / "out")
    refused(replay(folder, *arguments, "--hop", "10"), 2, "now with hop_s 10.0 instead of 5.0", "--again")
    assert written(tmp_path / "out") == before
    assert counts(replay(folder, *arguments, "--hop", "10", "--again")) == (4, 0, 0)
    after = written(tmp_path / "out")
    assert set(boots(after).values()).isdisjoint(boots(before).values())
    # As if it had been interrupted: one of the earlier run's is still there.
    (tmp_path / "out/archive/0/3.FLAC.jsonl").write_text(before["archive/0/3.FLAC.jsonl"])
    assert counts(replay(folder, *arguments, "--hop", "10")) == (1, 3, 0)
    assert boots(written(tmp_path / "out")) == boots(after)


def test_bad_recordings_are_listed_and_tried_again(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """What could be tagged of one lies apart, until it is mended."""
    out = tmp_path / "out"
    arguments = "--cluster", cluster.address, "--out", out, "bad", "none.wav", "archive/0"
    for n_known in 0, 5:
        done = replay(folder, *arguments)
        assert (done.returncode, counts(done)) == (2, (5 - n_known, n_known, 3))
        assert done.stderr == f"edgetag: 3 could not be tagged, or not whole: {out / 'failed.jsonl'}\n"
        failed = {json.loads(line)["file"]: line for line in (out / "failed.jsonl").read_text().splitlines()}
        assert set(failed) == {"bad/text.wav", "bad/cut.flac", "none.wav"}
        assert "no audio is found" in failed["bad/text.wav"]
        assert "could be decoded" in failed["bad/cut.flac"]
        assert "there is no such file" in failed["none.wav"]
    assert {name for name in written(out) if "bad" in name} == {
        "bad/whole.flac.jsonl",
        "bad/cut.flac.damaged.jsonl",
    }
    cut = (folder / "bad/cut.flac").read_bytes()
    try:
        (folder / "bad/cut.flac").write_bytes((folder / "bad/whole.flac").read_bytes())
        assert counts(replay(folder, *arguments)) == (1, 5, 2)
        assert "bad/cut.flac.damaged.jsonl" not in written(out)
        assert "bad/cut.flac.jsonl" in written(out)
    finally:
        (folder / "bad/cut.flac").write_bytes(cut)


def test_lists_and_absolute_names(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """`@LIST` names recordings, a line each; they lie where `tar` would put them."""
    (folder / "sub").mkdir()
    (tmp_path / "list").write_text(
        f"archive/0/0.FLAC\n\n{folder}/archive/1/1.FLAC\nsub/../archive/2/2.FLAC\n"
    )
    done = replay(folder, "--cluster", cluster.address, "--out", tmp_path / "out", f"@{tmp_path / 'list'}")
    assert (done.returncode, counts(done)) == (0, (3, 0, 0))
    root = str(folder).lstrip("/")
    assert set(written(tmp_path / "out")) == {
        "archive/0/0.FLAC.jsonl",
        f"{root}/archive/1/1.FLAC.jsonl",
        f"{root}/archive/2/2.FLAC.jsonl",
    }


# -- what dies -----------------------------------------------------------------------------------------------


def long_archive(folder: Path, n: int = 40) -> Path:
    """Some seconds of work."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    for k in range(n):
        soundfile.write(folder / f"{k}.wav", rng.normal(0, 0.1, 30 * RATE_HZ), RATE_HZ)
    return folder


def test_a_worker_that_is_killed_loses_nothing(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """In the middle of its work: others do it."""
    archive, out = long_archive(tmp_path / "long"), tmp_path / "out"
    with subprocess.Popen(
        command(folder, "--cluster", cluster.address, "--out", out, archive),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(lambda: len(written(out)) > 3)
        cluster.workers()[0].kill()
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0
    assert " 0 failed" in said
    assert len(written(out)) == 40
    assert not any((out / ".partial").iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed(
    cluster: Cluster, folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """130, quietly; no half file is left, and the rest is heard the next time."""
    archive, out = long_archive(tmp_path / "long"), tmp_path / "out"
    arguments = "--cluster", cluster.address, "--out", out, archive
    process = subprocess.Popen(
        command(folder, *arguments),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job's is ignored
    )
    wait_for(lambda: len(written(out)) > 3)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=WAIT_S)
    assert (process.returncode, stderr) == (130, "")
    n_heard, n_known, n_failed = counts(replay(folder, *arguments))
    assert (n_heard + n_known, n_failed) == (40, 0)
    assert n_heard > 0
    assert n_known > 0
    assert len(written(out)) == 40


def kill_whoever_hears(cluster: Cluster, file: Path, stop: threading.Event) -> None:
    while not stop.wait(0.001):
        for worker in cluster.workers():
            with contextlib.suppress(psutil.Error):
                if any(opened.path == str(file) for opened in worker.open_files()):
                    worker.kill()


def test_a_recording_that_kills_workers_is_given_up(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """Listed; those that were on the same workers are heard."""
    archive, out = long_archive(tmp_path / "long", 6), tmp_path / "out"
    soundfile.write(archive / "3.wav", np.random.default_rng(0).normal(0, 0.1, 1800 * RATE_HZ), RATE_HZ)
    stop = threading.Event()
    killer = threading.Thread(target=kill_whoever_hears, args=(cluster, archive / "3.wav", stop))
    killer.start()
    try:
        done = replay(folder, "--cluster", cluster.address, "--out", out, archive)
    finally:
        stop.set()
        killer.join()
    assert done.returncode == 2
    (line,) = (out / "failed.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == str(archive / "3.wav")
    assert "2 workers died over it; it is given up" in line
    assert len(written(out)) == 5


# -- clusters that are none ----------------------------------------------------------------------------------


def test_what_a_worker_does_not_see(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """It is told, instead of an archive of missing files. Each process has its own /proc/self."""
    soundfile.write(folder / "street.wav", np.zeros(11 * RATE_HZ), RATE_HZ)
    done = replay(folder, "--cluster", cluster.address, "--out", tmp_path / "a", "/proc/self/cwd/street.wav")
    refused(done, 2, "/proc/self/cwd/street.wav is not seen by a worker")
    done = replay(folder, "--cluster", cluster.address, "--out", "/proc/self/cwd/out", "street.wav")
    refused(done, 2, "does not see /proc/self/cwd/out", "all workers share")


def test_no_scheduler(folder: Path, tmp_path: Path) -> None:
    """A port nobody listens on; no address at all."""
    done = replay(folder, "--cluster", "tcp://127.0.0.1:1", "--out", tmp_path / "out", "archive")
    refused(done, 4, "tcp://127.0.0.1:1: no scheduler answers", "dask scheduler")
    for address in "localhost", "http://localhost:8786", "tcp://host", "tcp://host:port":
        refused(
            replay(folder, "--cluster", address, "--out", tmp_path / "out", "archive"), 2, "tcp://HOST:PORT"
        )
    refused(replay(folder, "--cluster", "tls://127.0.0.1:1", "--out", tmp_path / "out", "archive"), 4)


def test_workers_of_another_version(folder: Path, tmp_path: Path) -> None:
    """Their events would be another edgetag's."""
    other = tmp_path / "edgetag-0.0.9.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: edgetag\nVersion: 0.0.9\n")
    with Cluster(tmp_path / "dask", 1, worker={"PYTHONPATH": str(tmp_path)}) as cluster:
        done = replay(folder, "--cluster", cluster.address, "--out", tmp_path / "out", "archive")
    refused(done, 2, "has edgetag 0.0.9, this is", "install the same")
    assert written(tmp_path / "out") == {}


@pytest.mark.system
@pytest.mark.parametrize("who", ["scheduler", "worker"])
def test_processes_without_edgetag(folder: Path, tmp_path: Path, who: str) -> None:
    """What they lack is named."""
    (tmp_path / "edgetag.py").write_text("raise ModuleNotFoundError(\"No module named 'edgetag'\")")
    with Cluster(tmp_path / "dask", 1, **{who: {"PYTHONPATH": str(tmp_path)}}) as cluster:
        done = replay(folder, "--cluster", cluster.address, "--out", tmp_path / "out", "archive")
    refused(done, 2, "the cluster cannot run edgetag", "No module named 'edgetag'", "pip install")


@pytest.mark.system
def test_a_scheduler_that_goes(folder: Path, tmp_path: Path) -> None:
    """What is done is done; with another one it goes on."""
    archive, out = long_archive(tmp_path / "long"), tmp_path / "out"
    with Cluster(tmp_path / "dask", 1) as cluster:
        process = subprocess.Popen(
            command(folder, "--cluster", cluster.address, "--out", out, archive),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(lambda: len(written(out)) > 1)
        cluster.scheduler.kill()
        stdout, stderr = process.communicate(timeout=WAIT_S)
        said = subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
        refused(said, 4, f"{cluster.address} is lost", "begin again to go on")
    with Cluster(tmp_path / "other", 1) as cluster:
        n_heard, n_known, _ = counts(replay(folder, "--cluster", cluster.address, "--out", out, archive))
    assert n_known > 1
    assert n_heard + n_known == 40


@pytest.mark.system
def test_a_scheduler_without_workers(folder: Path, tmp_path: Path) -> None:
    """Nobody would ever hear."""
    with Cluster(tmp_path / "dask", 0) as cluster:
        done = replay(folder, "--cluster", cluster.address, "--out", tmp_path / "out", "archive")
    refused(done, 4, "has no workers", "dask worker tcp://")


WITHOUT_DASK = "import sys; sys.modules['distributed'] = None; from edgetag.cli import main; main()"


def test_without_dask(folder: Path, tmp_path: Path) -> None:
    """What to install."""
    arguments = ["replay", "--cluster", "tcp://127.0.0.1:1", "--out", str(tmp_path), "archive"]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DASK, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    refused(done, 2, "Dask", "pip install 'edgetag[cluster]'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cluster", "tcp://127.0.0.1:1"],
        ["--out", "out"],
        ["--again"],
        ["--cluster", "tcp://127.0.0.1:1", "--out", "out", "--jobs", "2"],
        ["--cluster", "tcp://127.0.0.1:1", "--out", "out", "--format", "csv"],
        ["--cluster", "tcp://127.0.0.1:1", "--out", "out", "--start", "2026-11-22T10:00:00Z"],
    ],
)
def test_options_that_do_not_go_together(folder: Path, arguments: list[str]) -> None:
    """Told before anything is begun."""
    refused(replay(folder, *arguments, "archive"), 2, "--cluster", "--out")


# -- memory --------------------------------------------------------------------------------------------------


def test_the_client_does_not_grow_with_the_archive(cluster: Cluster, folder: Path, tmp_path: Path) -> None:
    """Twenty thousand names cost no more than two hundred."""

    def peak(n: int) -> float:
        (tmp_path / f"{n}").write_text("archive/0/0.FLAC\n" * n)
        arguments = "--cluster", cluster.address, "--out", tmp_path / "out", f"@{tmp_path / str(n)}"
        return peak_mb(command(folder, *arguments), folder)

    assert peak(20_000) < peak(200) + 5
