"""Recordings heard by several processes, and told in the order in which they were given.

```
worker 1   a a a a a a c c c      says what it hears, window by window
worker 2   b b b b                stands still while too much waits for its turn
told       a a a a a a b b b b c c c
```

What waits for its turn is bounded, however many and however long the recordings are. A worker that dies is
replaced, and another one hears its recording from the beginning; what is known of it already is not told
twice, since the same samples give the same windows.

A pool of `concurrent.futures` would break as a whole when one of its processes dies, not say over what, and
hold a recording's windows back until its end.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import structlog

from edgetag.contract.errors import BundleError, EdgetagError, InputError
from edgetag.contract.manifest import Variant
from edgetag.hearing import Begun, Ended, Said, hear
from edgetag.log import configure
from edgetag.tagging.conditions import Conditions

if TYPE_CHECKING:
    from edgetag.tagging.stream import EventStream

MAX_AHEAD = 4096
"""Messages that may wait for their turn: about as many windows, of some 4 kB each."""
MAX_DEATHS = 2  # of workers over one recording; the first may have been bad luck
MAX_STILLBORN = 3  # workers in a row that ended before they could hear; more of them would, too

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.workers")
_spawning = multiprocessing.get_context("spawn")  # a fork would have the runtime's locks without its threads


class Ears(NamedTuple):
    """What recordings are heard with, for another process to make the same of it.

    Attributes:
        bundle: where it lies, a folder or an archive.
        sha256: of its manifest; another bundle may have taken its place since.
        variant, threads, public_key: as `Tagger.load` takes them.
        conditions: of the sensor.
        hop_samples: from one window's start to the next.
    """

    bundle: Path
    sha256: str
    variant: Variant
    threads: int
    public_key: Path | None
    conditions: Conditions
    hop_samples: int

    def stream(self) -> "EventStream":
        """What hears, by the bundle, checked whole. Who is told of it says for which sensor.

        Raises:
            BundleError: it does not pass, or is not the same any more.
            InputError: the key cannot be used.
        """
        from edgetag.tagging.stream import EventStream
        from edgetag.tagging.tagger import Tagger

        tagger = Tagger.load(self.bundle, self.variant, threads=self.threads, public_key=self.public_key)
        if tagger.bundle.sha256 != self.sha256:
            raise BundleError(f"{self.bundle} is another bundle than it was a moment ago; start again")
        return EventStream(tagger, sensor="", conditions=self.conditions)


@dataclass(eq=False)
class _Recording:
    """One that has been begun, and what was said of it that is not told yet."""

    file: str
    said: deque[Said | EdgetagError] = field(default_factory=deque)
    n_said: int = 0
    n_deaths: int = 0


class Workers:
    """Processes that hear recordings, for as long as they are entered.

    They start at once, beside whoever finds out with what they are to hear.

    Args:
        n: how many.
        max_ahead: how much may wait for its turn, beside what each worker is about to say.

    Attributes:
        n_ahead: how much waits.
    """

    def __init__(self, n: int, *, max_ahead: int = MAX_AHEAD) -> None:
        self.n_ahead = 0
        self._n, self._max_ahead = n, max_ahead
        self._ears: Ears | None = None
        self._workers: list[_Worker] = []
        self._in_hand: deque[_Recording] = deque()  # in order; the first one is being told
        self._unheard: deque[_Recording] = deque()  # of these, those that no worker has
        self._n_stillborn = 0

    def __enter__(self) -> Self:
        self._workers += [_Worker() for _ in range(self._n)]
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End them at once, whatever they do."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def equip(self, ears: Ears) -> None:
        """Tell them with what they hear, once and before anything else."""
        self._ears = ears
        for worker in self._workers:
            worker.send(ears)

    def hear(self, files: Iterable[str]) -> Iterator[tuple[str, Iterator[Said]]]:
        """Each recording with what is said of it: `Begun`, its windows, `Ended`.

        All of that is to be taken before the next one; taking it raises:

        Raises:
            InputError: it cannot be read, broke off, or two workers died over it; what came before was said.
            EdgetagError: hearing failed, or workers cannot be started.
        """
        waiting = iter(files)
        while self._in_hand or self._open(waiting):
            recording = self._in_hand[0]
            yield recording.file, self._tell(recording, waiting)
            self._in_hand.popleft()

    def _tell(self, recording: _Recording, waiting: Iterator[str]) -> Iterator[Said]:
        said: Said | EdgetagError | None = None
        while not isinstance(said, Ended):
            while not recording.said:
                self._hand_out(waiting)
                self._listen(recording)
            said = recording.said.popleft()
            self.n_ahead -= 1
            if isinstance(said, EdgetagError):
                raise said
            yield said

    def _open(self, waiting: Iterator[str]) -> bool:
        """Take the next recording in hand; whether there was one."""
        file = next(waiting, None)
        if file is not None:
            recording = _Recording(file)
            self._in_hand.append(recording)
            self._unheard.append(recording)
        return file is not None

    def _hand_out(self, waiting: Iterator[str]) -> None:
        """Give those who are idle something to hear."""
        for worker in self._workers:
            is_wanted = worker.is_ready and worker.recording is None
            if is_wanted and (self._unheard or (self.n_ahead < self._max_ahead and self._open(waiting))):
                worker.begin(self._unheard.popleft())

    def _listen(self, told: _Recording) -> None:
        """Take one message from each who has one; from those who are too far ahead of what is told, none."""
        is_full = self.n_ahead >= self._max_ahead
        heeded = [worker for worker in self._workers if not is_full or worker.recording in (None, told)]
        ready = wait([worker.connection for worker in heeded])
        for worker in heeded:
            if worker.connection in ready:
                try:
                    self._take(worker, worker.connection.recv())
                except (EOFError, OSError):
                    self._replace(worker)

    def _take(self, worker: "_Worker", said: Said | EdgetagError | None) -> None:
        """What a worker says: that it is ready, or why not; then of its recording."""
        recording = worker.recording
        if said is None:
            worker.is_ready, self._n_stillborn = True, 0
        elif recording is None:
            assert isinstance(said, EdgetagError)
            raise said
        elif worker.n_known:
            worker.n_known -= 1
        else:
            self._note(recording, said)
            if isinstance(said, Ended | EdgetagError):
                worker.recording = None

    def _note(self, recording: _Recording, said: Said | EdgetagError) -> None:
        recording.said.append(said)
        recording.n_said += 1
        self.n_ahead += 1

    def _replace(self, dead: "_Worker") -> None:
        """Start another one. A recording that it was hearing is heard again, or given up."""
        dead.process.join()
        self._workers.remove(dead)
        self._n_stillborn += not dead.is_ready
        how = _manner(dead.process.exitcode)
        if self._n_stillborn == MAX_STILLBORN:
            raise EdgetagError(f"processes that are to hear {how} as they begin; try fewer of them (--jobs)")
        if (recording := dead.recording) is not None:
            recording.n_deaths += 1
            if recording.n_deaths < MAX_DEATHS:
                self._unheard.appendleft(recording)
            else:
                reason = f"{MAX_DEATHS} processes that heard it {how}; it is given up"
                self._note(recording, InputError(f"{recording.file}: {reason}"))
        self._workers.append(_Worker())
        self._workers[-1].send(self._ears)


class _Worker:
    """A process that hears, from its start on.

    Attributes:
        is_ready: its bundle is loaded.
        recording: what it hears; None if nothing.
        n_known: how much of what it will say of that somebody else has said before.
    """

    def __init__(self) -> None:
        self.is_ready = False
        self.recording: _Recording | None = None
        self.n_known = 0
        self.connection, theirs = _spawning.Pipe()
        self.process = _spawning.Process(target=_work, args=(theirs,), daemon=True)
        with _interrupts_held():
            self.process.start()
        theirs.close()

    def begin(self, recording: _Recording) -> None:
        self.recording, self.n_known = recording, recording.n_said
        self.send(recording.file)

    def send(self, what: Ears | str | None) -> None:
        with suppress(OSError):  # it is dead, and will be found so
            self.connection.send(what)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """What starts here never sees a Ctrl-C, which goes to everybody at the terminal; we see it afterwards.

    The first process would bring multiprocessing's resource tracker with it, whose start lets interrupts in.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _manner(exit_code: int | None) -> str:
    """How processes end.

    >>> _manner(-9), _manner(1)
    ('were killed (SIGKILL)', 'ended with exit code 1')
    """
    if exit_code is not None and exit_code < 0:
        return f"were killed ({signal.Signals(-exit_code).name})"
    return f"ended with exit code {exit_code}"


