"""What the workers of a cluster do: hear a batch of recordings, and write each one's events to its place.

A worker needs edgetag of the client's version, and has to see the recordings and the output folder where the
client does. The bundle is brought to it.
"""

import ctypes
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import structlog
from distributed import Worker, WorkerPlugin, get_worker

from edgetag.capture.file import open_recording
from edgetag.cluster.run import Failure, Output, Run, writing
from edgetag.contract.errors import EdgetagError, InputError, OutputError
from edgetag.daemon import run
from edgetag.tagging.atomic import replacing
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import Tagger, hop_samples

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.cluster")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_own = threading.local()  # a tagger is not for two threads at once


class Order(NamedTuple):
    """What is to be done with recordings.

    Attributes:
        run: by what they are heard.
        folder: where their events are to be.
        origin: the folder that relative names start from.
    """

    run: Run
    folder: Path
    origin: Path


class Outcome(NamedTuple):
    """What a batch came to.

    Attributes:
        n_heard, audio_s: recordings that were heard whole, and how much audio that was.
        n_known: recordings that had been heard before.
        failures: the others.
        wall_s: how long it took, without loading the bundle.
    """

    n_heard: int = 0
    audio_s: float = 0.0
    n_known: int = 0
    failures: Sequence[Failure] = ()
    wall_s: float = 0.0


class Bringer(WorkerPlugin):  # type: ignore[misc] # Dask's types are not followed
    """Brings a bundle to every worker, also to those that come later."""

    def __init__(self, archive: bytes, sha256: str) -> None:
        self._archive, self._sha256 = archive, sha256

    def setup(self, worker: Worker) -> None:
        """Leave it in the worker's own folder, which goes with the worker."""
        _keep_memory()
        path = _bundle_path(worker, self._sha256)
        with writing(path), replacing(path) as stream:
            stream.write(self._archive)
        self._archive = b""


def hear_batch(order: Order, names: list[str]) -> Outcome:
    """Hear those recordings that have not been heard in this run, each into a file of its own.

    Raises:
        InputError: the worker is not fit for it: another version, or it does not see the output folder.
        BundleError: the bundle does not run correctly on it.
        OutputError: events cannot be written.
    """
    output = Output(order.folder)
    tagger = _tagger(order, output)
    began_s = time.perf_counter()
    n_known, durations_s, failures = 0, list[float](), list[Failure]()
    for name in names:
        if output.is_done(order.run, name):
            n_known += 1
        elif isinstance(heard := _hear(order, output, tagger, name), Failure):
            failures.append(heard)
        else:
            durations_s.append(heard)
    return Outcome(
        len(durations_s), sum(durations_s), n_known, failures, wall_s=time.perf_counter() - began_s
    )


def _hear(order: Order, output: Output, tagger: Tagger, name: str) -> float | Failure:
    """Seconds of audio, all of it heard, or why not."""
    which, path = order.run, str(order.origin / name)
    label = os.fsencode(name).decode("utf-8", "replace")
    stream = EventStream(tagger, sensor=which.sensor, conditions=which.conditions, boot=which.boot(name))
    with output.draft() as draft:
        try:
            with open_recording(path) as source:
                summary = run(
                    source,
                    stream,
                    draft,
                    hop_samples=hop_samples(which.info.hop_s),
                    start_utc_s=0.0,
                    label=label,
                )
            summary.check(path)
        except OutputError:
            raise
        except Exception as error:
            if not isinstance(error, EdgetagError):
                _log.exception("recording.failed", file=path)
            if stream.n_events:
                draft.keep(output.damaged_of(name))
            return Failure(label, _reason(error, path), is_missing=_is_missing(path))
        draft.keep(output.events_of(name))
    with writing(output.damaged_of(name)):
        output.damaged_of(name).unlink(missing_ok=True)
    return summary.audio_s


def _keep_memory() -> None:
    """Have glibc keep what is free: Dask's nannies make it give everything back at once, and then the same
    arrays are mapped anew for every window, which costs a quarter more CPU time.
    """
    with suppress(AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**26)


def _reason(error: Exception, path: str) -> str:
    if isinstance(error, EdgetagError):
        return str(error)
    return f"{path}: hearing it failed ({type(error).__name__})"


def _is_missing(path: str) -> bool:
    try:
        Path(path).stat()
    except (OSError, ValueError) as error:
        return isinstance(error, FileNotFoundError)
    return False


def _tagger(order: Order, output: Output) -> Tagger:
    """The run's, loaded once in every thread that hears."""
    info, worker = order.run.info, get_worker()
    if version("edgetag") != info.edgetag:
        raise InputError(
            f"the worker {worker.address} has edgetag {version('edgetag')}, this is {info.edgetag}; "
            "install the same on all"
        )
    found = output.run()
    if found is None or found.id != order.run.id:
        raise InputError(
            f"the worker {worker.address} does not see {order.folder}; "
            "the output folder must be one that all workers share"
        )
    key = info.bundle_sha256, info.variant
    if getattr(_own, "key", None) != key:
        _own.tagger = Tagger.load(_bundle_path(worker, info.bundle_sha256), info.variant)
        _own.key = key
    tagger: Tagger = _own.tagger
    return tagger


def _bundle_path(worker: Worker, sha256: str) -> Path:
    return Path(worker.local_directory) / f"edgetag-{sha256}.zip"
