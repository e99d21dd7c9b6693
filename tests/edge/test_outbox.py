"""The outbox: what was appended is given in order until it is settled, whatever process and disk do."""

import contextlib
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgetag.contract.errors import InputError
from edgetag.contract.event import OutboxHealth
from edgetag.delivery import outbox as outbox_module
from edgetag.delivery.outbox import FILE_NAME, HANGS, Outbox, Queued
from edgetag.delivery.rows import MAX_REFUSED, Durability, Rows
from edgetag.delivery.sink import Forwarded, Settled
from fakes_cli import ROOT_WITHOUT_RIGHTS, needs_root, run_python

WAIT_S = 30  # for what must happen
ON_DISK: list[Durability] = ["power_loss", "process_crash"]
NOBODY_WAITS = OutboxHealth(depth=0, bytes=0)


def eventually(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.005)


def message(n: int, n_bytes: int = 10) -> bytes:
    """The `n`-th, of so many bytes."""
    return f"{n:08}".encode().ljust(n_bytes, b".")


def number(payload: bytes) -> int:
    return int(payload[:8])


def append(outbox: Outbox, numbers: range, n_bytes: int = 10) -> None:
    for n in numbers:
        outbox.append("tags", message(n, n_bytes))


def take(outbox: Outbox, n: int | None = None) -> list[Queued]:
    """The next `n`, or all there are."""
    taken: list[Queued] = []
    while (n is None or len(taken) < n) and (queued := outbox.next()) is not None:
        taken.append(queued)
    return taken


def numbers(queued: list[Queued]) -> list[int]:
    return [number(message.payload) for message in queued]


def settle(outbox: Outbox, queued: list[Queued], refusal: str = "") -> None:
    for one in queued:
        outbox.settle(Settled(one.id, refusal))


def deliver(outbox: Outbox, n: int | None = None) -> list[int]:
    """Take and settle one by one."""
    delivered: list[int] = []
    while (n is None or len(delivered) < n) and (queued := outbox.next()) is not None:
        outbox.settle(Settled(queued.id))
        delivered.append(number(queued.payload))
    return delivered


def left_in(file: Path) -> list[int]:
    """What the next process would find."""
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        return [number(payload) for (payload,) in database.execute("SELECT payload FROM message ORDER BY id")]


@contextlib.contextmanager
def at_once(limit_s: float = 1.0) -> Iterator[None]:
    """What is done here waits for nothing; a second is what a busy machine may need."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < limit_s


# -- against a model -------------------------------------------------------------------------------------


class Kept(NamedTuple):
    n: int
    kind: Forwarded
    n_bytes: int
    refused: bool = False


MAX_BYTES = 3_000
BATCH = 50


class Model(RuleBasedStateMachine):
    """The outbox, and beside it what it should be.

    ```
    n          0 1 2 3 4 5 6 7 8
    settled    x   x                 the latest ones come back after a crash
    dropped      #                   the oldest that may
    given            - - -           or read for it: not dropped
    kept             * * * * * *
    ```
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.n_lives = self.n = self.dropped = self.refused = 0
        self.kept: list[Kept] = []
        self.settled: list[Kept] = []  # since the last write
        self.batch: list[Kept] = []
        self.given: list[Kept] = []  # and taken; not settled
        self.taken: list[tuple[Queued, Kept]] = []
        self.live()

    def live(self) -> None:
        self.n_lives += 1
        self.n_before = self.n
        self.outbox = Outbox(self.file, max_bytes=MAX_BYTES, monotonic=lambda: 100.0)
        self.outbox.__enter__()
        self.begin_reading()

    def begin_reading(self) -> None:
        self.batch, self.taken, self.given = [], [], []

    @property
    def file(self) -> Path:
        return self.folder / f"{self.n_lives}" / FILE_NAME

    @rule(kind=st.sampled_from(["tags", "events"]), n_bytes=st.integers(8, 1_000))
    def append(self, kind: Forwarded, n_bytes: int) -> None:
        self.outbox.append(kind, message(self.n, n_bytes))
        self.kept.append(Kept(self.n, kind, n_bytes))
        self.n += 1
        self.settled.clear()
        excess = [one for one in self.kept if one not in self.given]
        while sum(one.n_bytes for one in self.kept) > MAX_BYTES and excess:
            self.kept.remove(excess.pop(0))
            self.dropped += 1

    @rule()
    def take(self) -> None:
        if not self.batch:
            self.batch = [one for one in self.kept if one not in self.given][:BATCH]
            self.given += self.batch
        queued = self.outbox.next()
        if not self.batch:
            assert queued is None
            return
        expected = self.batch.pop(0)
        assert queued is not None
        assert (queued.kind, queued.payload) == (expected.kind, message(expected.n, expected.n_bytes))
        assert queued.waited_s == (None if expected.n < self.n_before else 0.0)
        assert queued.id < self.outbox.next_id
        self.taken.append((queued, expected))

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), refused=st.booleans())
    def settle(self, data: st.DataObject, refused: bool) -> None:
        queued, expected = self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1)))
        for _ in range(2):  # the second time it is settled already
            self.outbox.settle(Settled(queued.id, "too large" if refused else ""))
        self.kept.remove(expected)
        self.given.remove(expected)
        self.settled.append(expected._replace(refused=refused))
        self.refused += refused

    @rule()
    def rewind(self) -> None:
        self.outbox.rewind()
        self.begin_reading()

    @rule()
    def leave_and_come_back(self) -> None:
        self.outbox.__exit__(None, None, None)
        assert not self.outbox.hangs
        assert left_in(self.file) == [one.n for one in self.kept]
        shutil.copytree(self.file.parent, self.file.parent.with_name(f"{self.n_lives + 1}"))
        self.settled.clear()
        self.live()

    @rule()
    def crash(self) -> None:
        """What the kernel has of the files is what the next process finds."""
        shutil.copytree(self.file.parent, self.file.parent.with_name(f"{self.n_lives + 1}"))
        self.outbox.__exit__(None, None, None)
        self.kept = sorted(self.kept + [one._replace(refused=False) for one in self.settled])
        self.refused -= sum(one.refused for one in self.settled)
        self.settled.clear()
        self.live()

    @invariant()
    def counts(self) -> None:
        assert self.outbox.health() == OutboxHealth(
            depth=len(self.kept),
            bytes=sum(one.n_bytes for one in self.kept),
            dropped=self.dropped,
            refused=self.refused,
        )

    def teardown(self) -> None:
        self.outbox.__exit__(None, None, None)
        shutil.rmtree(self.folder)


