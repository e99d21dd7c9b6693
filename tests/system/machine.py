"""A whole machine: a Debian with systemd as its first process, in namespaces of its own.

```
debootstrap   Debian, and what a test's street is made of  │ once: a minute or two
cp            a copy of it, the machine's disk             │ a second, for every machine
boot          pytest ─ unshare ─ systemd ─ services        │ a second; as often as one likes
```

The disk outlives a reboot and a `cut_power()`; `/run`, `/dev` and the network (a loopback) do not. Kernel and
clock are the host's, and the machine has no right to change them. What else a sensor has and this has not: a
sound card, a running udev (its sysfs cannot be written), and, on a host whose cgroup controllers are those of
version 1, limits of memory and CPU: they are set, and nobody enforces them.

Debian is kept under `EDGETAG_MACHINE` (`~/.cache/edgetag/machine`); delete the folder to begin anew.
Its packages come from where this host's apt takes its own. A machine whose test was killed is gone at once;
what is left of its disk is removed by the next one.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from system.emulation import SUITE, mirror

WAIT_S = 60
_POLL_S = 0.1
_PACKAGES = (
    # What every Debian has, and debootstrap leaves out.
    *("systemd-sysv", "dbus", "udev", "python3", "iproute2", "procps"),
    # The street, its broker, and a wrong clock.
    *("pulseaudio", "pulseaudio-utils", "libasound2-plugins", "mosquitto", "mosquitto-clients", "faketime"),
)
_PROGRAMS = ("debootstrap", "apt-get", "unshare", "nsenter", "setpriv", "pivot_root", "mount")
_ENVIRONMENT = (
    "env",
    "-i",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG=C.UTF-8",
)
_NO_RIGHTS_OVER_THE_HOST = ("setpriv", "--bounding-set=-sys_time,-sys_module,-sys_rawio,-syslog,-mac_admin")

# In new namespaces: takes a place in the cgroup, so that a namespace of cgroups begins there.
_JOIN = 'echo 0 >"$0"/cgroup.procs; exec unshare --cgroup sh -euc "$1" "$2"'

# There: mounts what a kernel's first process finds, and becomes it.
_BOOT = f"""
mount --bind "$0" "$0"
cd "$0"
mount -t proc -o nosuid,nodev,noexec proc proc
mount --bind -o ro proc/sys proc/sys
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs run
mount -t tmpfs -o nosuid,mode=755 tmpfs dev
for device in null zero full random urandom tty; do
  : >dev/$device
  mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs dev/shm
pivot_root . .
umount --lazy .
cd /
mount --make-rshared /
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
exec {" ".join((*_ENVIRONMENT, "container=edgetag", *_NO_RIGHTS_OVER_THE_HOST))} /lib/systemd/systemd --system
"""


def missing() -> str | None:
    """Why no machine can be had here, if it cannot."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    absent = [program for program in _PROGRAMS if not shutil.which(program)]
    if absent:
        return f"{', '.join(absent)} not installed"
    return None if _cgroups() else "no cgroups of version 2 are mounted"


@contextmanager
def fresh_machine() -> Iterator["Machine"]:
    """A machine with a plain Debian, switched off; in the end nothing is left of it."""
    cache = Path(os.environ.get("EDGETAG_MACHINE", Path.home() / ".cache" / "edgetag" / "machine"))
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_left_behind(cache)
        debian = _debian(cache)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=cache))
        in_use = _locked(folder)
        assert in_use is not None
    machine = Machine(folder)
    try:
        subprocess.run(["cp", "--archive", "--reflink=auto", debian, machine.root], check=True)
        yield machine
    finally:
        machine.cut_power()
        _remove(folder)
        os.close(in_use)


