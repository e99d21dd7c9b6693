"""The error tree. Each message says what was found, what was expected and what to do.

```
EdgetagError
├── InputError     exit code 2   usage, a recording, samples
├── BundleError    exit code 3   a bundle that must not be loaded
├── NetworkError   exit code 4   a broker or a download that cannot be reached or refuses
└── OutputError    exit code 5   stdout, or a file that was asked for, that cannot be written
```
"""

import os
import pwd
import sys
from typing import ClassVar

MAX_CHARACTERS = 4096  # a path may be that long


class EdgetagError(Exception):
    """Base of everything edgetag raises on purpose; `exit_code` is what the command line ends with.

    As a string it is one line of printable text, and not endless, whatever file name or manifest it quotes.
    """

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        text = super().__str__()
        return printable(text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …")


class InputError(EdgetagError):
    """The caller's input cannot be used: arguments, a file, samples."""

    exit_code = 2


class BundleError(EdgetagError):
    """A bundle is damaged, incomplete or of another format, and was not loaded."""

    exit_code = 3


class NetworkError(EdgetagError):
    """A broker or a server could not be reached, refused us, or did not answer in time."""

    exit_code = 4


class OutputError(EdgetagError):
    """Events or pictures cannot be written where they were asked for: a full disk, a closed stdout."""

    exit_code = 5


def install(extra: str) -> str:
    """The command that brings an extra's libraries to the very Python that lacks them.

    >>> install("plot").partition(" ")[2]
    "-m pip install 'edgetag[plot]'"
    """
    return f"{sys.executable} -m pip install 'edgetag[{extra}]'"


def first_line(error: Exception) -> str:
    """What another library's error says, in one line for a sentence of ours; its type, if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    """`text` on one line, with escapes for whatever a terminal would obey rather than show.

    >>> printable("a\\x1b[2J\\nb")
    'a\\\\x1b[2J\\\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def own_user() -> str:
    """As whom this process runs: what a sentence on missing rights has to say."""
    return user_name(os.geteuid())


def user_name(uid: int) -> str:
    """A user's name; its number, if it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