# -- a worker ------------------------------------------------------------------------------------------------


def _work(connection: Connection) -> None:
    """Take what is heard with, say that all is ready; then, of each recording that is named, what is heard.

    Ends when nobody listens any more.
    """
    # Loaded while whoever started this finds out with what it is to hear.
    from edgetag.capture import file  # noqa: F401
    from edgetag.tagging import tagger  # noqa: F401

    configure()
    with suppress(EOFError, ConnectionError):
        ears: Ears = connection.recv()
        try:
            stream = ears.stream()
        except EdgetagError as error:
            connection.send(error)
            return
        connection.send(None)
        while True:
            for said in _hear(connection.recv(), stream, ears.hop_samples):
                connection.send(said)


def _hear(file: str, stream: "EventStream", hop_samples: int) -> Iterator[Said | EdgetagError]:
    from edgetag.capture.file import open_recording

    try:
        with open_recording(file) as source:
            yield Begun(source.duration_s)
            yield from hear(source, stream.hear, hop_samples=hop_samples)
    except InputError as error:
        yield InputError(str(error))  # those with more to them would not travel
    except EdgetagError as error:
        yield error
    except Exception as error:
        _log.exception("worker.failed", file=file)
        yield EdgetagError(f"{file}: hearing it failed ({type(error).__name__})")