Model.TestCase.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)
TestOutboxIsItsModel = Model.TestCase


def test_a_long_backlog_is_given_in_order_and_goes_while_it_is_settled(tmp_path: Path) -> None:
    with Outbox(tmp_path / FILE_NAME) as outbox:
        append(outbox, range(1000))
    with Outbox(tmp_path / FILE_NAME) as outbox:
        assert deliver(outbox, 500) == list(range(500))
        assert outbox.health() == OutboxHealth(depth=500, bytes=5_000)
        eventually(lambda: len(left_while_open(tmp_path / FILE_NAME)) < 700)
        outbox.rewind()
        assert deliver(outbox) == list(range(500, 1000))
        assert outbox.health() == NOBODY_WAITS
    assert left_in(tmp_path / FILE_NAME) == []


def left_while_open(file: Path) -> list[int]:
    """As after a crash now."""
    with tempfile.TemporaryDirectory() as folder:
        for path in file.parent.glob(f"{file.name}*"):
            shutil.copy(path, folder)
        return left_in(Path(folder) / file.name)


def test_what_is_settled_goes_with_the_next_message_or_a_minute_later(tmp_path: Path) -> None:
    """Not at once: that would be twice the writes for every message."""
    clock_s, file = [0.0], tmp_path / FILE_NAME
    with Outbox(file, monotonic=lambda: clock_s[0]) as outbox:
        append(outbox, range(2))
        assert deliver(outbox) == [0, 1]
        clock_s[0] = 59.0
        assert outbox.next() is None
        assert left_while_open(file) == [0, 1]
        append(outbox, range(2, 3))
        assert left_while_open(file) == [2]
        assert deliver(outbox) == [2]
        clock_s[0] = 120.0
        assert outbox.next() is None
        eventually(lambda: left_while_open(file) == [])


def test_what_the_broker_refuses_is_set_aside_with_its_reason_and_only_the_latest_are_kept(
    tmp_path: Path,
) -> None:
    """Over any number of processes, though each begins to count anew."""
    file = tmp_path / FILE_NAME
    for n in range(0, MAX_REFUSED + 30, 10):
        with Outbox(file) as outbox:
            append(outbox, range(n, n + 10))
            for queued in take(outbox):
                outbox.settle(Settled(queued.id, f"refused {number(queued.payload)}"))
            assert (outbox.depth, outbox.health().refused) == (0, n + 10)
    with contextlib.closing(sqlite3.connect(file)) as database:
        refused = database.execute("SELECT kind, reason, payload FROM refused ORDER BY n").fetchall()
    assert refused == [("tags", f"refused {n}", message(n)) for n in range(30, MAX_REFUSED + 30)]


