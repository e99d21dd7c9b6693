"""What is to be delivered, in order, until it is settled: on the disk, or in memory while that has a fault.

```
whoever appends ──┐          ┌── backlog   what waits, and where
                  ├── thread ┤
whoever delivers ─┘          └── rows      the database
```
One thread owns the database. Nobody else waits for it longer than a moment: a card that hangs for a minute is
the microphone's no more than the network is.
"""

import contextlib
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import structlog

from edgetag.contract.errors import InputError, first_line
from edgetag.contract.event import OutboxHealth
from edgetag.delivery.backlog import Backlog, Portion
from edgetag.delivery.rows import BEFORE_ALL, Durability, Rows, Stored, is_damaged, is_held, not_ours
from edgetag.delivery.sink import Forwarded, Settled

MAX_BYTES = 200_000_000
MAX_MEMORY_BYTES = 20_000_000  # of messages in memory: all of them, or those that cannot be written
FILE_NAME = "outbox.db"
HANGS = "the disk does not answer"

_PATIENCE_S = 1.0
_READER_PATIENCE_S = 0.3
_HANGS = 10  # times as long as anybody waits is no answer
_BATCH = 50  # messages that are read at once, and are not given up for newer ones from then on
_MAX_SETTLED = 100  # before they are deleted; otherwise that waits for the next message's write
_MAX_SETTLED_S = 60.0
_CLOSE_S = 1.0

_T = TypeVar("_T")

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.outbox")


class Queued(NamedTuple):
    """A message whose turn it is; `waited_s` is None if it came to an earlier process."""

    id: int
    kind: Forwarded
    payload: bytes
    waited_s: float | None


