"""What a run over an archive is, and where its events lie.

```
OUT/
  replay.json                     the run: model, version, hop, …; OUT holds the events of no other
  data/2019/a.wav.jsonl           all events of /data/2019/a.wav: it is done
  data/2019/b.wav.damaged.jsonl   what could be tagged of a recording that broke off; it is tried again
  failed.jsonl                    what the latest attempt could not tag, or not whole, and why
  .partial/                       what is being written
```

A recording lies where `tar` would put it: by the name that was given, without a leading `/`.
"""

import dataclasses
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from edgetag.contract.errors import InputError, OutputError
from edgetag.contract.event import Info, TagsEvent, derived_boot_id, encode
from edgetag.delivery.sink import Sink
from edgetag.tagging.atomic import replacing
from edgetag.tagging.conditions import Conditions

RUN_NAME, FAILED_NAME, PARTIAL_NAME = "replay.json", "failed.jsonl", ".partial"
_HEAD_BYTES = 4096  # of an event's line; its boot is near the beginning


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """By what an archive is heard.

    Attributes:
        id: tells its events from those of an earlier run in the same place.
        sensor: of the events.
        calibration_db, min_laeq_db: see `Conditions`.
        info: what one needs to read the events; version, bundle, variant and hop are in it.
    """

    schema: Literal["edgetag.replay/1"] = "edgetag.replay/1"
    id: str
    sensor: str
    calibration_db: float | None
    min_laeq_db: float | None
    info: Info

    @classmethod
    def new(cls, id: str, sensor: str, conditions: Conditions, info: Info) -> Self:
        return cls(id=id, sensor=sensor, **dataclasses.asdict(conditions), info=info)

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.calibration_db, self.min_laeq_db)

    def boot(self, name: str) -> str:
        """Of a recording's events: the same by whomever, and however often, it is heard in this run."""
        return derived_boot_id(self.id, os.fsencode(name))

    def differences(self, other: Self) -> list[str]:
        """What is not the same, but for the ids."""
        mine, others = (msgspec.to_builtins(run) for run in (self, other))
        mine, others = ({**run, **run["info"]} for run in (mine, others))
        names = [name for name in mine if name not in ("id", "info") and mine[name] != others[name]]
        return [f"{name} {mine[name]} instead of {others[name]}" for name in names]


class Failure(msgspec.Struct, frozen=True):
    """A recording that could not be tagged, or not whole. `is_missing`: its worker sees no such file."""

    file: str
    reason: str
    is_missing: bool = False


class Output:
    """The folder in which a run writes. Names of recordings have no `..` in them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def events_of(self, name: str) -> Path:
        """Where the events of the recording of this name are, once it is done."""
        return self.folder / f"{name.lstrip('/')}.jsonl"

    def damaged_of(self, name: str) -> Path:
        """Where they are if it is not all of them."""
        return self.folder / f"{name.lstrip('/')}.damaged.jsonl"

    def is_done(self, run: Run, name: str) -> bool:
        """Whether the recording of this name has been heard in this run, from its first sample to its last.

        Events take their place in one step. What a loss of power may leave there, an empty file or the
        beginning of one, is not taken for them.
        """
        try:
            with self.events_of(name).open("rb") as stream:
                head = stream.read(_HEAD_BYTES)
                stream.seek(-1, os.SEEK_END)
                return f'"boot":"{run.boot(name)}"'.encode() in head and stream.read(1) == b"\n"
        except OSError:
            return False

    def begin(self, run: Run, *, again: bool) -> Run:
        """Make the folder this run's, or go on with the run that it has begun.

        Raises:
            InputError: it holds the events of another run.
            OutputError: it cannot be written.
        """
        known = None if again else self.run()
        if known is not None:
            if differences := run.differences(known):
                raise InputError(
                    f"{self.folder} holds events of another run: now with {', '.join(differences)}; "
                    "give another --out, or hear everything anew with --again"
                )
            return known
        with writing(self.folder):
            (self.folder / PARTIAL_NAME).mkdir(parents=True, exist_ok=True)
            with replacing(self.folder / RUN_NAME) as stream:
                stream.write(msgspec.json.format(msgspec.json.encode(run)) + b"\n")
        return run

    def run(self) -> Run | None:
        """The run that the folder holds; None if it holds none.

        Raises:
            InputError: it cannot be read, or nobody knows what it holds.
        """
        try:
            return msgspec.json.decode((self.folder / RUN_NAME).read_bytes(), type=Run)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise InputError(
                f"{self.folder / RUN_NAME} does not say what the folder holds ({error}); give another --out, "
                "or hear everything anew with --again"
            ) from error

    @contextmanager
    def failures(self) -> Iterator[Callable[[Failure], None]]:
        """What writes failures down; those of an earlier attempt are forgotten.

        Raises:
            OutputError: they cannot be written.
        """
        path = self.folder / FAILED_NAME
        with writing(path):
            stream = path.open("wb", buffering=0)

        def write(failure: Failure) -> None:
            with writing(path):
                stream.write(encode(failure) + b"\n")

        with stream:
            yield write

    def tidy(self) -> None:
        """Remove what workers that died have left. Nobody writes any more."""
        with suppress(OSError):
            for draft in (self.folder / PARTIAL_NAME).iterdir():
                draft.unlink()

    def draft(self) -> "Draft":
        """Events to be, aside."""
        return Draft(self.folder / PARTIAL_NAME / secrets.token_hex(8))


class Draft(Sink):
    """Writes events to a file aside, which is gone in the end unless it was kept.

    Raises:
        OutputError: it cannot be written; so do its methods.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        with writing(self._path):
            self._stream = self._path.open("xb")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._stream.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def deliver(self, event: TagsEvent) -> None:
        with writing(self._path):
            self._stream.write(encode(event) + b"\n")

    def keep(self, path: Path) -> None:
        """Take a place, in one step."""
        with writing(path):
            self._stream.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path.replace(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whoever writes there.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror})") from error
