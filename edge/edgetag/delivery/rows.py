"""The outbox's database: messages in the order they came, in one file that one process holds.

```
message   id, kind, since_s, payload         until the broker has it
refused   n, kind, at_s, reason, payload     the latest of what it will never take
total     name, n                            what became of others, since the file was made
```
A write is one transaction in SQLite's write-ahead log: it is there whole or not at all.
"""

import contextlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from edgetag.contract.errors import own_user, user_name
from edgetag.delivery.sink import Forwarded, Settled

Durability = Literal["power_loss", "process_crash", "memory"]

MAX_REFUSED = 100  # kept to be looked at
BEFORE_ALL = -(2**62)  # an id that no message has

_VERSION = 1
_SYNCHRONOUS = {"power_loss": "FULL", "process_crash": "NORMAL", "memory": "OFF"}
_LOOK_S = 1.0  # for somebody who just looks at the file, as `edgetag doctor` does
# An event and a sound fit a page. Half of SQLite's usual size halves what is written for them.
_PAGE_BYTES = 2048
_LOG_PAGES = 2048  # before they are written into the file itself

_DAMAGED_CODES = sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT
_UNREADABLE_CODES = sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS

_KIND = "kind TEXT NOT NULL CHECK (kind IN ('tags', 'events'))"
_NAME = "name TEXT PRIMARY KEY CHECK (name IN ('dropped', 'refused', 'damaged'))"
_TABLES = [
    f"CREATE TABLE message (id INTEGER PRIMARY KEY, {_KIND}, since_s REAL NOT NULL,"
    " payload BLOB NOT NULL) STRICT",
    f"CREATE TABLE refused (n INTEGER PRIMARY KEY, {_KIND}, at_s REAL NOT NULL, reason TEXT NOT NULL,"
    " payload BLOB NOT NULL) STRICT",
    f"CREATE TABLE total ({_NAME}, n INTEGER NOT NULL) STRICT, WITHOUT ROWID",
]


class Stored(NamedTuple):
    """A message. Ids rise in the order messages came: those of this process from 1 on, others end with 0.

    since_s: when it came, by the monotonic clock of the process it came to.
    """

    id: int
    kind: Forwarded
    since_s: float
    payload: bytes


@dataclass
class Stock:
    """Messages that are kept, bytes of their payloads; and `totals`: `dropped`, `refused`, `damaged`."""

    n: int = 0
    n_bytes: int = 0
    totals: Counter[str] = field(default_factory=Counter)


def is_damaged(error: Exception) -> bool:
    """Whether the file is broken or none of ours, rather than out of reach or of space."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED_CODES or code in _UNREADABLE_CODES


def not_ours(file: Path) -> str:
    """Which of the database's files, or their folder, another user keeps from us, and what to do; or ""."""
    for path in (file.parent, file, file.with_name(f"{file.name}-wal")):
        with contextlib.suppress(OSError):  # there is none
            owner = path.stat().st_uid
            if owner != os.geteuid() and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
                return f"{path} belongs to {user_name(owner)}; `sudo chown {own_user()} {path}`"
    return ""


