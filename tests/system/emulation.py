"""Other processors by emulation: QEMU runs their instructions, one program at a time, on this one.

An x86-64 model needs nothing but QEMU: it runs this Python, with this environment, as another processor.
An arm64 machine needs a whole Debian for arm64 and edgetag's dependencies for it:

```
debootstrap --foreign   unpacks Debian's arm64 packages here         ┐
  --second-stage        configures them, in a chroot, emulated       │ once: a few minutes
pip download            the sensor's dependencies, as aarch64 wheels │
pip install             them in there, emulated                      ┘
pip wheel, install      edgetag as it lies in the repository         every time
```

It is kept under `EDGETAG_EMULATION`, by default `~/.cache/edgetag/arm64`; delete the folder to begin anew.
Packages come from where this machine's apt and pip take theirs; the chroot itself needs no network.
The kernel must be told to hand arm64 programs to QEMU (binfmt_misc); where it was not, it is, until restart.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

SUITE = "bookworm"
GLIBC_MINOR = 36  # of that suite: the newest manylinux tag its pip takes
QEMU_X86, QEMU_ARM64 = "qemu-x86_64-static", "qemu-aarch64-static"

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
            run(in_root(self.root, "/opt/edgetag/bin/python", *paths), QEMU_CPU=self.cpu)
            shutil.copy(Path(folder, answer.name), answer)


def run(command: Sequence[str], **environment: str) -> str:
    """What a command prints; its stderr is for the error, should it fail."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | _ONE_THREAD | environment
    )
    said = "\n".join(line for line in done.stderr.splitlines() if _NOISE not in line)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{said}"
    return done.stdout


def in_root(root: Path, *command: str) -> list[str]:
    """The command as one inside the root, with mounts of its own: those made in there end with it."""
    return ["unshare", "--mount", "chroot", str(root), *command]


def missing_for_arm64() -> str | None:
    """Why no arm64 machine can be had here, if it cannot."""
    if os.geteuid() != 0:
        return "only root can make an arm64 machine"
    needed = (QEMU_ARM64, "debootstrap", "apt-get", "unshare", "chroot")
    absent = [program for program in needed if not shutil.which(program)]
    return f"{', '.join(absent)} not installed" if absent else None


def arm64_root(repository: Path) -> Path:
    """A folder with Debian for arm64, edgetag of this moment installed in `/opt/edgetag`."""
    root = Path(os.environ.get("EDGETAG_EMULATION", Path.home() / ".cache" / "edgetag" / "arm64"))
    _hand_programs_to_qemu()
    if not root.exists():
        _make_debian(root)
    _install(root, repository)
    return root


def _hand_programs_to_qemu() -> None:
    if not (_BINFMT / "register").exists():
        run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(_BINFMT)])
    if not (_BINFMT / "qemu-aarch64").exists():
        (_BINFMT / "register").write_text(_REGISTRATION.read_text())


def _make_debian(root: Path) -> None:
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    options = ["--arch=arm64", "--variant=minbase", "--include=python3-venv"]
    run(["debootstrap", "--foreign", *options, SUITE, str(partial), mirror()])
    run(in_root(partial, "/debootstrap/debootstrap", "--second-stage"), PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    partial.rename(root)


def mirror() -> str:
    """Where this machine's apt takes the suite from."""
    targets = run(["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)"])
    sites = [line.split()[0] for line in targets.splitlines() if line.split()[1:] == [SUITE, "main"]]
    assert sites, f"apt has no source of Debian {SUITE}"
    return sites[0]


def _install(root: Path, repository: Path) -> None:
    """The wheel of now; its dependencies only where they are other ones than before."""
    wheels, stamp = root / "wheels", root / "opt" / "edgetag" / "dependencies.sha256"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for wheel in wheels.glob("edgetag-*.whl"):
        wheel.unlink()
    run([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(repository)])
    (edgetag,) = wheels.glob("edgetag-*.whl")
    constraints = repository / "constraints.txt"
    dependencies = hashlib.sha256(_requirements(edgetag) + constraints.read_bytes()).hexdigest()
    install = ["/opt/edgetag/bin/pip", "--quiet", "install", "--no-index", "--find-links", "/wheels"]
    if not stamp.exists() or stamp.read_text() != dependencies:
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, GLIBC_MINOR + 1)]
        foreign = ["--python-version=3.11", "--only-binary=:all:", "--platform=manylinux2014_aarch64"]
        where = ["--dest", str(wheels), "--constraint", str(constraints)]
        run([*pip, "download", *foreign, *platforms, *where, str(edgetag)])
        run(in_root(root, "python3", "-m", "venv", "--clear", "/opt/edgetag"))
        run(in_root(root, *install, f"/wheels/{edgetag.name}"))
        stamp.write_text(dependencies)
    else:
        run(in_root(root, *install, "--no-deps", "--force-reinstall", f"/wheels/{edgetag.name}"))


def _requirements(wheel: Path) -> bytes:
    """What the wheel says it needs, extras left out."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).splitlines()
    return b"\n".join(line for line in lines if line.startswith(b"Requires-") and b"extra ==" not in line)
