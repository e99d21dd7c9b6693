"""Spreads recordings over the workers of a Dask cluster, and keeps account of them.

Nothing here grows with the archive: names are read as they are needed, in batches that take some two seconds
each, and no more batches are on their way than keep all workers busy.
"""

import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from distributed import Client, as_completed
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.scheduler import KilledWorker

from edgetag.cluster.run import Failure, Output
from edgetag.cluster.worker import Bringer, Order, Outcome, hear_batch
from edgetag.contract.errors import EdgetagError, InputError, NetworkError

SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3"})
CONNECT_S = 10.0
BATCH_S = 2.0
MAX_BATCH = 256
_BATCHES_PER_THREAD = 3  # one that is heard, one that waits beside it, one on its way


@dataclass
class Totals:
    """Recordings so far: heard, heard before and not to be heard; and audio of the first."""

    n_heard: int = 0
    n_known: int = 0
    n_failed: int = 0
    audio_s: float = 0.0

    def __str__(self) -> str:
        """
        >>> str(Totals(n_heard=2, n_failed=1, audio_s=7200))
        '2 recordings heard (2.0 h), 0 heard before, 1 failed'
        """
        heard = f"{self.n_heard:,} recordings heard ({self.audio_s / 3600:,.1f} h)"
        return f"{heard}, {self.n_known:,} heard before, {self.n_failed:,} failed"

    def add(self, outcome: Outcome) -> None:
        self.n_heard += outcome.n_heard
        self.n_known += outcome.n_known
        self.n_failed += len(outcome.failures)
        self.audio_s += outcome.audio_s


def recordings(given: Iterable[str]) -> Iterator[str]:
    """Names of recordings: files as they are given, those in folders, those in lists (`@FILE`, a line each).

    A name with `..` in it is made absolute: it is to have a place below the output folder.

    Raises:
        InputError: a folder or a list cannot be read, or `-` is among them.
    """
    for name in given:
        if name == "-":
            raise InputError("standard input (-) is no file that workers could read; leave --cluster out")
        if name.startswith("@"):
            yield from map(_placed, _listed(Path(name[1:])))
        elif Path(name).is_dir():
            yield from map(_placed, _found(name))
        else:
            yield _placed(name)


def _placed(name: str) -> str:
    return os.path.normpath(Path.cwd() / name) if ".." in Path(name).parts else name


