"""Fill stores in parallel processes: items in, rows on disk; resumed where a run was cut off."""

import errno
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np
import structlog
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from edgetag.contract.errors import EdgetagError, InputError
from edgetag_train.data.sounds import Sound
from edgetag_train.data.store import Store, locked

log = structlog.get_logger("edgetag.train")
Draw = Callable[[int], Sequence[Sound]]
"""From an item's number to its windows. Raises `InputError` where they cannot be read."""
Measure = Callable[[Sound], NDArray[Any]]
"""From a window to its row."""
_CHUNK_ITEMS = 8
_FLUSH_S = 2.0
_LOG_S = 30.0
_N_NAMED = 10
_FULL = {errno.ENOSPC, errno.EDQUOT}
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A store and how one of its rows is computed; `measure` is called once in each process."""

    store: Store
    measure: Callable[[], Measure]


def fill(jobs: Sequence[Job], open_source: Callable[[], Draw], what: str) -> None:
    """Compute every row that is missing. All stores hold the same items; each is drawn once for all of them.

    Args:
        jobs: what to compute.
        open_source: reads what windows are drawn from; called only if something is missing.
        what: the items' name for people.

    Raises:
        InputError: the disk has no room (nothing new is left on it), or items cannot be read (all others are
            computed and kept).
        EdgetagError: a process was killed from outside; what was computed is kept.
    """
    if all(job.store.done().all() for job in jobs):
        return
    stores = [job.store for job in jobs]
    try:
        with locked(stores):
            done = _reserve(stores)
            partial = [(job, flags) for job, flags in zip(jobs, done, strict=True) if not flags.all()]
            faults = _compute(*zip(*partial, strict=True), open_source(), what) if partial else {}
    except OSError as error:
        raise _no_room(error, stores) from error
    if faults:
        raise InputError(_sentence(faults, what))


def _reserve(stores: Sequence[Store]) -> list[NDArray[np.bool_]]:
    """Room for all of them, or for none that is new; which items each holds."""
    done: list[NDArray[np.bool_]] = []
    try:
        for store in stores:
            done.append(store.reserve())  # noqa: PERF401  # those before a failure are known by it
    except OSError:
        for reserved, flags in zip(stores, done, strict=False):
            if not flags.any():
                reserved.remove()
        raise
    return done


def _no_room(error: OSError, stores: Sequence[Store]) -> InputError:
    cache = stores[0].cache
    if error.errno not in _FULL:
        return InputError(f"features cannot be kept under {cache} ({error.strerror}); choose with --cache")
    need = sum(store.n_bytes for store in stores if not store.done().any())
    free = shutil.disk_usage(cache).free
    return InputError(
        f"the features need {_size(need)} and {cache} has {_size(free)} free; put them elsewhere with --cache"
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def _compute(jobs: Sequence[Job], done: Sequence[NDArray[np.bool_]], draw: Draw, what: str) -> dict[int, str]:
    """Compute in processes what is not done; the faults of the items that could not be drawn, by item."""
    missing = np.flatnonzero(~np.logical_and.reduce(done))
    faults: dict[int, str] = {}
    workers = min(n_processes(), len(missing))
    # Forked: the sounds that scenes are mixed from are hundreds of megabytes that no process should copy.
    pool = ProcessPoolExecutor(workers, get_context("fork"), _start, (jobs, draw, os.getpid()))
    try:
        futures = [pool.submit(_work, chunk.tolist()) for chunk in _chunks(missing, workers)]
        with _progress(what, len(missing)) as advance, _marking(jobs, done) as mark:
            for future in as_completed(futures):
                computed, found = future.result()
                faults |= found
                mark(computed)
                advance(len(computed) + len(found))
    except BrokenProcessPool as error:
        raise EdgetagError(
            "a process that computes features was killed, perhaps for want of memory; what it had done is "
            "kept: run again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
    return faults


def n_processes() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(missing: NDArray[np.intp], workers: int) -> list[NDArray[np.intp]]:
    size = max(1, min(_CHUNK_ITEMS, len(missing) // workers))
    return np.array_split(missing, -(-len(missing) // size))


@contextmanager
def _marking(
    jobs: Sequence[Job], done: Sequence[NDArray[np.bool_]]
) -> Iterator[Callable[[Sequence[int]], None]]:
    """Flags are written every few seconds and at the end, whatever ends it: a kill costs seconds of work."""
    written_s = time.monotonic()

    def write() -> None:
        for job, flags in zip(jobs, done, strict=True):
            job.store.mark(flags)

    def mark(items: Sequence[int]) -> None:
        nonlocal written_s
        for flags in done:
            flags[items] = True
        if time.monotonic() - written_s > _FLUSH_S:
            write()
            written_s = time.monotonic()

    try:
        yield mark
    finally:
        write()


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar where somebody watches, else a log line every half minute."""
    if not sys.stderr.isatty():
        yield _logging(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)


def _logging(what: str, total: int) -> Callable[[int], None]:
    started_s = logged_s = time.monotonic()
    n_done = 0

    def advance(n: int) -> None:
        nonlocal n_done, logged_s
        n_done += n
        now_s = time.monotonic()
        if now_s - logged_s > _LOG_S:
            logged_s = now_s
            left_s = (total - n_done) * (now_s - started_s) / n_done
            log.info("computing features", of=what, done=n_done, total=total, left_s=round(left_s))

    return advance


def _sentence(faults: Mapping[int, str], what: str) -> str:
    named = "; ".join(fault for _, fault in sorted(faults.items())[:_N_NAMED])
    more = f"; and {len(faults) - _N_NAMED} more" if len(faults) > _N_NAMED else ""
    return f"{len(faults)} of the {what} cannot be used: {named}{more} (the others are computed and kept)"


@dataclass(frozen=True)
class _Worker:
    stores: tuple[Store, ...]
    measures: tuple[Measure, ...]
    draw: Draw


_worker: _Worker


def _start(jobs: Sequence[Job], draw: Draw, parent: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    threadpool_limits(1)  # one process a core already: more threads would only wait for each other
    _worker = _Worker(tuple(job.store for job in jobs), tuple(job.measure() for job in jobs), draw)


def _end_with(parent: int) -> None:
    """A killed parent leaves its children waiting for work, with its locks: they end themselves."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _work(items: Sequence[int]) -> tuple[list[int], dict[int, str]]:
    """Compute some items' rows and write them: which were computed, and what was wrong with the others."""
    computed: list[int] = []
    faults: dict[int, str] = {}
    for item in items:
        try:
            windows = _worker.draw(item)
        except InputError as error:
            faults[item] = str(error)
            continue
        for store, measure in zip(_worker.stores, _worker.measures, strict=True):
            store.write(item, np.stack([measure(window) for window in windows]))
        computed.append(item)
    return computed, faults
