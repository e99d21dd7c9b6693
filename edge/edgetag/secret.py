"""Secrets: read from files, shown as stars."""

import os
from pathlib import Path

import structlog

from edgetag.contract.errors import InputError
from edgetag.tagging.container import NotPlainError, open_plain_file

MAX_BYTES = 0xFFFF  # an MQTT string's

_READABLE_BY_OTHERS = 0o004
_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.secret")


class Secret:
    """Text that prints as stars; whoever needs it asks.

    >>> str(Secret("hunter2")), repr(Secret("hunter2")), Secret("hunter2").reveal()
    ('***', "Secret('***')", 'hunter2')
    """

    __slots__ = ("__text",)

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """The text itself."""
        return self.__text

    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.__text == other.__text

    def __hash__(self) -> int:
        return hash(self.__text)


def read_secret(file: Path, setting: str) -> Secret:
    """A file's first line, without its end. One that everybody may read is logged.

    Args:
        file: the file.
        setting: the setting that names it, for messages; they never quote the path, for which somebody may
            have put the secret itself.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or its first line is empty or too long.
    """
    try:
        with open_plain_file(file, follow=True) as stream:
            is_open = os.fstat(stream.fileno()).st_mode & _READABLE_BY_OTHERS
            line = stream.readline(MAX_BYTES + 2).rstrip(b"\r\n")
        text = line.decode("utf-8")
    except NotPlainError as error:
        raise InputError(f"{setting} names {error}, not a file with a secret") from None
    except UnicodeDecodeError:
        raise InputError(f"the first line of {setting}'s file is not UTF-8") from None
    except OSError as error:
        raise InputError(f"{setting}'s file cannot be read ({error.strerror})") from None
    if not line or len(line) > MAX_BYTES:
        fault = f"longer than {MAX_BYTES} bytes" if line else "empty"
        raise InputError(f"the first line of {setting}'s file is {fault}")
    if is_open:
        _log.warning("secret.readable_by_others", setting=setting, remedy="chmod o-r")
    return Secret(text)
