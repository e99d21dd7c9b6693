"""A network of two machines and a cable, on this one: where packets can be made to vanish.

```
near (the sensor's)  10.9.0.1 ═════════ 10.9.0.2  far (the broker's)
```
Needs root. Both ends are network namespaces; they go with the processes that hold them.
"""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

FAR = "10.9.0.2"
_NEAR = "10.9.0.1"
_NOBODY = "02:00:00:00:00:99"  # a network card that is not there
_TOOLS = ("ip", "unshare", "nsenter")


def _is_possible() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, _TOOLS)) and _run("unshare", "-n", "true") == 0


def _run(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


class Cable:
    """Commands behind `near` and `far` run at its ends. While it is entered it can be cut."""

    def __enter__(self) -> Self:
        self._ends = [subprocess.Popen(["unshare", "-n", "sleep", "600"]) for _ in range(2)]
        self.near, self.far = (("nsenter", "-t", str(end.pid), "-n") for end in self._ends)
        for end in self._ends:
            _wait_for_namespace(end)
        self._ip(self.near, "link add near type veth peer name far")
        self._ip(self.near, f"link set far netns {self._ends[1].pid}")
        for end, name, address in (self.near, "near", _NEAR), (self.far, "far", FAR):
            self._ip(end, f"addr add {address}/24 dev {name}")
            self._ip(end, "link set lo up")
            self._ip(end, f"link set {name} up")
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for end in self._ends:
            end.kill()
            end.wait()

    def cut(self) -> None:
        """From now on every packet goes to nobody; no end is told."""
        self._ip(self.near, f"neigh replace {FAR} lladdr {_NOBODY} dev near nud permanent")
        self._ip(self.far, f"neigh replace {_NEAR} lladdr {_NOBODY} dev far nud permanent")

    def mend(self) -> None:
        self._ip(self.near, f"neigh del {FAR} dev near")
        self._ip(self.far, f"neigh del {_NEAR} dev far")

    def _ip(self, end: tuple[str, ...], command: str) -> None:
        subprocess.run([*end, "ip", *command.split()], check=True)


def _wait_for_namespace(process: "subprocess.Popen[bytes]") -> None:
    own = Path("/proc/self/ns/net").readlink()
    while Path(f"/proc/{process.pid}/ns/net").readlink() == own:
        assert process.poll() is None, "no network namespace can be had here"


needs_cable = pytest.mark.skipif(
    not _is_possible(), reason="no network namespaces: needs root, ip and nsenter"
)
