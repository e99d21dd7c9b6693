"""The outbox's database: messages in the order they came, in one file that one process holds.

```
message   id, kind, since_s, payload            until the broker has it
refused   id, kind, at_s, reason, payload       the latest of what it will never take
total     name, n                               what became of the rest, since the file was made
```
A write is one transaction in SQLite's write-ahead log: a message is there whole or not at all.
"""

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from edgetag.delivery.sink import Forwarded, Settled

Durability = Literal["power_loss", "process_crash", "memory"]

MAX_REFUSED = 100  # kept to be looked at
BEFORE_ALL = -(2**63)  # an id that no message has

_VERSION = 1
_SYNCHRONOUS = {"power_loss": "FULL", "process_crash": "NORMAL", "memory": "OFF"}
_MAX_WAL_BYTES = 4 * 2**20
_DAMAGED_CODES = sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB
_MESSAGE = "id INTEGER PRIMARY KEY, kind TEXT NOT NULL, since_s REAL NOT NULL, payload BLOB NOT NULL"
_REFUSED = (
    "id INTEGER PRIMARY KEY, kind TEXT NOT NULL, at_s REAL NOT NULL, reason TEXT NOT NULL, payload BLOB"
)
_TABLES = (
    f"CREATE TABLE message ({_MESSAGE})",
    f"CREATE TABLE refused ({_REFUSED})",
    "CREATE TABLE total (name TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID",
)


class Stored(NamedTuple):
    """A message; `since_s` is when it came, by the monotonic clock of the process it came to."""

    id: int
    kind: Forwarded
    since_s: float
    payload: bytes


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the file is broken or none of ours, rather than out of reach or of space."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED_CODES


