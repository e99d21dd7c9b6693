r"""What a process does to the world outside it: files, sockets, bytes; as it asks the kernel for it.

```
command ─ program ─ its children        one file a thread, one call a line
```

    openat(AT_FDCWD</home>, "new", O_WRONLY|O_CREAT, 0666) = 3</home/new>
    write(3</home/new>, "RIFF\0\0", 6) = 6
    connect(4<TCP:[1234]>, {sa_family=AF_INET, sin_port=htons(1883), sin_addr=inet_addr("10.0.0.1")}, 16) = 0

What is written into the memory that a file is mapped to is not seen; the file was opened for writing before.
"""

import ast
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

WAIT_S = 30

_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_STANDS_FOR = r"<((?:->|[^<>]|<[^>]*>)*)>"
_CALL = re.compile(rf"(\w+)\((.*)\)\s+= (-1 E\w+|-?\w+|\?)(?:{_STANDS_FOR})?")
_DESCRIPTOR = re.compile(rf"\d+{_STANDS_FOR}")
_CONTENT = re.compile(rf"(?:^\d+{_STANDS_FOR}, |iov_base=){_QUOTED}")
_PATH = re.compile(rf"(?:(?:AT_FDCWD|\d+){_STANDS_FOR}, )?{_QUOTED}")
_SOCKET_PATH = re.compile(rf"sun_path=(@?){_QUOTED}")
_LISTENING = re.compile(r"^\d+<TCP(?:v6)?:\[(.*?)\]>")
_HOST = re.compile(rf"sin6?_port=htons\((\d+)\).*?(?:inet_addr\(|AF_INET6, ){_QUOTED}")

_OPENING = {"open", "openat", "openat2", "creat"}
_FOR_WRITING = re.compile(r"O_(?:WRONLY|RDWR|CREAT|TRUNC|TMPFILE)")
_LOOKING = {  # calls with a path that change nothing
    *("access", "faccessat", "faccessat2", "stat", "lstat", "newfstatat", "statx", "statfs", "readlink"),
    *("readlinkat", "getcwd", "chdir", "execve", "inotify_add_watch", "getxattr", "lgetxattr"),
}
_WRITING = {"write", "pwrite64", "writev", "pwritev", "pwritev2", "sendto", "sendmsg", "sendmmsg"}
_HIDDEN = {
    *("sendfile", "splice", "tee", "vmsplice", "copy_file_range", "io_uring_setup", "process_vm_writev"),
    *("fsetxattr", "shmget"),
}


@cache
def missing() -> str | None:
    """Why nothing can be traced here, if it cannot."""
    if not shutil.which("strace"):
        return "strace not installed"
    tried = subprocess.run(
        ["strace", "-D", "-f", "-o", os.devnull, "true"], capture_output=True, text=True, check=False
    )
    return f"strace: {tried.stderr.strip()}" if tried.returncode or tried.stderr else None


needs_strace = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class Trace:
    """Of one program and all that it starts.

    Args:
        folder: a new one.

    Attributes, once it has been read:
        changed: files and folders that were opened for writing, created, renamed or removed.
        called: to whom it spoke: a socket's path (an abstract one's with @), or host:port.
        answered: where it let itself be called, likewise.
        written: bytes, by where they went: a file's path, `TCP:[…]`, `UNIX-STREAM:[…]`, `pipe:[…]`.
        hidden: system calls that move bytes unseen.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self.changed: set[str] = set()
        self.called: set[str] = set()
        self.answered: set[str] = set()
        self.written: defaultdict[str, bytearray] = defaultdict(bytearray)
        self.hidden: set[str] = set()

    def command(self) -> tuple[str, ...]:
        """What starts the program, which remains the caller's own child."""
        calls = ",".join(["%file", "connect", "accept", "accept4", *sorted(_WRITING | _HIDDEN)])
        options = ["-D", "-ff", "--seccomp-bpf", "-yy", "-s", "1000000", "-e", f"trace={calls}"]
        return ("strace", *options, "-o", str(self._folder / "thread"))

    def read(self, pid: int) -> None:
        """All of it, once the program, which was `pid`, has ended and that is written down."""
        leader = self._folder / f"thread.{pid}"
        deadline_s = time.monotonic() + WAIT_S
        while not leader.read_text("ascii").endswith(" +++\n"):
            assert time.monotonic() < deadline_s, "the trace does not end"
            time.sleep(0.02)
        for file in self._folder.iterdir():
            for line in file.read_text("ascii").splitlines():
                if call := _CALL.match(line):
                    self._take(*call.groups())

    def _take(self, name: str, arguments: str, result: str, opened: str | None) -> None:
        if result.startswith("-1 ") and "EINPROGRESS" not in result:
            return
        if name in _WRITING or name == "connect":
            self._speak(arguments)
        elif name in _HIDDEN:
            self.hidden.add(name)
        elif name.startswith("accept"):
            self.answered.update(_LISTENING.findall(arguments))
        elif name in _OPENING:
            if name == "creat" or _FOR_WRITING.search(_PATH.sub("", arguments)):
                self.changed.add(opened or arguments)
        elif name not in _LOOKING:
            paths = (Path(folder or ".").absolute() / path for folder, path in _PATH.findall(arguments))
            self.changed.update(map(str, paths))

    def _speak(self, arguments: str) -> None:
        where = _DESCRIPTOR.match(arguments)
        assert where is not None, f"whither? {arguments[:200]}"
        for _, quoted in _CONTENT.findall(arguments):
            self.written[where[1]] += ast.literal_eval(f'b"{quoted}"')
        whom = _CONTENT.sub("", arguments)
        self.called.update(f"{at}{path}" for at, path in _SOCKET_PATH.findall(whom))
        self.called.update(f"{host}:{port}" for port, host in _HOST.findall(whom))