class Machine:
    """A machine of `folder`, whose disk is `root` there: files on it can be read and written from here.

    Do not follow its absolute links from here: they lead into the host's own files.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self._console = folder / "console"
        self._cgroup = _cgroup_of(folder)
        self._unshare: subprocess.Popen[bytes] | None = None

    # -- power -----------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on. Returns when services of its own begin to start."""
        self._cgroup.mkdir(exist_ok=True)
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
        join = ["sh", "-euc", _JOIN, str(self._cgroup), _BOOT, str(self.root)]
        with self._console.open("ab") as console:
            self._unshare = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, *join],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self.wait_until(self._is_up, "booted")

    def reboot(self) -> None:
        """Everything is ended as it should be, and begins again."""
        self.call("systemctl", "reboot")
        assert self._unshare is not None
        self._unshare.wait(WAIT_S)
        self.boot()

    def cut_power(self) -> None:
        """All its processes are gone at once, whether it runs or not."""
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait(WAIT_S)
            self._unshare = None
        _remove_cgroup(self._cgroup)

    def offline(self, *command: str) -> str:
        """What a command says that works on its disk while it is switched off, and must succeed."""
        done = subprocess.run(
            ["chroot", self.root, *_ENVIRONMENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stdout}"
        return done.stdout

    # -- inside ----------------------------------------------------------------------------------

    def inside(self, *command: str) -> list[str]:
        """The command as root's in there."""
        spaces = ["--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net"]
        enter = ["nsenter", "--target", str(self._first_process()), *spaces, "--"]
        return [*enter, *_ENVIRONMENT, *_NO_RIGHTS_OVER_THE_HOST, *command]

    def call(self, *command: str, within_s: float = WAIT_S) -> subprocess.CompletedProcess[str]:
        """Run it in there; stderr is in stdout."""
        return subprocess.run(
            self.inside(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=within_s,
        )

    def run(self, *command: str, within_s: float = WAIT_S) -> str:
        """What a command says, which must succeed."""
        done = self.call(*command, within_s=within_s)
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stdout}"
        return done.stdout.rstrip("\n")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", "--property", name, "--value", unit)

    def journal(self, unit: str, since_s: float = 0) -> list[str]:
        """What a unit has said, and systemd of it; `since_s` is seconds since 1970."""
        options = ["--no-pager", "--quiet", "--output=cat", f"--since=@{since_s:.6f}"]
        return self.run("journalctl", *options, "--unit", unit).splitlines()

    def wait_until(self, done: Callable[[], object], what: str, within_s: float = WAIT_S) -> None:
        """Returns when it is `done`."""
        deadline_s = time.monotonic() + within_s
        while not done():
            assert time.monotonic() < deadline_s, f"not {what}; the console says: {self._last_words()}"
            time.sleep(_POLL_S)

    def _is_up(self) -> bool:
        assert self._unshare is not None
        assert self._unshare.poll() is None, f"the machine does not boot: {self._last_words()}"
        return self._is_systemd() and self.call("systemctl", "is-active", "basic.target").returncode == 0

    def _is_systemd(self) -> bool:
        """Whether the first process has become it: what enters sooner is in the host's own files."""
        try:
            return Path("/proc", str(self._first_process()), "comm").read_text() == "systemd\n"
        except (FileNotFoundError, ProcessLookupError, IndexError):
            return False

    def _first_process(self) -> int:
        assert self._unshare is not None, "the machine is switched off"
        pid = self._unshare.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def _last_words(self) -> str:
        return self._console.read_text(errors="replace")[-2000:]


# -- what is kept, and what is not -------------------------------------------------------------------

_PREFIX = "running-"


def _debian(cache: Path) -> Path:
    """Debian as it is copied; made anew where other packages are asked for than before."""
    debian, partial, stamp = cache / "debian", cache / "partial", cache / "packages"
    if stamp.exists() and stamp.read_text() == " ".join(_PACKAGES):
        return debian
    stamp.unlink(missing_ok=True)
    for folder in (debian, partial):
        if folder.exists():
            shutil.rmtree(folder)
    options = ["--variant=minbase", f"--include={','.join(_PACKAGES)}"]
    made = subprocess.run(
        ["debootstrap", *options, SUITE, partial, mirror()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert made.returncode == 0, f"debootstrap ended with {made.returncode}: {made.stdout[-2000:]}"
    for archive in (partial / "var/cache/apt/archives").glob("*.deb"):
        archive.unlink()
    partial.rename(debian)
    stamp.write_text(" ".join(_PACKAGES))
    return debian


def _remove_left_behind(cache: Path) -> None:
    for folder in cache.glob(f"{_PREFIX}*"):
        if (in_use := _locked(folder)) is not None:
            _remove_cgroup(_cgroup_of(folder))
            _remove(folder)
            os.close(in_use)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder for as long as this process lives; None if another holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _remove(folder: Path) -> None:
    """A machine's folder: its mounts were in a namespace, and have gone with it."""
    shutil.rmtree(folder)


def _cgroups() -> Path | None:
    """Where cgroups of version 2 are."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)


def _cgroup_of(folder: Path) -> Path:
    cgroups = _cgroups()
    assert cgroups is not None
    return cgroups / f"edgetag-{folder.name}"


def _remove_cgroup(cgroup: Path) -> None:
    """With all that runs in it."""
    if not cgroup.exists():
        return
    (cgroup / "cgroup.kill").write_text("1")
    deadline_s = time.monotonic() + WAIT_S
    while "populated 1" in (cgroup / "cgroup.events").read_text():
        assert time.monotonic() < deadline_s, f"processes in {cgroup} cannot be ended"
        time.sleep(_POLL_S)
    for folder, _, _ in os.walk(cgroup, topdown=False):
        Path(folder).rmdir()
