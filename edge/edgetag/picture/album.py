"""The pictures that a replay was asked for, each drawn when its recording ends."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from edgetag.picture.place import unwritable
from edgetag.picture.portrait import Portrait
from edgetag.tagging.atomic import replacing

PLOT_SUFFIXES = (".png", ".svg", ".pdf")
PAGE_SUFFIXES = (".html", ".htm")
Draw = Callable[[Portrait, BinaryIO, str], None]


@dataclass(frozen=True)
class Album:
    """Pictures of one kind.

    Attributes:
        option: that asked for them.
        places: by recording.
        draw: writes one; its format is the file's suffix.
        drawn: those that are there, in their order.
    """

    option: str
    places: Mapping[str, Path]
    draw: Draw
    drawn: list[Path] = field(default_factory=list)

    def add(self, file: str, portrait: Portrait) -> None:
        """Draw one; the file is there whole, or as it was.

        Raises:
            OutputError: it cannot be written.
        """
        path = self.places[file]
        try:
            with replacing(path) as stream:
                self.draw(portrait, stream, path.suffix.lower().removeprefix("."))
        except OSError as error:
            raise unwritable(self.option, path, error) from error
        self.drawn.append(path)
