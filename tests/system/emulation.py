"""Other processors by emulation: QEMU runs their instructions, one program at a time, on this one.

An x86-64 model needs nothing but QEMU: it runs this Python, with this environment, as another processor.
An arm64 machine needs a whole Debian for arm64, and edgetag installed there as on any sensor:

```
debootstrap --foreign   unpacks Debian's arm64 packages here         ┐ once: some minutes
  --second-stage        configures them, in a chroot, emulated       ┘
make archive            edgetag as it lies in the repository         ┐ every time; install.sh has little
./install.sh            in there, emulated, without any network      ┘ to do where the archive is the same
```

It is kept under `EDGETAG_EMULATION`, by default `~/.cache/edgetag/arm64`; delete the folder to begin anew.
Packages come from where this machine's apt and pip take theirs; the chroot itself needs no network.
The kernel must be told to hand arm64 programs to QEMU (binfmt_misc); where it was not, it is, until restart.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgetag import __version__

SUITE = "bookworm"
# Of a server's or a board's Debian, what install.sh uses. Not python3-venv: an archive brings its own pip.
PACKAGES = ("python3", "systemd", "udev")
PYTHON = "/opt/edgetag/current/bin/python"  # in there
QEMU_X86, QEMU_ARM64 = "qemu-x86_64-static", "qemu-aarch64-static"

# A command begun so knows nothing of who runs the tests: of their pip, for instance.
_CLEAN = ("env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root")
_BINFMT = Path("/proc/sys/fs/binfmt_misc")
_REGISTRATION = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")  # Debian's qemu-user-static brings it
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_NOISE = "warning: TCG doesn't support requested feature"


class Machine(Protocol):
    """A processor on which a script can answer a question, both of them files."""

    def ask(self, script: Path, question: Path, answer: Path) -> None:
        """Run `script question answer` there.

        Raises:
            AssertionError: it failed, with what it said.
        """


@dataclass(frozen=True)
class Here:
    """This machine, on its own processor or on the model `cpu` (`qemu-x86_64-static -cpu help`)."""

    cpu: str | None = None

    def ask(self, script: Path, question: Path, answer: Path) -> None:
        emulator = [QEMU_X86, "-cpu", self.cpu] if self.cpu else []
        run([*emulator, sys.executable, str(script), str(question), str(answer)])


@dataclass(frozen=True)
class Arm64:
    """The Debian of `arm64_root`, on the model `cpu` (`qemu-aarch64-static -cpu help`).

    `/proc` and `/sys` would tell of x86-64; they are left out, so that ONNX Runtime asks the kernel, that is
    QEMU, which instructions there are.
    """

    root: Path
    cpu: str

    def ask(self, script: Path, question: Path, answer: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self.root / "tmp") as folder:
            inside = Path("/tmp", Path(folder).name)
            for file in (script, question):
                shutil.copy(file, folder)
            paths = [str(inside / file.name) for file in (script, question, answer)]
            run(_bare(self.root, PYTHON, *paths), QEMU_CPU=self.cpu)
            shutil.copy(Path(folder, answer.name), answer)


def run(command: Sequence[str], **environment: str) -> str:
    """What a command prints; its stderr is for the error, should it fail."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | _ONE_THREAD | environment
    )
    said = "\n".join(line for line in done.stderr.splitlines() if _NOISE not in line)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{said}"
    return done.stdout


def in_root(root: Path, *command: str, shared: Path | None = None, is_offline: bool = False) -> list[str]:
    """The command as one inside the root, with mounts of its own: those made for it end with it.

    Inside are `/proc`, with a Raspberry Pi 4's processor, `/sys`, `/run`, an empty `/tmp`, and this machine's
    network.

    Args:
        shared: a folder that is there, too, under the same path.
        is_offline: there is no network at all.
    """
    namespaces = ["--mount", *["--net"] * is_offline]
    return ["unshare", *namespaces, "sh", "-euc", _ENTER, "sh", str(root), str(shared or ""), *command]


