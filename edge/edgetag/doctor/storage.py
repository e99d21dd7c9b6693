"""Where the outbox is: the state directory takes files and has room, and the database is whole."""

import errno
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from edgetag.contract.errors import OutputError, first_line, own_user
from edgetag.delivery.outbox import FILE_NAME
from edgetag.doctor.finding import Case, Finding, failed
from edgetag.state import nearest_existing

_TRIAL_BYTES = 65_536
_BYTES_ON_DISK = 2  # of a byte of a message, in SQLite's pages
_FULL = (errno.ENOSPC, errno.EDQUOT)


def outbox(case: Case) -> Finding:
    """A file can be written, there is room for what the outbox may hold, and SQLite finds it whole."""
    settings = case.settings.outbox
    if settings.durability == "memory":
        return Finding("skipped", "outbox.durability is memory: nothing is written")
    try:
        n_free_bytes = _room(case.state)
    except OSError as error:
        return _not_written(case.state, error)
    file = case.state / FILE_NAME
    try:
        found, n_bytes = _stored(file)
    except sqlite3.Error as error:
        return _not_whole(file, error)
    found = f"{case.state}: {own_user()} can write, {n_free_bytes / 1e6:,.0f} MB are free; {found}"
    if n_free_bytes + n_bytes < _BYTES_ON_DISK * settings.max_bytes:
        remedy = (
            f"make room, or lower outbox.max_bytes, which is {settings.max_bytes / 1e6:,.0f} MB "
            "and takes twice that on the disk"
        )
        return Finding("warning", f"{found}; there is no room for a full one", remedy)
    return Finding("ok", found)


def _room(state: Path) -> int:
    """Bytes that are free, after a trial in a file without a name, which is gone when it is closed.

    Raises:
        OSError: nothing can be written in the state directory, or where it will be made.
    """
    folder = nearest_existing(state)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(_TRIAL_BYTES))
        file.flush()
        os.fsync(file.fileno())
    n_free_bytes = shutil.disk_usage(folder).free
    if n_free_bytes < _TRIAL_BYTES:  # root may write more than others
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return n_free_bytes


def _not_written(state: Path, error: OSError) -> Finding:
    remedy = f"make it writable for the sensor's own user; it was {own_user()} who tried"
    if error.errno in _FULL:
        remedy = "make room: `du -xh / | sort -h | tail` shows what takes it"
    return failed(f"{state}: {own_user()} cannot write ({error.strerror})", remedy, OutputError)


def _stored(file: Path) -> tuple[str, int]:
    """What is in the database, in words, and its size in bytes. A running sensor keeps everybody else out.

    Raises:
        sqlite3.Error: it is damaged, or cannot be opened.
    """
    if not file.exists():
        return "no outbox yet", 0
    n_bytes = file.stat().st_size
    with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=0)) as database:
        try:
            (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            (n,) = database.execute("SELECT count(*) FROM message").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            return "the outbox is in use by a running edgetag", n_bytes
    return f"the outbox is whole, messages in it: {n}", n_bytes


def _not_whole(file: Path, error: sqlite3.Error) -> Finding:
    is_out_of_reach = isinstance(error, sqlite3.OperationalError)
    if is_out_of_reach and error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # which is "no such table"
        remedy = f"the sensor's own user must be able to read and write it: `ls -l {file}`"
        return failed(f"{file} cannot be read ({first_line(error)})", remedy, OutputError)
    remedy = (
        f"the sensor sets it aside as {FILE_NAME}.damaged when it starts, and begins anew without what waits "
        "there; `dmesg` may say that the disk or card is failing"
    )
    return failed(f"{file} is damaged ({first_line(error)})", remedy, OutputError)
