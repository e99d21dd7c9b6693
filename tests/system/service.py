"""edgetag as a service of a machine at a lamp post, as `deploy/install.sh` puts it there."""

import functools
import shutil
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from edgetag.demo.scene import street_scene
from system.lamp_post import SENSOR, LampPost
from system.machine import Machine, fresh_machine

UNIT = "edgetag.service"
TIMER = "edgetag.timer"
CONFIGURATION = "etc/edgetag/edgetag.yaml"
STATE_DIRECTORY = "var/lib/edgetag"
INSTALLING_S = 300
STARTING_S = 60  # ten seconds of audio, and what two busy processors need before

_REPOSITORY = Path(__file__).parents[2]
_AS_INSTALLED = "root/edgetag.yaml"
_DROP_IN = f"etc/systemd/system/{UNIT}.d/test.conf"
_TIMER_DROP_IN = f"etc/systemd/system/{TIMER}.d/test.conf"


class Number(NamedTuple):
    """What makes an event unique at its sensor."""

    boot: str
    seq: int


@functools.cache
def archive() -> Path:
    """What `make archive` packs of the repository as it is now, for this machine's processor."""
    made = subprocess.run(
        ["make", "--silent", "archive", "ARCH=amd64"],
        cwd=_REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout
    return max((_REPOSITORY / "dist").glob("edgetag-*-amd64.tar.gz"), key=lambda file: file.stat().st_mtime)


@contextmanager
def lamp(*, is_on: bool = True) -> Iterator["Service"]:
    """A machine at its lamp post, booted if it `is_on`; edgetag's archive lies unpacked in root's home."""
    with fresh_machine() as machine:
        post = LampPost(machine, street_scene().samples)
        subprocess.run(["tar", "-xf", archive(), "-C", machine.root / "root"], check=True)
        if is_on:
            machine.boot()
        yield Service(machine, post)


class Service:
    """edgetag there: how it is started, spoilt and asked."""

    def __init__(self, machine: Machine, post: LampPost) -> None:
        self.machine, self.post = machine, post
        (self.unpacked,) = (folder.name for folder in (machine.root / "root").glob("edgetag-*-debian12-*"))
        self._remedies: list[tuple[str, ...]] = []

    # -- installing ------------------------------------------------------------------------------

    def install(self, *options: str, folder: str = "") -> subprocess.CompletedProcess[str]:
        """Run `install.sh` of the unpacked archive, or of another folder in root's home."""
        script = f"/root/{folder or self.unpacked}/install.sh"
        return self.machine.call(script, *options, within_s=INSTALLING_S)

    def install_here(self) -> subprocess.CompletedProcess[str]:
        """For the first time, as lamp-17; the configuration of now is what `mend` brings back."""
        done = self.install("--identity", f"/root/{SENSOR}.tar")
        self.machine.run("cp", "--archive", f"/{CONFIGURATION}", f"/{_AS_INSTALLED}")
        return done

    def release(self) -> str:
        """The name of the release in force."""
        return Path(self.machine.run("readlink", "/opt/edgetag/current")).name

    # -- starting and asking -----------------------------------------------------------------------

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """It may fail."""
        return self.machine.call("systemctl", *arguments, UNIT)

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.machine.show(UNIT, name)

    def start_anew(self) -> float:
        """End it, and start it without waiting; returns when that was, in seconds since 1970."""
        self.systemctl("stop")
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "reset-failed")
        since_s = time.time()
        self.machine.run("systemctl", "start", "--no-block", UNIT)
        return since_s

    def wait_for(self, active_state: str, within_s: float = STARTING_S) -> None:
        """Returns when systemd says `active`, `failed`, …"""
        self.machine.wait_until(lambda: self.show("ActiveState") == active_state, active_state, within_s)

    def wait_for_state(self, state: str, since_s: float, within_s: float = STARTING_S) -> dict[str, Any]:
        """The first status since then that says `online`, `degraded`, …"""

        def said() -> list[dict[str, Any]]:
            heard = self.post.heard("status", since_s)
            return [status.message for status in heard if status.message["state"] == state]

        self.machine.wait_until(said, state, within_s)
        return said()[0]

    def wait_for_tags(self, since_s: float, n: int = 1, within_s: float = STARTING_S) -> list[dict[str, Any]]:
        """The events of windows since then, as soon as there are `n`."""
        within_s += 5 * n
        self.machine.wait_until(lambda: len(self.post.heard("tags", since_s)) >= n, f"{n} windows", within_s)
        return [heard.message for heard in self.post.heard("tags", since_s)]

    def said(self, since_s: float) -> list[str]:
        """The process's own lines in the journal."""
        options = ["--no-pager", "--quiet", "--output=cat", f"--since=@{since_s:.6f}"]
        return self.machine.run("journalctl", *options, "--identifier=edgetag").splitlines()

    def starts(self, since_s: float) -> int:
        """How often systemd has begun to start it, for whatever reason."""
        return sum(line.startswith("Starting edgetag") for line in self.machine.journal(UNIT, since_s))

    def restarts(self, since_s: float) -> int:
        """How often systemd has started it by itself, because it had ended."""
        return sum("Scheduled restart job" in line for line in self.machine.journal(UNIT, since_s))

    def waiting(self) -> list[Number]:
        """The windows in the outbox, in order. A copy is looked at, so that nobody is in the sensor's way."""
        with tempfile.TemporaryDirectory() as folder:
            for file in (self.machine.root / STATE_DIRECTORY).glob("outbox.db*"):
                shutil.copy(file, folder)
            connection = sqlite3.connect(Path(folder, "outbox.db"))
            try:
                query = "SELECT payload FROM message WHERE kind = 'tags' ORDER BY id"
                events = [msgspec.json.decode(payload) for (payload,) in connection.execute(query)]
            finally:
                connection.close()
        return [Number(event["boot"], event["seq"]) for event in events]

    # -- spoiling and mending ----------------------------------------------------------------------

    def spoil(self, *command: str, remedy: tuple[str, ...]) -> None:
        """Run a command in there; `mend` runs the other one."""
        self._remedies.append(remedy)
        self.machine.run(*command)

    def drop_in(self, text: str, timer: str = "") -> None:
        """Change the unit, and its timer, from the next start on."""
        for path, lines in ((_DROP_IN, text), (_TIMER_DROP_IN, timer)):
            (self.machine.root / path).parent.mkdir(exist_ok=True)
            (self.machine.root / path).write_text(lines)
        self.machine.run("systemctl", "daemon-reload")

    def configure(self, text: str) -> None:
        """Another configuration; who may read it stays."""
        (self.machine.root / CONFIGURATION).write_text(text)

    def configuration(self) -> str:
        """As it was installed."""
        return (self.machine.root / _AS_INSTALLED).read_text()

    def mend(self) -> None:
        """What was spoilt, unit, configuration, microphone and broker are again as they were at first.

        It is started again if any of these was changed, or if it does not run; returns when it is ready.
        """
        root, run = self.machine.root, self.machine.run
        is_changed = bool(self._remedies) or (root / _DROP_IN).exists()
        while self._remedies:
            run(*self._remedies.pop())
        for path in (_DROP_IN, _TIMER_DROP_IN):
            (root / path).unlink(missing_ok=True)
        file = root / CONFIGURATION
        is_changed |= not file.exists() or file.read_text() != self.configuration()
        run("cp", "--archive", f"/{_AS_INSTALLED}", f"/{CONFIGURATION}")
        run("systemctl", "start", "mosquitto", "microphone", "street", "reader")
        self.post.go_on()
        if is_changed or self.show("ActiveState") != "active" or self.post.state()[0] != "online":
            since_s = self.start_anew()
            self.wait_for("active")
            self.wait_for_state("online", since_s)