class Rows:
    """The database, opened and checked from the first page to the last; to be used by one thread at a time.

    Args:
        file: its path, made if absent; None for a database in memory.
        durability: `power_loss` has every write on the disk before it returns, `process_crash` in the
            kernel's hands.

    Raises:
        sqlite3.Error: from here and from every method, which then has changed nothing.

    """

    def __init__(self, file: Path | None, durability: Durability) -> None:
        self._connection = sqlite3.connect(
            ":memory:" if file is None else file, timeout=0, isolation_level=None, check_same_thread=False
        )
        self._execute, self._executemany = self._connection.execute, self._connection.executemany
        try:
            self._prepare(_SYNCHRONOUS[durability])
            self._check()
            self._tally = self._count()
        except sqlite3.Error:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    @property
    def n(self) -> int:
        """Messages."""
        return self._tally.n

    @property
    def n_bytes(self) -> int:
        """Of their payloads."""
        return self._tally.n_bytes

    @property
    def totals(self) -> Counter[str]:
        """What has become of others: `dropped`, `refused`; and how often the database was `damaged`."""
        return self._tally.totals

    def write(
        self,
        new: Sequence[Stored] = (),
        *,
        gone: Collection[int] = (),
        refused: Sequence[Settled] = (),
        max_bytes: int,
        keep_until: int = BEFORE_ALL,
        totals: Mapping[str, int] | None = None,
    ) -> None:
        """Take in `new`, let go what is `gone`, set aside what was `refused`, give up the oldest for room.

        Args:
            max_bytes: most bytes of payloads that are kept.
            keep_until: messages up to this id are not the oldest: they are on their way.
            totals: what else to add to them.
        """
        with self._transaction():
            tally = replace(self._tally, totals=Counter(self._tally.totals) + Counter(totals or {}))
            self._insert(new, tally)
            self._set_aside(refused, tally)
            self._delete((*gone, *(settled.id for settled in refused)), tally)
            self._make_room(max_bytes, keep_until, tally)
            self._execute("DELETE FROM total")
            self._executemany("INSERT INTO total VALUES (?, ?)", tally.totals.items())
        self._tally = tally

    def after(self, id: int, limit: int) -> list[Stored]:
        """The oldest messages of a greater id."""
        found = self._execute(
            "SELECT id, kind, since_s, payload FROM message WHERE id > ? ORDER BY id LIMIT ?", (id, limit)
        )
        return [Stored(*row) for row in found]

    def last_id(self) -> int | None:
        """Of the newest message."""
        (found,) = self._execute("SELECT max(id) FROM message").fetchone()
        return found if isinstance(found, int) else None

    def refused(self) -> list[tuple[Forwarded, str, bytes]]:
        """Kind, reason and payload of the latest that were set aside, in order."""
        return self._execute("SELECT kind, reason, payload FROM refused ORDER BY at_s, id").fetchall()

    def make_older_than(self, id: int) -> None:
        """Give every message an id below this, in the same order."""
        if (last := self.last_id()) is not None and last >= id:
            with self._transaction():
                self._execute("CREATE TEMP TABLE older AS SELECT * FROM message")
                self._execute("DELETE FROM message")
                self._execute(
                    "INSERT INTO message SELECT id - ?, kind, since_s, payload FROM older", (last - id + 1,)
                )
                self._execute("DROP TABLE older")

    def _prepare(self, synchronous: str) -> None:
        self._execute("PRAGMA locking_mode = EXCLUSIVE")  # nobody else's, and no shared memory to map
        self._execute("PRAGMA journal_mode = WAL")
        self._execute(f"PRAGMA synchronous = {synchronous}")
        self._execute(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
        self._execute("PRAGMA temp_store = MEMORY")

    def _check(self) -> None:
        """Make the tables in a new file; refuse a damaged one, and a stranger's."""
        (found,) = self._execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _damaged(found)
        (version,) = self._execute("PRAGMA user_version").fetchone()
        (n_tables,) = self._execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (version, n_tables) == (0, 0):
            with self._transaction():
                for statement in _TABLES:
                    self._execute(statement)
                self._execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise _damaged(f"its version is {version}, expected {_VERSION}")

    def _count(self) -> "_Tally":
        (n, n_bytes) = self._execute(
            "SELECT count(*), ifnull(sum(length(payload)), 0) FROM message"
        ).fetchone()
        return _Tally(n, n_bytes, Counter(dict(self._execute("SELECT name, n FROM total").fetchall())))

    def _set_aside(self, refused: Sequence[Settled], tally: "_Tally") -> None:
        for settled in refused:
            self._execute(
                "INSERT OR REPLACE INTO refused SELECT id, kind, ?, ?, payload FROM message WHERE id = ?",
                (time.time(), settled.refusal, settled.id),
            )
            tally.totals["refused"] += 1
        latest = "SELECT id FROM refused ORDER BY at_s DESC, id DESC LIMIT ?"
        self._execute(f"DELETE FROM refused WHERE id NOT IN ({latest})", (MAX_REFUSED,))  # noqa: S608 - ours

    def _delete(self, ids: Iterable[int], tally: "_Tally") -> None:
        for id in ids:
            deleted = self._execute("DELETE FROM message WHERE id = ? RETURNING length(payload)", (id,))
            tally.lose(deleted.fetchall())

    def _insert(self, new: Sequence[Stored], tally: "_Tally") -> None:
        self._executemany("INSERT INTO message VALUES (?, ?, ?, ?)", new)
        tally.n += len(new)
        tally.n_bytes += sum(len(message.payload) for message in new)

    def _make_room(self, max_bytes: int, keep_until: int, tally: "_Tally") -> None:
        """The oldest go, one by one: to the message exactly as many as need be."""
        oldest = "SELECT min(id) FROM message WHERE id > ?"
        while tally.n_bytes > max_bytes:
            deleted = self._execute(
                f"DELETE FROM message WHERE id = ({oldest}) RETURNING length(payload)",  # noqa: S608 - ours
                (keep_until,),
            ).fetchall()
            if not deleted:
                return
            tally.lose(deleted)
            tally.totals["dropped"] += 1

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


@dataclass
class _Tally:
    """What is there: messages, bytes of their payloads; and what has become of others, by name."""

    n: int
    n_bytes: int
    totals: Counter[str]

    def lose(self, lengths: list[tuple[int]]) -> None:
        self.n -= len(lengths)
        self.n_bytes -= sum(length for (length,) in lengths)


def _damaged(why: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(why)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error