def test_the_oldest_go_when_there_are_too_many_but_not_what_is_on_its_way(tmp_path: Path) -> None:
    """
    given      | 0 ... 49 |
    kept       | 0 ... 49 |            | 150 ... 199 |
    """
    with Outbox(tmp_path / FILE_NAME, max_bytes=1000) as outbox:
        append(outbox, range(100))
        assert outbox.next() is not None
        append(outbox, range(100, 200))
        assert outbox.health() == OutboxHealth(depth=100, bytes=1000, dropped=100)
        assert numbers(take(outbox)) == [*range(1, 50), *range(150, 200)]
        outbox.rewind()
        append(outbox, range(200, 250))
        assert deliver(outbox) == list(range(150, 250))
    with Outbox(tmp_path / FILE_NAME) as outbox:
        assert outbox.health() == OutboxHealth(depth=0, bytes=0, dropped=150), "counted for good"


def test_in_memory_there_is_less_room_and_nothing_outlives_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "MAX_MEMORY_BYTES", 1000)
    with Outbox(tmp_path / "state" / FILE_NAME, durability="memory") as outbox:
        append(outbox, range(150))
        assert (outbox.fault, outbox.outlives_process) == ("", False)
        assert outbox.health() == OutboxHealth(depth=100, bytes=1000, dropped=50)
        assert deliver(outbox) == list(range(50, 150))
    assert list(tmp_path.iterdir()) == [], "nothing is written"


class Moody(Rows):
    """On a disk that is full every third time."""

    n_writes = 0

    def write(self, *arguments: Any, **options: Any) -> None:
        self.n_writes += 1
        if self.n_writes % 3 == 0:
            raise sqlite3.OperationalError("database or disk is full")
        super().write(*arguments, **options)


@pytest.mark.parametrize("rows", [Rows, Moody])
def test_two_threads_append_and_deliver_at_once_and_every_message_is_settled_in_its_turn(
    tmp_path: Path, rows: type[Rows]
) -> None:
    """Whatever is not settled at a rewind is given again."""
    n_messages, settled, rng = 3_000, list[int](), random.Random(0)
    with Outbox(tmp_path / FILE_NAME, rows=rows) as outbox, ThreadPoolExecutor() as pool:
        appending = pool.submit(append, outbox, range(n_messages))
        while len(settled) < n_messages:
            taken = take(outbox, rng.randrange(1, 150))
            arrived = taken[: rng.randrange(len(taken) + 1)]
            settle(outbox, arrived)
            settled += numbers(arrived)
            outbox.rewind()
        appending.result()
        assert (outbox.depth, outbox.health().bytes) == (0, 0)
    assert settled == list(range(n_messages))


# -- a process that is killed ------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from edgetag.delivery.outbox import Outbox
from edgetag.delivery.sink import Settled

file, durability, first, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with Outbox(file, durability=durability) as outbox:
    print("open", flush=True)
    for i in range(first, first + n):
        outbox.append("tags", b"%08d" % i)
        print("appended", i, flush=True)
        if i % 3 == 0:
            queued = outbox.next()
            print("settled", int(queued.payload), flush=True)
            outbox.settle(Settled(queued.id))
    print("done", flush=True)
    sys.stdin.read()
