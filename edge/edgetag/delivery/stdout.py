"""Events as lines of text for the next program in a pipe: JSON Lines or CSV.

Each event is written whole and flushed, so a reader never waits for one that has happened. When the
reader has gone (`edgetag replay street.wav | head -1`), `BrokenPipeError` leaves `deliver` and
nothing is raised after it: the command line ends quietly there. The stream stays the caller's, open.
"""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Self, TextIO

import msgspec

from edgetag.contract.errors import OutputError
from edgetag.contract.event import SoundEvent, Status, TagsEvent, encode
from edgetag.contract.taxonomy import Taxonomy
from edgetag.delivery.sink import Sink

_CSV_COLUMNS = (
    "source",
    "start",
    "end",
    "verdict",
    "valid",
    "overruns",
    "clipped",
    "laeq_db",
    "lafmax_db",
    "la10_db",
    "la90_db",
)


class JsonLines(Sink):
    """One event a line, byte for byte what a broker would get.

    Args:
        stream: binary (`sys.stdout.buffer`).
        everything: sounds that begin and end and the sensor's states are lines, too; `schema` tells which.
    """

    def __init__(self, stream: BinaryIO, *, everything: bool = False) -> None:
        self._stream = stream
        self._everything = everything

    def deliver(self, event: TagsEvent) -> None:
        """Write one line, whole.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        self._write(event)

    def sound(self, event: SoundEvent) -> None:
        """Write one line, whole, if `everything` is to be written; raises as `deliver`."""
        if self._everything:
            self._write(event)

    def state(self, status: Status) -> None:
        """Write one line, whole, if `everything` is to be written; raises as `deliver`."""
        if self._everything:
            self._write(status)

    def _write(self, message: msgspec.Struct) -> None:
        self._stream.write(encode(message) + b"\n")
        self._stream.flush()


class Csv(Sink):
    """A header, then one event a row: what was heard and how loud, a column per tag, what fired.

    The tags' columns are named by their labels (`7-1_person-or-small-group-talking`), coarse first;
    a tag the bundle cannot tell is empty. `refined` and `active` are ids separated by blanks.
    """

    def __init__(self, stream: TextIO, taxonomy: Taxonomy) -> None:
        self._stream = stream
        self._writer = csv.writer(stream, lineterminator="\n")
        self._taxonomy = taxonomy

    def __enter__(self) -> Self:
        """Write the header: a table without rows still says what it would hold."""
        self._writer.writerow(self._header())
        self._stream.flush()
        return self

    def deliver(self, event: TagsEvent) -> None:
        """Write one row, whole.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        self._writer.writerow(self._row(event))
        self._stream.flush()

    def _header(self) -> list[str]:
        labels = [self._taxonomy.tags[tag_id].label for tag_id in self._taxonomy.ids]
        return [*_CSV_COLUMNS, *labels, "refined", "active"]

    def _row(self, event: TagsEvent) -> list[object]:
        audio, level = event.audio, event.level
        probability = event.coarse | event.fine
        return [
            "" if event.source is msgspec.UNSET else event.source,
            event.start,
            event.end,
            event.verdict,
            audio.valid,
            audio.overruns,
            audio.clipped,
            level.laeq_db,
            level.lafmax_db,
            level.la10_db,
            level.la90_db,
            *(probability.get(tag_id, "") for tag_id in self._taxonomy.ids),
            " ".join(event.refined),
            " ".join(event.active),
        ]


class Stdout(Sink):
    """A sink that prints, and what becomes of it when nobody can be printed to.

    Args:
        sink: writes to stdout.
        may_leave: events go somewhere else, too: when the reader has gone, printing stops and no more.
    """

    def __init__(self, sink: Sink, *, may_leave: bool) -> None:
        self._sink = sink
        self._may_leave = may_leave
        self._gone = False

    def __enter__(self) -> Self:
        with self._watched():
            self._sink.__enter__()
        return self

    def deliver(self, event: TagsEvent) -> None:
        """Print one event.

        Raises:
            BrokenPipeError: the reader has gone, and there is nobody else.
            OutputError: stdout cannot be written.
        """
        if not self._gone:
            with self._watched():
                self._sink.deliver(event)

    def sound(self, event: SoundEvent) -> None:
        """Print a sound that began or ended; raises as `deliver`."""
        if not self._gone:
            with self._watched():
                self._sink.sound(event)

    def state(self, status: Status) -> None:
        """Print the sensor's state; raises as `deliver`."""
        if not self._gone:
            with self._watched():
                self._sink.state(status)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._gone = True
            if not self._may_leave:
                raise
        except OSError as error:
            raise OutputError(f"events cannot be written to stdout ({error.strerror})") from error
