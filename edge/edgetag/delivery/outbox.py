"""What is to be delivered, in order, until it is settled: on the disk, or in memory while that has a fault.

```
append ── fresh ── written ── rows ── next … settle ── written: gone
           └ while the disk has a fault: next
```
One thread owns the database. Whoever appends waits for it a moment and no longer: a card that hangs for a
minute is the microphone's no more than the network is.
"""

import contextlib
import queue
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import structlog

from edgetag.contract.errors import InputError, first_line
from edgetag.contract.event import OutboxHealth
from edgetag.delivery.rows import BEFORE_ALL, Durability, Rows, Stored, is_damaged
from edgetag.delivery.sink import Forwarded, Settled

MAX_BYTES = 200_000_000
MAX_MEMORY_BYTES = 20_000_000  # of messages in memory: all of them, or those that cannot be written
FILE_NAME = "outbox.db"

_PATIENCE_S = 1.0
_BATCH = 50  # messages that are read at once, and are not given up for newer ones from then on
_MAX_SETTLED = 100  # before they are deleted; otherwise that waits for the next message's write
_MAX_SETTLED_S = 5.0
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

    Raises:
        InputError: when it is entered: another process has the file.
    """

    def __init__(
        self,
        file: Path | None,
        *,
        durability: Durability = "process_crash",
        max_bytes: int = MAX_BYTES,
        monotonic: Callable[[], float] = time.monotonic,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._file = None if durability == "memory" else file
        self._durability: Durability = "memory" if self._file is None else durability
        self._max_bytes = max_bytes if self._file else min(max_bytes, MAX_MEMORY_BYTES)
        self._monotonic = monotonic
        self._patience_s = patience_s
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="edgetag-outbox", daemon=True)
        self._rows: Rows | None = None  # the thread's own, once it runs

        # Shared, under the lock:
        self._lock = threading.Lock()
        self._fresh: deque[Stored] = deque()  # not written yet
        self._fresh_bytes = 0
        self._settled: set[int] = set()  # not deleted yet
        self._refused: dict[int, Settled] = {}  # not set aside yet
        self._written_s = monotonic()
        self._read_to = BEFORE_ALL
        self._n_on_disk = self._bytes_on_disk = 0
        self._totals, self._unsaved = Counter[str](), Counter[str]()
        self._fault = ""
        self._first_id = self._next_id = 1

        # The reader's own:
        self._batch: deque[Stored] = deque()

    def __enter__(self) -> Self:
        """Open and check the database.

        Raises:
            InputError: another process has it.
        """
        with self._watched():
            try:
                self._open()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                    raise InputError(
                        f"another edgetag has the outbox {self._file}: "
                        "every sensor needs a state directory of its own"
                    ) from None
                raise
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write what is to be written, if the disk is not slower than a second."""
        self._jobs.put(self._write)
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
            self._fresh.append(Stored(self._next_id, kind, self._monotonic(), payload))
            self._fresh_bytes += len(payload)
            self._next_id += 1
            self._bound_fresh()
        wait([self._ask(self._write)], self._patience_s)

    def health(self) -> OutboxHealth:
        """How much is kept, and what became of the rest."""
        with self._lock:
            totals = self._totals + self._unsaved
            return OutboxHealth(
                depth=self._depth(),
                bytes=self._bytes_on_disk + self._fresh_bytes,
                dropped=totals["dropped"],
                refused=totals["refused"] + len(self._refused),
                damaged=totals["damaged"],
                fault=self._fault,
            )

    @property
    def next_id(self) -> int:
        """Of the next message that is appended: greater than all before it."""
        with self._lock:
            return self._next_id

    @property
    def outlives_process(self) -> bool:
        """Whether what is kept is there for the next process."""
        return self._file is not None and not self.fault

    @property
    def depth(self) -> int:
        """Messages that are not settled."""
        with self._lock:
            return self._depth()

    @property
    def fault(self) -> str:
        """Why messages are in memory only; "" if they are on the disk, or not meant to be."""
        with self._lock:
            return self._fault

    # -- whoever delivers --------------------------------------------------------------------------------

    def next(self) -> Queued | None:
        """The oldest message that was not given since the last `rewind`; waits for the disk if need be."""
        if not self._batch:
            self._batch.extend(self._ask(self._read).result())
        if not self._batch:
            self._tidy()
            return None
        message = self._batch.popleft()
        is_ours = message.id >= self._first_id
        waited_s = self._monotonic() - message.since_s if is_ours else None
        return Queued(message.id, message.kind, message.payload, waited_s)

    def settle(self, settled: Settled) -> None:
        """What became of a message that was given: it is not given again."""
        with self._lock:
            if settled.refusal:
                self._refused[settled.id] = settled
            else:
                self._settled.add(settled.id)
        self._tidy()

    def rewind(self) -> None:
        """Give everything again that is not settled, from the oldest on."""
        self._batch.clear()
        with self._lock:
            self._read_to = BEFORE_ALL

    def _tidy(self) -> None:
        """Delete what is settled, now and then; as a rule that is done when the next message is written."""
        with self._lock:
            n_due = len(self._settled) + len(self._refused)
            is_due = n_due >= _MAX_SETTLED or self._monotonic() - self._written_s > _MAX_SETTLED_S
        if n_due and is_due:
            self._ask(self._write)

    # -- under the lock ----------------------------------------------------------------------------------

    def _depth(self) -> int:
        return self._n_on_disk + len(self._fresh) - len(self._settled) - len(self._refused)

    def _bound_fresh(self) -> None:
        """In memory there is less room than on a disk."""
        while self._fresh_bytes > MAX_MEMORY_BYTES and (oldest := self._oldest_fresh()):
            self._fresh.remove(oldest)
            self._fresh_bytes -= len(oldest.payload)
            self._unsaved["dropped"] += 1

    def _oldest_fresh(self) -> Stored | None:
        """What can be given up: neither on its way nor settled."""
        return next((m for m in self._fresh if m.id > self._read_to and not self._is_settled(m)), None)

    def _is_settled(self, message: Stored) -> bool:
        return message.id in self._settled or message.id in self._refused

    # -- the thread --------------------------------------------------------------------------------------

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

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
        if self._rows is not None:
            self._rows.close()

    def _read(self) -> list[Stored]:
        """The next messages; those in memory are among them only while they cannot be written."""
        found: list[Stored] = []
        with self._watched():
            while not found and (batch := self._batch_after(self._read_to)):
                with self._lock:
                    self._read_to = batch[-1].id
                    found = [message for message in batch if not self._is_settled(message)]
        return found

    def _batch_after(self, id: int) -> list[Stored]:
        on_disk = [] if self._rows is None else self._rows.after(id, _BATCH)
        with self._lock:
            if on_disk or not self._fault:
                return on_disk
            return [message for message in self._fresh if message.id > id][:_BATCH]

    def _write(self) -> None:
        with self._lock:
            fresh, gone, refused = list(self._fresh), set(self._settled), dict(self._refused)
            new = [message for message in fresh if message.id not in gone]
            unsaved, keep_until = Counter(self._unsaved), self._read_to
        if not (fresh or gone or refused or unsaved):
            return
        with self._watched():
            rows = self._open()
            rows.write(
                new,
                gone=gone,
                refused=[*refused.values()],
                max_bytes=self._max_bytes,
                keep_until=keep_until,
                totals=unsaved,
            )
            with self._lock:
                self._unsaved -= unsaved
                self._settled -= gone
                self._refused = {id: it for id, it in self._refused.items() if id not in refused}
                self._forget_fresh({message.id for message in fresh})
                self._written_s = self._monotonic()
                self._take_stock(rows)
                had_fault, self._fault = self._fault, ""
            if had_fault:
                _log.warning("outbox.written_again", messages=len(new), dropped=unsaved["dropped"])

    def _forget_fresh(self, ids: set[int]) -> None:
        self._fresh = deque(message for message in self._fresh if message.id not in ids)
        self._fresh_bytes = sum(len(message.payload) for message in self._fresh)

    def _take_stock(self, rows: Rows) -> None:
        self._n_on_disk, self._bytes_on_disk, self._totals = rows.n, rows.n_bytes, rows.totals

    # -- the database, and what can happen to it ----------------------------------------------------------

    def _open(self) -> Rows:
        """The database; opened, if it is not. Its messages are older than any of this process."""
        if self._rows is None:
            if self._file is not None:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            rows = self._new_rows()
            with self._lock:
                if self._next_id == self._first_id:
                    self._first_id = self._next_id = (rows.last_id() or 0) + 1
                first_id = self._first_id
                self._take_stock(rows)
            rows.make_older_than(first_id)
            self._rows = rows
        return self._rows

    def _new_rows(self) -> Rows:
        try:
            return Rows(self._file, self._durability)
        except sqlite3.Error as error:
            if not is_damaged(error):
                raise
            self._set_aside(error)
            return Rows(self._file, self._durability)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """What SQLite refuses is tried again with the next message; what is broken is begun anew."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if not isinstance(error, sqlite3.Error) or not is_damaged(error):
                self._note_fault(error)
                return
            try:
                self._set_aside(error)
            except OSError as fault:
                self._note_fault(fault)

    def _note_fault(self, error: sqlite3.Error | OSError) -> None:
        reason = first_line(error) if isinstance(error, sqlite3.Error) else str(error.strerror)
        with self._lock:
            is_news, self._fault = reason != self._fault, reason
        if is_news:
            _log.error("outbox.not_written", file=str(self._file), reason=reason)

    def _set_aside(self, error: sqlite3.Error) -> None:
        """Keep the damaged file for whoever wants to look, and count what was in it, if that is known."""
        assert self._file is not None
        if self._rows is not None:
            self._rows.close()
            self._rows = None
        damaged = self._file.with_name(f"{self._file.name}.damaged")
        for suffix in ("-wal", ""):
            with contextlib.suppress(FileNotFoundError):
                self._file.with_name(self._file.name + suffix).replace(
                    damaged.with_name(damaged.name + suffix)
                )
        with self._lock:
            lost = self._depth() - sum(not self._is_settled(message) for message in self._fresh)
            self._unsaved += Counter(damaged=1, dropped=lost) + self._totals
            fresh_ids = {message.id for message in self._fresh}
            self._settled &= fresh_ids
            self._refused = {id: it for id, it in self._refused.items() if id in fresh_ids}
            self._n_on_disk = self._bytes_on_disk = 0
            self._totals = Counter()
        _log.error("outbox.damaged", kept_as=str(damaged), reason=first_line(error), messages=lost)