_ENTER = """
root=$1 shared=$2
shift 2
mount -t proc proc "$root/proc"
mount --bind "$root/cpuinfo" "$root/proc/cpuinfo"
mount --bind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
if [ -n "$shared" ]; then
  mkdir -p "$root$shared"
  mount --bind "$shared" "$root$shared"
fi
exec chroot "$root" "$@"
"""
_CPUINFO = """\
processor\t: 0
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3
"""


def _bare(root: Path, *command: str) -> list[str]:
    """The same, with nothing mounted."""
    return ["unshare", "--mount", "chroot", str(root), *command]


def missing_for_arm64() -> str | None:
    """Why no arm64 machine can be had here, if it cannot."""
    if os.geteuid() != 0:
        return "only root can make an arm64 machine"
    needed = (QEMU_ARM64, "debootstrap", "apt-get", "unshare", "chroot")
    absent = [program for program in needed if not shutil.which(program)]
    return f"{', '.join(absent)} not installed" if absent else None


@functools.cache
def arm64_root(repository: Path) -> Path:
    """A folder with Debian for arm64, edgetag of this moment installed there by its own installer."""
    root = Path(os.environ.get("EDGETAG_EMULATION", Path.home() / ".cache" / "edgetag" / "arm64"))
    _hand_programs_to_qemu()
    if not root.exists():
        _make_debian(root)
    _install(root, _archive(repository))
    return root


def add_packages(root: Path, *packages: str) -> None:
    """Those of Debian that are missing in there, and what they need; fetched by this machine's apt."""
    if all((root / "usr" / "share" / "doc" / package).exists() for package in packages):
        return
    with tempfile.TemporaryDirectory() as folder:
        apt = ["apt-get", "-qq", *_apt_options(root, Path(folder))]
        run([*apt, "update"])
        run([*apt, "install", "--download-only", "--no-install-recommends", "--yes", *packages])
        install = f"DEBIAN_FRONTEND=noninteractive dpkg --install {folder}/cache/archives/*.deb"
        run([*_CLEAN, *in_root(root, "sh", "-c", install, shared=Path(folder))])


def _apt_options(root: Path, folder: Path) -> list[str]:
    """An apt for the root's Debian, with a state of its own in `folder`."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb {mirror()} {SUITE} main\n")
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State": folder,
        "Dir::State::Status": root / "var" / "lib" / "dpkg" / "status",
    }
    return [f"--option={name}={value}" for name, value in options.items()]


def _hand_programs_to_qemu() -> None:
    if not (_BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)])
    if not (_BINFMT / "qemu-aarch64").exists():
        (_BINFMT / "register").write_text(_REGISTRATION.read_text())


def _make_debian(root: Path) -> None:
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    options = ["--arch=arm64", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    run(["debootstrap", "--foreign", *options, SUITE, str(partial), mirror()])
    run([*_CLEAN, *_bare(partial, "/debootstrap/debootstrap", "--second-stage")])
    (partial / "etc" / "hosts").write_text("127.0.0.1 localhost\n")  # as Debian's installer does
    (partial / "cpuinfo").write_text(_CPUINFO)
    partial.rename(root)


def mirror() -> str:
    """Where this machine's apt takes the suite from."""
    targets = run(["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)"])
    sites = [line.split()[0] for line in targets.splitlines() if line.split()[1:] == [SUITE, "main"]]
    assert sites, f"apt has no source of Debian {SUITE}"
    return sites[0]


def _archive(repository: Path) -> Path:
    run(["make", "--no-print-directory", "-C", str(repository), "archive", "ARCH=arm64"])
    return repository / "dist" / f"edgetag-{__version__}-debian12-arm64.tar.gz"


def _install(root: Path, archive: Path) -> None:
    """As whoever has brought the archive to a sensor does it."""
    unpacked = archive.name.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(archive, folder)
        commands = f"cd {folder} && tar -xzf {archive.name} && {unpacked}/install.sh"
        run([*_CLEAN, *in_root(root, "sh", "-c", commands, shared=Path(folder), is_offline=True)])