"""


class Child:
    """Another process with the outbox: appends, and settles the oldest after every third."""

    def __init__(
        self, file: Path, durability: Durability = "process_crash", first: int = 0, n: int = 0
    ) -> None:
        arguments = [CHILD, str(file), durability, str(first), str(n)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", *arguments], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        )
        self.said: list[tuple[str, int]] = []

    def hear(self) -> str:
        """One line; "" at its end."""
        assert self._process.stdout is not None
        what, _, number = (line := self._process.stdout.readline()).partition(" ")
        if number:
            self.said.append((what, int(number)))
        return line

    def kill(self) -> None:
        """And hear what it said to the end."""
        self._process.kill()
        while self.hear():
            pass
        with self._process:
            pass


@pytest.mark.parametrize("durability", ON_DISK)
def test_what_was_appended_is_there_after_sigkill(tmp_path: Path, durability: Durability) -> None:
    """Five lives of random length, one after the other, in one file."""
    file, rng = tmp_path / FILE_NAME, random.Random(durability)
    left: list[int] = []
    for _ in range(5):
        child = Child(file, durability, first=max(left, default=-1) + 1, n=100_000)
        for _ in range(rng.randrange(1, 600)):
            assert child.hear()
        child.kill()
        appended = {n for what, n in child.said if what == "appended"}
        perhaps_gone = {n for what, n in child.said if what == "settled"}
        before = set(left) | appended
        with Outbox(file) as outbox:
            assert (outbox.fault, outbox.health().damaged) == ("", 0)
            left = numbers(take(outbox))
        assert left == sorted(left)
        assert before - perhaps_gone <= set(left)
        assert len(set(left) - before) <= 1, "the last one may be there before that was said"
    assert len(left) > 100


def test_a_second_process_is_refused_and_welcome_once_the_first_is_killed(tmp_path: Path) -> None:
    file = tmp_path / FILE_NAME
    child = Child(file, n=4)
    try:
        while child.hear() != "done\n":
            pass
        for _ in range(2):  # to be refused changes nothing
            with pytest.raises(
                InputError, match=r"another edgetag has the outbox .*outbox\.db: every sensor needs"
            ):
                Outbox(file).__enter__()
    finally:
        child.kill()
    with Outbox(file) as outbox:
        assert numbers(take(outbox)) == [1, 2, 3]


def syncs(folder: Path, durability: Durability, n: int) -> int:
    """How often the kernel is asked to have a file on the disk, for `n` messages."""
    trace = folder / f"{durability}{n}.trace"
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync,sync_file_range", "-o", str(trace)]
    child = [
        sys.executable,
        "-c",
        CHILD,
        str(folder / f"{durability}{n}" / FILE_NAME),
        durability,
        "0",
        str(n),
    ]
    done = subprocess.run([*command, *child], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode or not trace.exists():
        pytest.skip("nothing can be traced here")
    return len(re.findall(r"sync\w*\(\d", trace.read_text()))


@pytest.mark.skipif(not shutil.which("strace"), reason="strace not installed")
def test_every_message_is_on_the_disk_for_power_loss_and_only_then(tmp_path: Path) -> None:
    few = {durability: syncs(tmp_path, durability, 10) for durability in ON_DISK}
    many = {durability: syncs(tmp_path, durability, 60) for durability in ON_DISK}
    assert many["power_loss"] >= 60
    assert many["process_crash"] < few["process_crash"] + 5


# -- a disk that is full, or not to be had ------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "edgetag-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], capture_output=True, check=True)


def fill(disk: Path) -> Path:
    """To the last byte, with this."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def events(logs: list[Any]) -> list[str]:
    return [line["event"] for line in logs]


def test_on_a_full_disk_messages_go_through_memory_until_it_has_room_again(disk: Path) -> None:
    """Far more of them than memory has room for: those that arrive make room. The fault is said once."""
    file = disk / FILE_NAME
    with structlog.testing.capture_logs() as logs, Outbox(file, max_bytes=100_000) as outbox:
        append(outbox, range(20), 1000)
        ballast, n = fill(disk), 20
        while not outbox.fault:
            with at_once():
                append(outbox, range(n, n + 1), 1000)
            n += 1
        assert (outbox.fault, outbox.outlives_process) == ("database or disk is full", False)
        assert deliver(outbox) == list(range(n))
        for n in range(n, n + 300):  # noqa: B020
            with at_once():
                append(outbox, range(n, n + 1), 1000)
            assert deliver(outbox) == [n]
        append(outbox, range(n + 1, n + 51), 1000)
        assert deliver(outbox, 10) == list(range(n + 1, n + 11))
        assert outbox.health() == OutboxHealth(depth=40, bytes=40_000, fault="database or disk is full")
        ballast.unlink()
        append(outbox, range(n + 51, n + 52), 1000)
        assert outbox.health() == OutboxHealth(depth=41, bytes=41_000)
        assert deliver(outbox, 20) == list(range(n + 11, n + 31))
    assert left_in(file) == list(range(n + 31, n + 52))
    assert events(logs) == ["outbox.not_written", "outbox.written_again"]


def test_what_finds_no_room_in_memory_either_is_counted(disk: Path) -> None:
    """Also over the end of the fault, and of the process. What had found room before is older, and stays."""
    file = disk / FILE_NAME
    with Outbox(file, max_bytes=50_000) as outbox:
        append(outbox, range(20), 1000)
        ballast = fill(disk)
        append(outbox, range(20, 2000), 1000)
        assert "full" in outbox.fault
        depth, dropped = outbox.depth, outbox.health().dropped
        assert depth + dropped == 2000
        taken = numbers(take(outbox, 10))
        assert taken == list(range(10))
        ballast.unlink()
        append(outbox, range(2000, 2001), 1000)
        health = outbox.health()
        assert health == OutboxHealth(depth=50, bytes=50_000, dropped=1951)
    with Outbox(file, max_bytes=50_000) as outbox:
        assert outbox.health() == health
        there = deliver(outbox)
    assert len(there) == 50
    assert there == sorted(there)
    assert there[-1] == 2000
    assert 2001 - health.dropped == len(there)