class Outbox:
    """Keeps messages while it is entered, and beyond that in `file`.

    A damaged file is set aside as `<file>.damaged` and begun anew. One that cannot be opened or written (a
    full disk) is tried again with every message; until then up to 20 MB are kept in memory, the oldest of
    which go when there are more. Everything that is given up is counted.

    Args:
        file: the database, in a folder that is made if need be; None for memory only.
        durability: see `rows`; `memory` is as no file.
        max_bytes: of payloads; the oldest go when there are more, but not those that are on their way.
        monotonic: the clock of `waited_s`.
        patience_s: how long `append` waits for the disk at most.
        rows: opens the database.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        durability: Durability = "process_crash",
        max_bytes: int = MAX_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
        patience_s: float = _PATIENCE_S,
        rows: Callable[[Path | None, Durability, int | None], Rows] = Rows,
    ) -> None:
        self._file = None if durability == "memory" else file
        self._durability: Durability = "memory" if self._file is None else durability
        memory_bytes = min(max_bytes, MAX_MEMORY_BYTES)
        self._max_bytes = max_bytes if self._file else memory_bytes
        self._monotonic = monotonic
        self._patience_s = patience_s
        self._new_rows = rows
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="edgetag-outbox", daemon=True)
        self._began_s: float | None = None  # the job that the thread is at

        # The thread's own, once it runs:
        self._rows: Rows | None = None
        self._offset: int | None = None
        self._read_to = BEFORE_ALL

        # Shared, under the lock:
        self._lock = threading.Lock()
        self._backlog = Backlog(memory_bytes)
        self._writing: Future[None] | None = None  # asked for, and not begun
        self._tried_s = monotonic()
        self._fault = ""

        # The reader's own:
        self._batch: deque[Stored] = deque()
        self._reading: Future[list[Stored]] | None = None

    def __enter__(self) -> Self:
        """Open and check the database.

        Raises:
            InputError: another process has it.
        """
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            if is_held(error):
                raise InputError(
                    f"another edgetag has the outbox {self._file}: "
                    "every sensor needs a state directory of its own"
                ) from None
            self._attempt(self._open)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is to be written, if the disk is not slower than a second."""
        with self._lock:
            self._ask_to_write()
        self._jobs.put(None)
        self._thread.join(_CLOSE_S)

    @property
    def hangs(self) -> bool:
        """Whether the disk did not come back in time, at the end."""
        return self._thread.is_alive()

    # -- whoever has something to deliver --------------------------------------------------------------

    def append(self, kind: Forwarded, payload: bytes) -> None:
        """Keep a message. When this returns it is written, unless the disk has a fault or takes too long."""
        with self._lock:
            self._backlog.take(kind, self._monotonic(), payload)
            writing = self._ask_to_write()
        self._await(writing, self._patience_s)

    def health(self) -> OutboxHealth:
        """How much is kept, and what became of the rest."""
        fault = self.fault
        with self._lock:
            totals = self._backlog.totals
            return OutboxHealth(
                depth=self._backlog.depth,
                bytes=self._backlog.n_bytes,
                dropped=totals["dropped"],
                refused=totals["refused"],
                damaged=totals["damaged"],
                fault=fault,
            )

    @property
    def next_id(self) -> int:
        """Of the next message that is appended: greater than all before it."""
        with self._lock:
            return self._backlog.next_id

    @property
    def outlives_process(self) -> bool:
        """Whether what is kept is there for the next process."""
        return self._file is not None and not self.fault

    @property
    def depth(self) -> int:
        """Messages that are not settled."""
        with self._lock:
            return self._backlog.depth

    @property
    def fault(self) -> str:
        """Why messages are in memory only; "" if they are on the disk, or not meant to be."""
        with self._lock:
            return self._fault or (HANGS if self._busy_s() > _HANGS * self._patience_s else "")

    # -- whoever delivers --------------------------------------------------------------------------------

    def next(self) -> Queued | None:
        """The oldest message that was not given since the last `rewind`.

        None if there is none, or if the disk takes its time: then it is worth asking again.
        """
        if not self._batch:
            self._batch.extend(self._fetched())
        if not self._batch:
            self._tidy()
            return None
        message = self._batch.popleft()
        waited_s = self._monotonic() - message.since_s if message.id > 0 else None
        return Queued(message.id, message.kind, message.payload, waited_s)

    def settle(self, settled: Settled) -> None:
        """What became of a message that was given: it is not given again."""
        with self._lock:
            self._backlog.settle(settled)
        self._tidy()

    def rewind(self) -> None:
        """Give everything again that is not settled, from the oldest on."""
        self._batch.clear()
        self._reading = None
        self._await(self._ask(self._rewind), _READER_PATIENCE_S)

    def _fetched(self) -> list[Stored]:
        if self._reading is None:
            self._reading = self._ask(self._read)
        if not self._await(self._reading, _READER_PATIENCE_S):
            return []
        reading, self._reading = self._reading, None
        return reading.result()

    def _tidy(self) -> None:
        """Delete what is settled, now and then; as a rule that is done when the next message is written."""
        with self._lock:
            n_due = self._backlog.n_to_write
            is_much = n_due >= _MAX_SETTLED and not self._fault
            if is_much or (n_due and self._monotonic() - self._tried_s > _MAX_SETTLED_S):
                self._ask_to_write()

    # -- asking the thread ---------------------------------------------------------------------------------

    def _ask(self, job: Callable[[], _T]) -> "Future[_T]":
        """Have something done by the thread, in order."""
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(job())
            except Exception as error:  # a fault of ours must not end the delivery
                _log.exception("outbox.failed")
                future.set_exception(error)

        self._jobs.put(run)
        return future

    def _ask_to_write(self) -> "Future[None]":
        """Under the lock: what is there now will be written. Once is enough until that has begun."""
        if self._writing is None:
            self._writing = self._ask(self._write)
        return self._writing

    def _await(self, future: "Future[_T]", patience_s: float) -> bool:
        """Whether it is done in time. Who finds the thread at a job that takes too long does not wait."""
        wait([future], patience_s if self._busy_s() < patience_s else 0)
        return future.done()

    def _busy_s(self) -> float:
        """How long the thread has been at its job."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    # -- the thread ----------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._began_s = time.monotonic()
            job()
            self._began_s = None
        if self._rows is not None:
            self._rows.close()

    def _write(self) -> None:
        with self._lock:
            self._writing = None
            self._tried_s = self._monotonic()
        self._attempt(self._write_all)

    def _write_all(self) -> None:
        """A portion at a time: a full disk is not tried with everything."""
        more = True
        while more and (portion := self._portion()) is not None:
            rows = self._open()
            rows.write(
                portion.new,
                portion.settled,
                max_bytes=self._max_bytes,
                keep=portion.keep,
                totals=portion.totals,
            )
            with self._lock:
                more = self._backlog.wrote(portion, rows.stock)
            self._note("")

    def _portion(self) -> Portion | None:
        with self._lock:
            return self._backlog.portion()

    def _read(self) -> list[Stored]:
        """The next messages; those in memory are among them only while they cannot be written."""
        if given := self._attempt(self._read_disk):
            return given
        with self._lock:
            return self._backlog.give_fresh(_BATCH) if self._fault else []

    def _read_disk(self) -> list[Stored]:
        while self._rows is not None and (batch := self._rows.after(self._read_to, _BATCH)):
            self._read_to = batch[-1].id
            with self._lock:
                if given := self._backlog.give(batch):
                    return given
        return []

    def _rewind(self) -> None:
        self._read_to = BEFORE_ALL
        with self._lock:
            self._backlog.rewind()

    # -- the database, and what can happen to it -------------------------------------------------------------

    def _attempt(self, job: Callable[[], _T]) -> _T | None:
        """Do it, in a new database if this one is damaged; None if that is not possible now."""
        try:
            try:
                return job()
            except sqlite3.Error as error:
                if not is_damaged(error):
                    raise
                self._set_aside(error)
                return job()
        except (sqlite3.Error, OSError) as error:
            said = str(error.strerror) if isinstance(error, OSError) else first_line(error)
            self._note((self._file and not_ours(self._file)) or said)
            return None

    def _open(self) -> Rows:
        """The database; opened, if it is not."""
        if self._rows is None:
            if self._file is not None:
                with contextlib.suppress(FileExistsError):
                    self._file.parent.mkdir(parents=True)
            self._rows = self._new_rows(self._file, self._durability, self._offset)
            self._offset = self._rows.offset
            self._read_to = BEFORE_ALL
            with self._lock:
                self._backlog.found(self._rows.stock)
        return self._rows

    def _note(self, fault: str) -> None:
        """Say it once, and when it is over ("")."""
        with self._lock:
            before, self._fault = self._fault, fault
            depth = self._backlog.depth
            if fault:
                self._backlog.failed()
        if fault and fault != before:
            _log.error("outbox.not_written", file=str(self._file), reason=fault)
        elif before and not fault:
            _log.warning("outbox.written_again", messages=depth)

    def _set_aside(self, error: Exception) -> None:
        """Keep the damaged database for whoever wants to look; begin anew with what is on its way.

        Raises:
            OSError: it cannot be moved.
        """
        assert self._file is not None
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        kept_as = self._file.with_name(f"{self._file.name}.damaged")
        for suffix in ("-wal", ""):
            _move(self._file.with_name(self._file.name + suffix), kept_as.with_name(kept_as.name + suffix))
        with self._lock:
            n_lost = self._backlog.lost()
            self._tried_s = float("-inf")  # what is on its way is to be written soon
        _log.error("outbox.damaged", kept_as=str(kept_as), reason=first_line(error), messages=n_lost)


def _move(file: Path, to: Path) -> None:
    """Also if there is none: nothing is left at `to` that it did not replace."""
    to.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        file.replace(to)