def is_held(error: Exception) -> bool:
    """Whether another process has the file."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


class Rows:
    """The database, opened and checked from the first page to the last; to be used by one thread at a time.

    Args:
        file: its path, made if absent; None for a database in memory.
        durability: `power_loss` has every write on the disk before it returns, `process_crash` in the
            kernel's hands.
        offset: of this process's ids on the disk; None to find it: the last one there is.

    Raises:
        sqlite3.Error: from here and from every method, which then has changed nothing.
    """

    def __init__(self, file: Path | None, durability: Durability, offset: int | None = None) -> None:
        self._connection = sqlite3.connect(
            ":memory:" if file is None else file,
            timeout=_LOOK_S,
            isolation_level=None,
            check_same_thread=False,
        )
        self._execute, self._executemany = self._connection.execute, self._connection.executemany
        try:
            # Of a new file; nobody else's, and no shared memory to map; and a look at what is read:
            self._set(f"page_size = {_PAGE_BYTES}", "locking_mode = EXCLUSIVE", "cell_size_check = ON")
            with self._transaction():  # what can only be read is of no use
                is_new = self._is_new()
            self._set("journal_mode = WAL", f"synchronous = {_SYNCHRONOUS[durability]}")
            self._set(
                f"wal_autocheckpoint = {_LOG_PAGES}", f"journal_size_limit = {_LOG_PAGES * _PAGE_BYTES}"
            )
            if is_new:
                self._make_tables()
            self.stock = self._count()
            self.offset = self._last_id() if offset is None else offset
        except sqlite3.Error:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def write(
        self,
        new: Sequence[Stored] = (),
        settled: Sequence[Settled] = (),
        *,
        max_bytes: int,
        keep: Collection[int] = (),
        totals: Mapping[str, int] | None = None,
    ) -> None:
        """Let go what is settled, or set it aside if refused; take in `new`; give up the oldest for room.

        Args:
            max_bytes: most bytes of payloads that are kept.
            keep: ids of messages that are not given up: they are on their way.
            totals: what else to add to them.
        """
        stock = Stock(self.stock.n, self.stock.n_bytes, self.stock.totals + Counter(totals or {}))
        with self._transaction():
            self._set_aside(settled)
            # First what goes, so that its pages can be used:
            self._delete((self.offset + it.id for it in settled), stock)
            self._insert(new, stock)
            self._make_room(max_bytes, keep, stock)
            if stock.totals != self.stock.totals:
                self._executemany("INSERT OR REPLACE INTO total VALUES (?, ?)", stock.totals.items())
        self.stock = stock

    def after(self, id: int, limit: int) -> list[Stored]:
        """The oldest messages of a greater id."""
        found = self._execute(
            "SELECT id - ?1, kind, since_s, payload FROM message WHERE id > ?2 + ?1 ORDER BY id LIMIT ?3",
            (self.offset, id, limit),
        )
        return [Stored(*row) for row in found]

    # -- opening -----------------------------------------------------------------------------------------

    def _set(self, *settings: str) -> None:
        for setting in settings:
            self._execute(f"PRAGMA {setting}")

    def _is_new(self) -> bool:
        """Refuses a damaged file, and a stranger's."""
        (found,) = self._execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _damaged(found)
        (version,) = self._execute("PRAGMA user_version").fetchone()
        tables = [table for (table,) in self._execute("SELECT sql FROM sqlite_master ORDER BY rowid")]
        if (version, tables) not in ((0, []), (_VERSION, _TABLES)):
            raise _damaged(f"no outbox of version {_VERSION}")
        return not tables

    def _make_tables(self) -> None:
        with self._transaction():
            for statement in _TABLES:
                self._execute(statement)
            self._execute(f"PRAGMA user_version = {_VERSION}")

    def _count(self) -> Stock:
        (n, n_bytes) = self._execute(
            "SELECT count(*), ifnull(sum(length(payload)), 0) FROM message"
        ).fetchone()
        return Stock(n, n_bytes, Counter(dict(self._execute("SELECT name, n FROM total").fetchall())))

    def _last_id(self) -> int:
        (found,) = self._execute("SELECT max(id) FROM message").fetchone()
        return max(found or 0, 0)

    # -- writing -----------------------------------------------------------------------------------------

    def _set_aside(self, settled: Iterable[Settled]) -> None:
        for id, refusal in settled:
            if refusal:
                self._execute(
                    "INSERT INTO refused SELECT NULL, kind, ?, ?, payload FROM message WHERE id = ?",
                    (time.time(), refusal, self.offset + id),
                )
                self._execute(
                    "DELETE FROM refused WHERE n <= (SELECT max(n) FROM refused) - ?", (MAX_REFUSED,)
                )

    def _delete(self, stored_ids: Iterable[int], stock: Stock) -> None:
        for id in stored_ids:
            deleted = self._execute("DELETE FROM message WHERE id = ? RETURNING length(payload)", (id,))
            for (n_bytes,) in deleted.fetchall():
                stock.n -= 1
                stock.n_bytes -= n_bytes

    def _insert(self, new: Sequence[Stored], stock: Stock) -> None:
        self._executemany(
            "INSERT INTO message VALUES (?, ?, ?, ?)",
            ((self.offset + id, kind, since_s, payload) for id, kind, since_s, payload in new),
        )
        stock.n += len(new)
        stock.n_bytes += sum(len(message.payload) for message in new)

    def _make_room(self, max_bytes: int, keep: Collection[int], stock: Stock) -> None:
        if (excess_bytes := stock.n_bytes - max_bytes) > 0:
            oldest = self._oldest(excess_bytes, {self.offset + id for id in keep})
            self._delete(oldest, stock)
            stock.totals["dropped"] += len(oldest)

    def _oldest(self, n_bytes: int, keep: Collection[int]) -> list[int]:
        """As many as have so many bytes together, to the message."""
        oldest: list[int] = []
        for id, payload_bytes in self._execute("SELECT id, length(payload) FROM message ORDER BY id"):
            if n_bytes <= 0:
                break
            if id not in keep:
                oldest.append(id)
                n_bytes -= payload_bytes
        return oldest

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back by itself
                self._execute("ROLLBACK")
            raise


def _damaged(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