@pytest.mark.parametrize("n_before", [0, 30])
def test_it_starts_on_a_full_disk(disk: Path, n_before: int) -> None:
    """What was there before is given first."""
    file = disk / FILE_NAME
    if n_before:
        with Outbox(file) as outbox:
            append(outbox, range(n_before))
    ballast = fill(disk)
    with Outbox(file) as outbox:
        append(outbox, range(n_before, 1000), 1000)
        assert "full" in outbox.fault
        assert deliver(outbox, n_before + 500) == list(range(n_before + 500))
        ballast.unlink()
        append(outbox, range(1000, 1001), 1000)
        assert outbox.fault == ""
        assert deliver(outbox, 1) == [n_before + 500]
    assert left_in(file) == list(range(n_before + 501, 1001))


def test_an_outbox_that_cannot_be_opened_is_opened_later(tmp_path: Path) -> None:
    """What is in it is of earlier processes: given once, as such, and nothing of this process's twice."""
    folder, file = tmp_path / "state", tmp_path / "state" / FILE_NAME
    with Outbox(tmp_path / "old" / FILE_NAME) as outbox:
        append(outbox, range(100, 105))
    folder.touch()
    with structlog.testing.capture_logs() as logs, Outbox(file) as outbox:
        assert outbox.fault == "unable to open database file"
        with at_once():
            append(outbox, range(4))
        first, second = take(outbox, 2)
        settle(outbox, [first])
        folder.unlink()
        (tmp_path / "old").rename(folder)
        append(outbox, range(4, 6))
        assert outbox.health() == OutboxHealth(depth=10, bytes=100)
        rest = take(outbox)
        assert sorted(numbers([first, second, *rest])) == [*range(6), *range(100, 105)]
        assert {number(it.payload) for it in rest if it.waited_s is None} == set(range(100, 105))
        outbox.rewind()
        assert deliver(outbox, 8) == [*range(100, 105), 1, 2, 3]
    assert left_in(file) == [4, 5]
    assert events(logs) == ["outbox.not_written", "outbox.written_again"]


def test_a_disk_that_can_only_be_read_is_written_once_that_is_over(disk: Path) -> None:
    """As a card is after an error, until somebody mounts it anew."""
    file = disk / FILE_NAME
    with Outbox(file) as outbox:
        append(outbox, range(5))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        with Outbox(file) as outbox:
            append(outbox, range(5, 8))
            assert outbox.fault
            assert deliver(outbox, 1) == [5]
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            append(outbox, range(8, 9))
            assert outbox.fault == ""
            assert sorted(deliver(outbox)) == [0, 1, 2, 3, 4, 6, 7, 8]
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


# -- a disk that hangs -------------------------------------------------------------------------------------

PATIENCE_S = 0.1


