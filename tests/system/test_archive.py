"""`make archive`: one file with all that a sensor needs, and nothing else.

Run by `make test-system`; a plain `make test` leaves these tests out: wheels and packages of both processors
are fetched from where pip and apt take theirs. Nobody need be root, and no emulator is needed.
"""

import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
MACHINES = {"arm64": "aarch64", "amd64": "x86_64"}
LIMIT_BYTES = 150_000_000  # what one brings to a lamp post through a mobile network

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not shutil.which("apt-get"), reason="apt is not installed"),
]


def say(claim: str) -> None:
    print(f"\narchive: {claim}", end="")  # noqa: T201


def make(architecture: str) -> Path:
    """Returns the archive that it says it has made."""
    command = ["make", "--silent", "archive", f"ARCH={architecture}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return REPOSITORY / done.stdout.splitlines()[-1].partition(":")[0]


@pytest.fixture(scope="module", params=MACHINES)
def archive(request: pytest.FixtureRequest) -> Path:
    return make(request.param)


@pytest.fixture(scope="module")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its one folder."""
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path_factory.mktemp("archive"), filter="data")
        (root,) = {name.partition("/")[0] for name in tar.getnames()}
    assert archive.name == f"{root}.tar.gz"
    return next(tmp_path_factory.getbasetemp().glob(f"archive*/{root}"))


def processor(archive: Path) -> str:
    return archive.name.removesuffix(".tar.gz").rpartition("-")[2]


def names(folder: Path) -> Iterator[str]:
    """Of distributions and packages, as pip and dpkg write them."""
    return (re.split("[-_]", file.name)[0] for file in folder.iterdir())


def test_it_is_what_install_sh_asks_for(unpacked: Path) -> None:
    assert {path.name for path in unpacked.iterdir()} == {
        *("install.sh", "SHA256SUMS", "wheels", "debs", "systemd", "deploy")
    }
    assert (unpacked / "install.sh").stat().st_mode & 0o777 == 0o755
    assert (unpacked / "install.sh").read_bytes() == (REPOSITORY / "deploy" / "install.sh").read_bytes()
    sums = ["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"]
    subprocess.run(sums, cwd=unpacked, check=True)
    listed = {line.split("  ", 1)[1] for line in (unpacked / "SHA256SUMS").read_text().splitlines()}
    files = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert listed == files - {"SHA256SUMS"}


def test_its_wheels_are_what_the_sensor_needs(archive: Path, unpacked: Path) -> None:
    """For its processor and Python; nothing of the trainer."""
    wheels = sorted((unpacked / "wheels").iterdir())
    assert {"edgetag", "pip", "numpy", "onnxruntime", "sounddevice"} <= {*names(unpacked / "wheels")}
    assert {"torch", "librosa", "numba", "pandas", "scikit", "onnx", "pytest"}.isdisjoint(
        names(unpacked / "wheels")
    )
    for wheel in wheels:
        assert re.search(
            rf"-(cp311|cp3\d+-abi3|py3|py2\.py3)-.*(any|{MACHINES[processor(archive)]})\.whl", wheel.name
        )
    say(f"{archive.name}: {len(wheels)} wheels, {archive.stat().st_size / 1e6:.0f} MB")
    assert archive.stat().st_size < LIMIT_BYTES


def test_its_packages_are_those_that_a_minimal_debian_lacks(archive: Path, unpacked: Path) -> None:
    debs = unpacked / "debs"
    assert "libportaudio2" in names(debs)
    assert {"libc6", "libgcc", "libstdc++6", "python3", "libsystemd0"}.isdisjoint(names(debs))
    for deb in debs.iterdir():
        assert deb.stem.endswith((f"_{processor(archive)}", "_all"))
    say(f"{archive.name}: {', '.join(sorted(names(debs)))}")


def test_the_same_makes_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    shutil.copy(archive, tmp_path / "first")
    assert make(processor(archive)).read_bytes() == (tmp_path / "first").read_bytes()
    say(f"{archive.name} is the same, byte by byte, when it is made again")