def _listed(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8", errors="surrogateescape") as lines:
            yield from filter(None, (line.rstrip("\r\n") for line in lines))
    except OSError as error:
        raise InputError(f"{file}: the list cannot be read ({error.strerror})") from error


def _found(folder: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise InputError(f"{error.filename}: the folder cannot be read ({error.strerror})") from error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        paths = (Path(parent, file) for file in sorted(files))
        yield from (str(path) for path in paths if path.suffix.lower() in SUFFIXES)


def spread(
    address: str, order: Order, archive: bytes, names: Iterable[str], note: Callable[[Totals], None]
) -> Totals:
    """Have recordings heard by the workers of a cluster.

    Args:
        address: of the scheduler, `tcp://HOST:PORT` or `tls://…`, with certificates as Dask is configured.
        order: what is to be done; its folder has begun this run.
        archive: the bundle.
        names: of the recordings.
        note: told of the totals whenever they change.

    Raises:
        InputError: the address is none; a worker is not fit for it, or does not see what is seen here.
        BundleError: the bundle does not run correctly on a worker.
        NetworkError: the scheduler cannot be reached, or is lost; what is done is done.
        OutputError: events or failures cannot be written.
    """
    output, totals = Output(order.folder), Totals()
    with _quiet(), _connected(address) as client, _lasting(address):
        with _brought(client, Bringer(archive, order.run.info.bundle_sha256)), output.failures() as write:
            for outcome in _Batches(client, order, names).outcomes():
                for failure in outcome.failures:
                    _check_seen(order, failure)
                    write(failure)
                totals.add(outcome)
                note(totals)
        output.tidy()
    return totals


class _Batches:
    """Batches on their way to workers and back."""

    def __init__(self, client: Client, order: Order, names: Iterable[str]) -> None:
        self._client, self._order, self._names = client, order, iter(names)
        self._size = 1
        self._on_way: dict[str, list[str]] = {}
        self._done = as_completed(loop=client.loop)
        self._suspects: deque[str] = deque()  # one of them kills workers
        self._is_alone = False  # whether a suspect is all that is on its way

    def outcomes(self) -> Iterator[Outcome]:
        """What became of each, as it comes. Who may have killed workers is heard last, and alone."""
        while self._send():
            future = next(self._done)
            names = self._on_way.pop(future.key)
            try:
                outcome: Outcome = future.result()
            except KilledWorker as error:
                outcome = self._suspect(names, error.allowed_failures + 1)
            except Exception as error:
                if future.status == "error" and not isinstance(error, EdgetagError):
                    raise EdgetagError(f"a worker failed ({type(error).__name__}: {error})") from error
                raise
            else:
                self._size = _clamp(round(len(names) * BATCH_S / max(outcome.wall_s, 1e-3)))
            yield outcome

    def _send(self) -> bool:
        """Keep everybody busy; whether anything is on its way."""
        n_batches = _BATCHES_PER_THREAD * max(1, sum(self._client.nthreads().values()))
        while len(self._on_way) < n_batches and (names := list(islice(self._names, self._size))):
            self._submit(names)
        if not self._on_way and self._suspects:
            self._is_alone = True
            self._submit([self._suspects.popleft()])
        return bool(self._on_way)

    def _submit(self, names: list[str]) -> None:
        future = self._client.submit(hear_batch, self._order, names, pure=False)
        self._on_way[future.key] = names
        self._done.add(future)

    def _suspect(self, names: list[str], n_workers: int) -> Outcome:
        if self._is_alone:
            reason = f"{names[0]}: {n_workers} workers died over it; it is given up"
            return Outcome(failures=[Failure(names[0], reason)])
        self._suspects += names
        return Outcome()


def _clamp(size: int) -> int:
    return max(1, min(size, MAX_BATCH))


def _check_seen(order: Order, failure: Failure) -> None:
    """A worker that sees none of the recordings would be done with all of them soon."""
    path = order.origin / failure.file
    if failure.is_missing and path.exists():
        raise InputError(f"{path} is not seen by a worker; recordings must be where all workers see them")


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not (host and port and parts.scheme in ("tcp", "tls")):
        raise InputError(
            f"{address!r} is no scheduler's address; give tcp://HOST:PORT, as `dask scheduler` says it"
        )
    try:
        socket.create_connection((host, port), CONNECT_S).close()
        client = Client(address, timeout=CONNECT_S, set_as_default=False)
    except OSError as error:
        raise NetworkError(
            f"{address}: no scheduler answers ({error.strerror or error}); start one with `dask scheduler`"
        ) from error
    except TypeError as error:
        raise InputError(f"{address} needs certificates; see Dask's `distributed.comm.tls`") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except TimeoutError as error:
            raise NetworkError(
                f"{address} has no workers; start some with `dask worker {address} --nthreads 1`"
            ) from error
        yield client


@contextmanager
def _quiet() -> Iterator[None]:
    """Dask's loggers say in many lines what is said here in one sentence."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _lasting(address: str) -> Iterator[None]:
    """What Dask raises when the scheduler goes is an error of ours."""
    try:
        yield
    except (FutureCancelledError, ClosedClientError, OSError) as error:
        raise NetworkError(f"{address} is lost; what is done is done: begin again to go on") from error


@contextmanager
def _brought(client: Client, bringer: Bringer) -> Iterator[None]:
    """The bundle on all workers, and a first task done: scheduler and workers can read what they are sent."""
    name = f"edgetag-{secrets.token_hex(4)}"
    try:
        client.register_plugin(bringer, name)
        client.submit(Outcome, pure=False).result()
    except (EdgetagError, FutureCancelledError, OSError):
        raise
    except Exception as error:  # whatever they lack; it may not even be an exception that we know
        raise InputError(
            f"the cluster cannot run edgetag ({_last_line(error)}); scheduler and workers need "
            f"`pip install 'edgetag[cluster]=={version('edgetag')}'`"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            client.unregister_worker_plugin(name)


def _last_line(error: Exception) -> str:
    """A cause's, where there is one: what another process could not do."""
    cause = error.__cause__ or error
    return (str(cause).splitlines() or [type(cause).__name__])[-1]