class Stuck(Rows):
    """On a disk that answers a write only when it is allowed to."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.answers, self.asked = threading.Event(), threading.Event()
        self.answers.set()

    def write(self, *arguments: Any, **options: Any) -> None:
        self.asked.set()
        assert self.answers.wait(WAIT_S)
        super().write(*arguments, **options)


@contextlib.contextmanager
def stuck(file: Path, **options: Any) -> Iterator[tuple[Outbox, Stuck]]:
    """An outbox and its disk, which comes back at the end at the latest."""
    disks: list[Stuck] = []

    def opened(*arguments: Any) -> Stuck:
        disks.append(Stuck(*arguments))
        return disks[-1]

    outbox = Outbox(file, rows=opened, patience_s=PATIENCE_S, **options)
    try:
        yield outbox.__enter__(), disks[0]
    finally:
        disks[0].answers.set()
        outbox.__exit__(None, None, None)
        eventually(lambda: not outbox.hangs)


def test_whoever_appends_waits_for_a_disk_that_hangs_once_and_not_for_long(tmp_path: Path) -> None:
    """Nor does whoever delivers; and it is said, and over when it is over."""
    with stuck(tmp_path / FILE_NAME) as (outbox, disk):
        append(outbox, range(3))
        disk.answers.clear()
        with at_once(1 + PATIENCE_S):
            append(outbox, range(3, 4))
        with at_once(10):  # 1,000 times the patience would be a minute and a half
            append(outbox, range(4, 1000))
        with at_once():
            assert outbox.next() is None
            outbox.rewind()
            assert outbox.next() is None
        eventually(lambda: outbox.fault == HANGS)
        assert outbox.health() == OutboxHealth(depth=1000, bytes=10_000, fault=HANGS)
        assert not outbox.outlives_process
        disk.answers.set()
        eventually(lambda: outbox.health() == OutboxHealth(depth=1000, bytes=10_000))
        assert outbox.outlives_process
        assert len(left_while_open(tmp_path / FILE_NAME)) == 1000
        assert deliver(outbox) == list(range(1000))
    assert left_in(tmp_path / FILE_NAME) == []


def test_it_is_left_in_time_though_the_disk_hangs(tmp_path: Path) -> None:
    with stuck(tmp_path / FILE_NAME) as (outbox, disk):
        append(outbox, range(3))
        disk.answers.clear()
        append(outbox, range(3, 5))
        with at_once(outbox_module._CLOSE_S + 1):
            outbox.__exit__(None, None, None)
        assert outbox.hangs
        disk.answers.set()
        eventually(lambda: not outbox.hangs)
    assert left_in(tmp_path / FILE_NAME) == list(range(5))


def test_what_is_being_written_is_not_given_up(tmp_path: Path) -> None:
    """Or it would be counted, and arrive all the same.

    ```
    being written   | 0 |
    in memory             1 ... 150          room for 100, with 0
    ```
    """
    with stuck(tmp_path / FILE_NAME, max_bytes=1000) as (outbox, disk):
        disk.asked.clear()
        disk.answers.clear()
        append(outbox, range(1))
        assert disk.asked.wait(WAIT_S)
        append(outbox, range(1, 151))
        assert outbox.health() == OutboxHealth(depth=100, bytes=1000, dropped=51)
        disk.answers.set()
        eventually(lambda: outbox.next() is not None)
        outbox.rewind()
        assert deliver(outbox) == [0, *range(52, 151)]
        assert outbox.health() == OutboxHealth(depth=0, bytes=0, dropped=51)


def test_what_is_read_while_it_is_rewound_is_given_again(tmp_path: Path) -> None:
    """The disk answers late, and nobody waits for that answer any more."""
    with stuck(tmp_path / FILE_NAME) as (outbox, disk):
        append(outbox, range(5))
        disk.answers.clear()
        append(outbox, range(5, 6))
        assert outbox.next() is None
        outbox.rewind()
        disk.answers.set()
        eventually(lambda: (queued := outbox.next()) is not None and number(queued.payload) == 0)
        assert numbers(take(outbox)) == [1, 2, 3, 4, 5]


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be frozen."""
    image, folder = tmp_path / "image", tmp_path / "ext4"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(folder)]):
        if (
            os.geteuid() != 0
            or not shutil.which(command[0])
            or subprocess.run(command, check=False).returncode
        ):
            pytest.skip("cannot make and mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not shutil.which("fsfreeze"), reason="fsfreeze not installed")
def test_a_frozen_disk_stops_nobody(ext4: Path) -> None:
    """A real one: the thread is in the kernel, and what it writes is there when the kernel lets it go."""
    with Outbox(ext4 / FILE_NAME, patience_s=PATIENCE_S) as outbox:
        append(outbox, range(3))
        subprocess.run(["fsfreeze", "-f", str(ext4)], check=True)
        try:
            with at_once(1 + PATIENCE_S):
                append(outbox, range(3, 100))
            eventually(lambda: outbox.fault == HANGS)
        finally:
            subprocess.run(["fsfreeze", "-u", str(ext4)], check=True)
        eventually(lambda: outbox.fault == "")
        assert deliver(outbox, 50) == list(range(50))
    assert left_in(ext4 / FILE_NAME) == list(range(50, 100))


# -- a database that is damaged ----------------------------------------------------------------------------

N_BEFORE = 200


def junk(file: Path) -> None:
    file.write_bytes(b"no database at all\n" * 500)


def junk_header(file: Path) -> None:
    overwrite(file, 0, b"x" * 100)


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flipped(file: Path) -> None:
    n_bytes = file.stat().st_size
    overwrite(file, n_bytes // 2, b"\xff" * (n_bytes // 4))


def of_another_version(file: Path) -> None:
    run_in(file, "PRAGMA user_version = 2")


def with_a_column_more(file: Path) -> None:
    run_in(file, "ALTER TABLE message ADD COLUMN more TEXT")


def with_another_kind(file: Path) -> None:
    run_in(file, "PRAGMA ignore_check_constraints = ON; UPDATE message SET kind = 'tagz' WHERE id = 7")


def a_strangers(file: Path) -> None:
    file.unlink()
    run_in(file, "CREATE TABLE other (n); PRAGMA user_version = 1")


def run_in(file: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database:
        database.executescript(script)


def overwrite(file: Path, offset: int, content: bytes) -> None:
    with file.open("rb+") as raw:
        raw.seek(offset)
        raw.write(content)


DAMAGES = [
    junk,
    junk_header,
    half,
    flipped,
    of_another_version,
    with_a_column_more,
    with_another_kind,
    a_strangers,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_counted_and_begun_anew(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file, kept_as = tmp_path / FILE_NAME, tmp_path / f"{FILE_NAME}.damaged"
    with Outbox(file) as outbox:
        append(outbox, range(N_BEFORE), 500)
    damage(file)
    damaged = file.read_bytes()
    for path in (kept_as, kept_as.with_name(f"{kept_as.name}-wal")):
        path.write_bytes(b"of the last time")
    with structlog.testing.capture_logs() as logs, Outbox(file) as outbox:
        assert outbox.health() == OutboxHealth(depth=0, bytes=0, damaged=1)
        append(outbox, range(3))
        assert deliver(outbox, 1) == [0]
    assert events(logs) == ["outbox.damaged"]
    assert logs[0]["kept_as"] == str(kept_as)
    assert kept_as.read_bytes() == damaged
    assert {path.name for path in tmp_path.iterdir()} == {file.name, kept_as.name}
    with Outbox(file) as outbox:
        assert outbox.health() == OutboxHealth(depth=2, bytes=20, damaged=1)
    assert left_in(file) == [1, 2]


def test_an_empty_file_is_a_new_outbox(tmp_path: Path) -> None:
    """It is what a loss of power leaves of one that was just made."""
    (tmp_path / FILE_NAME).touch()
    with Outbox(tmp_path / FILE_NAME) as outbox:
        assert outbox.health() == NOBODY_WAITS


def logged(folder: Path, n: int) -> Path:
    """A database of `n` messages that are all in its write-ahead log, as a crash leaves it."""
    with Outbox(folder / "before" / FILE_NAME) as outbox:
        append(outbox, range(n), 500)
        shutil.copytree(folder / "before", folder / "after")
    return folder / "after" / FILE_NAME


@pytest.mark.parametrize("is_torn", [True, False])
def test_a_log_that_is_torn_in_the_middle_is_good_up_to_there(tmp_path: Path, is_torn: bool) -> None:
    """A loss of power leaves that with `process_crash`."""
    file = logged(tmp_path, 100)
    log = file.with_name(f"{FILE_NAME}-wal")
    n_bytes = log.stat().st_size
    os.truncate(log, n_bytes // 2) if is_torn else overwrite(log, n_bytes // 2, b"\xff" * 2048)
    with Outbox(file) as outbox:
        left = numbers(take(outbox))
        assert left == list(range(len(left)))
        assert 10 < len(left) < 90
        append(outbox, range(100, 101))
        assert outbox.health() == OutboxHealth(depth=len(left) + 1, bytes=500 * len(left) + 10)
    assert left_in(file) == [*left, 100]


def test_damage_while_it_runs_loses_nothing_that_is_on_its_way(tmp_path: Path) -> None:
    """
    settled     0 ... 99
    on its way           100 ... 149            written anew
    lost                             150 ...    counted, but for what was read before the damage
    new                                         4000 ...
    """
    file, n = tmp_path / FILE_NAME, 4000
    with Outbox(file) as outbox:
        append(outbox, range(n), 1000)  # more than SQLite remembers of a file
    with structlog.testing.capture_logs() as logs, Outbox(file) as outbox:
        assert deliver(outbox, 100) == list(range(100))
        on_their_way = numbers(take(outbox, 50))
        subprocess.run(
            [
                "dd",
                "if=/dev/urandom",
                f"of={file}",
                "bs=1M",
                "seek=1",
                "count=3",
                "conv=notrunc",
                "status=none",
            ],
            check=True,
        )
        further = numbers(take(outbox, n))
        assert outbox.health().damaged == 1
        assert outbox.health().dropped == n - 100 - len(on_their_way) - len(further)
        assert outbox.depth == 50 + len(further)
        assert outbox.next() is None
        eventually(lambda: len(left_while_open(file)) == 50 + len(further))
        append(outbox, range(n, n + 5))
        assert numbers(take(outbox)) == list(range(n, n + 5))
        outbox.rewind()
        left = [*on_their_way, *further, *range(n, n + 5)]
        assert deliver(outbox, len(left) - 2) == left[:-2]
        health = outbox.health()
    assert events(logs) == ["outbox.damaged"]
    assert logs[0]["messages"] == health.dropped
    assert left_in(file) == [n + 3, n + 4]
    with Outbox(file) as outbox:
        assert outbox.health() == health


@needs_root
@pytest.mark.parametrize("theirs", [FILE_NAME, f"{FILE_NAME}-wal", "state"])
def test_a_file_of_another_user_is_named_and_how_to_take_it_over(tmp_path: Path, theirs: str) -> None:
    """Somebody ran `edgetag` by hand, as root for instance: that is a fault, and nothing stops."""
    folder = tmp_path / "state"
    with Outbox(folder / FILE_NAME) as outbox:
        append(outbox, range(1))
    path = folder if theirs == "state" else folder / theirs
    if theirs.endswith("-wal"):
        path.touch(mode=0o600)
    os.chown(path, 65_534, 65_534)
    code = f"""
from edgetag.delivery.outbox import *
with Outbox(Path({str(folder)!r}, FILE_NAME)) as outbox:
    outbox.append("tags", b"payload")
    print(outbox.fault)
"""
    done = run_python("-c", code, state=tmp_path, under=ROOT_WITHOUT_RIGHTS)
    assert done.stdout.splitlines()[-1] == f"{path} belongs to nobody; `sudo chown root {path}`"


def test_a_disk_that_spoils_every_database_is_a_fault_and_not_worn_out(tmp_path: Path) -> None:
    """Another one is begun once for every message, and no more."""
    opened: list[Any] = []

    def spoilt(*arguments: Any) -> Rows:
        opened.append(arguments)
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    with Outbox(tmp_path / FILE_NAME, rows=spoilt) as outbox:
        append(outbox, range(10))
        assert outbox.fault == "database disk image is malformed"
        assert deliver(outbox) == list(range(10))
    assert len(opened) <= 2 * (1 + 10 + 3)


READER = """
import sys
from pathlib import Path
from edgetag.delivery.outbox import Outbox
from edgetag.delivery.sink import Settled

def deliver():
    n = 0
    while (queued := outbox.next()) is not None:
        outbox.settle(Settled(queued.id))
        n += 1
    return n

with Outbox(Path(sys.argv[1])) as outbox:
    print("open", flush=True)
    sys.stdin.readline()
    n = deliver()
    print(n, outbox.health().dropped, outbox.health().damaged, flush=True)
    for _ in range(3):
        outbox.append("tags", b"{}")
    print(deliver(), flush=True)
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="strace not installed")
def test_what_cannot_be_read_from_the_disk_is_damaged(tmp_path: Path) -> None:
    """A bad sector: the kernel has tried often enough, and to try for ever would deliver nothing any more."""
    file, n = tmp_path / FILE_NAME, 4000
    with Outbox(file) as outbox:
        append(outbox, range(n), 1000)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "open\n"
        with bad_sector_of(reader.pid, file):
            said, _ = reader.communicate("\n", WAIT_S)
    delivered, dropped, damaged, delivered_later = map(int, " ".join(said.splitlines()[-2:]).split())
    assert (delivered + dropped, damaged, delivered_later) == (n, 1, 3)
    assert delivered < n


@contextlib.contextmanager
def bad_sector_of(pid: int, file: Path) -> Iterator[None]:
    """The process's next look into the file fails."""
    inject = ["-e", "trace=pread64", "-e", "inject=pread64:error=EIO:when=1", "-P", str(file)]
    command = ["strace", "-f", "-p", str(pid), "-o", os.devnull, *inject]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        if "attached" not in strace.stderr.readline():
            pytest.skip("nothing can be traced here")
        yield


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of which a part is in the file and a part in the log, with all kinds of rows."""
    folder = tmp_path_factory.mktemp("crashed")
    file = folder / "before" / FILE_NAME
    with Outbox(file, max_bytes=50_000) as outbox:
        append(outbox, range(120), 500)
        settle(outbox, take(outbox, 20), "refused")
    with Outbox(file, max_bytes=50_000) as outbox:
        settle(outbox, take(outbox, 20))
        append(outbox, range(120, 160), 500)
        shutil.copytree(folder / "before", folder / "after")
    return folder / "after"


@settings(max_examples=200)
@given(
    which=st.sampled_from([FILE_NAME, f"{FILE_NAME}-wal"]),
    at=st.floats(0, 1, exclude_max=True),
    content=st.binary(min_size=1, max_size=300),
)
def test_whatever_is_flipped_what_comes_new_is_delivered_in_order(
    crashed: Path, which: str, at: float, content: bytes
) -> None:
    """And what is there does no harm."""
    with tempfile.TemporaryDirectory() as name:
        folder = shutil.copytree(crashed, Path(name) / "state")
        overwrite(folder / which, int(at * (folder / which).stat().st_size), content)
        with Outbox(folder / FILE_NAME, max_bytes=50_000) as outbox:
            append(outbox, range(1000, 1003), 500)
            assert outbox.fault == ""
            taken = take(outbox)
            assert [it.payload for it in taken[-3:]] == [message(n, 500) for n in range(1000, 1003)]
            assert all(it.kind in ("tags", "events") for it in taken)
            settle(outbox, taken)
            assert (outbox.depth, outbox.health().bytes) == (0, 0)
        assert left_in(folder / FILE_NAME) == []
