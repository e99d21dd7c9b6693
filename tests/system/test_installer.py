"""`deploy/install.sh`, `archive.sh` and `edgetag-doctor`, as far as nothing is installed.

Whom install.sh refuses, it refuses before anything is changed, and before it asks who runs it: here that is
nobody, who could change nothing. What it does on a real systemd is asked by `make test-system`.
"""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = Path(__file__).parents[2] / "systemd" / "edgetag.service"
USAGE, UNSUITABLE = 2, 3
IDENTITY = ("edgetag.yaml", "ca.crt", "sensor.crt", "edgetag.mqtt-password", "edgetag.mqtt-key")

_DROP_RIGHTS = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs")


def is_a_sensors() -> bool:
    """Whether an archive could be for this machine."""
    release = Path("/etc/os-release")
    return release.exists() and "VERSION_CODENAME=bookworm\n" in release.read_text()


needs_nobody = pytest.mark.skipif(
    os.geteuid() == 0 and not shutil.which("setpriv"), reason="setpriv is not installed"
)
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg is not installed")
needs_bookworm = pytest.mark.skipif(not is_a_sensors(), reason="this is not Debian 12")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A copy of the scripts, which everybody can read; what tests have is not."""
    with tempfile.TemporaryDirectory(prefix="edgetag-") as path:
        Path(path).chmod(0o755)
        for script in ("install.sh", "archive.sh"):
            shutil.copy(DEPLOY / script, path)
        yield Path(path)


def as_nobody(*command: str | Path) -> subprocess.CompletedProcess[str]:
    drop = _DROP_RIGHTS if os.geteuid() == 0 else ()
    return subprocess.run([*drop, *map(str, command)], capture_output=True, text=True, check=False, cwd="/")


def refused(exit_code: int, script: Path, *arguments: str | Path) -> str:
    """In one sentence, the last one; others' are before it."""
    done = as_nobody(script, *arguments)
    assert (done.returncode, done.stdout) == (exit_code, ""), done
    sentence = done.stderr.splitlines()[-1]
    assert sentence.startswith(f"{script.name}: ")
    return sentence


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    scripts = [*DEPLOY.rglob("*.sh")]
    assert len(scripts) >= 3
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# -- whom install.sh refuses -------------------------------------------------------------------------------


def archive_of(folder: Path, architecture: str) -> Path:
    """What install.sh looks at before it installs: a package, and everybody's SHA-256. Returns install.sh."""
    package = folder / "package" / "DEBIAN"
    package.mkdir(parents=True)
    package.joinpath("control").write_text(
        f"Package: libportaudio2\nVersion: 1\nArchitecture: {architecture}\n"
        "Maintainer: nobody\nDescription: none\n"
    )
    (folder / "debs").mkdir()
    deb = folder / "debs" / f"libportaudio2_1_{architecture}.deb"
    subprocess.run(["dpkg-deb", "--build", package.parent, deb], check=True, capture_output=True)
    files = [file for file in folder.rglob("*") if file.is_file()]
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder)}\n" for file in files
    ]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return folder / "install.sh"


def own_architecture() -> str:
    return subprocess.run(
        ["dpkg", "--print-architecture"], check=True, capture_output=True, text=True
    ).stdout.strip()


@needs_nobody
def test_help_tells_every_option_and_every_exit_code(folder: Path) -> None:
    done = as_nobody(folder / "install.sh", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    source = (folder / "install.sh").read_text()
    options = set(re.findall(r"^ +(--[a-z-]+)\)", source, re.MULTILINE))
    (constants,) = re.findall(r"^readonly (USAGE=.*)$", source, re.MULTILINE)
    exit_codes = {"0", "1", *re.findall(r"=(\d+)", constants)}
    assert len(options) >= 6
    assert len(exit_codes) >= 6
    usage, told = done.stdout.split("Exit codes: ")
    assert options == set(re.findall(r"--[a-z-]+", usage))
    assert exit_codes == set(re.findall(r"\b\d\b", told))


@needs_nobody
@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["lamp-17.tar"], "lamp-17.tar"),
        (["--identity"], "--identity"),
        (["--purge"], "--uninstall"),
    ],
)
def test_what_is_no_usage_is_refused(folder: Path, options: list[str], named: str) -> None:
    assert named in refused(USAGE, folder / "install.sh", *options)


@needs_nobody
def test_a_checkout_is_no_archive(folder: Path) -> None:
    assert "make archive" in refused(USAGE, folder / "install.sh")


@needs_nobody
@pytest.mark.parametrize("options", [["--rollback"], ["--uninstall"], ["--uninstall", "--purge"]])
def test_only_root_can_change_what_is_installed(folder: Path, options: list[str]) -> None:
    assert "only root" in refused(UNSUITABLE, folder / "install.sh", *options)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@needs_nobody
@needs_dpkg
@pytest.mark.parametrize("damage", [_flip, Path.unlink])
def test_a_damaged_archive_installs_nothing(folder: Path, damage: Callable[[Path], None]) -> None:
    """Neither a file with another bit nor one that is not there."""
    install = archive_of(folder, own_architecture())
    damage(next((folder / "debs").iterdir()))
    assert "damaged" in refused(UNSUITABLE, install)


@needs_nobody
@needs_dpkg
def test_an_archive_for_another_processor_is_refused(folder: Path) -> None:
    other = "amd64" if own_architecture() == "arm64" else "arm64"
    assert f"the archive is for {other}, this system is {own_architecture()}" in refused(
        UNSUITABLE, archive_of(folder, other)
    )


@needs_nobody
@needs_bookworm
def test_who_is_not_root_changes_nothing(folder: Path) -> None:
    """An archive that fits, and a machine that suits."""
    assert "only root" in refused(UNSUITABLE, archive_of(folder, own_architecture()))


def test_the_first_configuration_can_be_made_to_say_more() -> None:
    """install.sh sets the level of the log there, in the file that ships."""
    (was,) = re.findall(r"'s/\^(.+)\$/  level: info/'", (DEPLOY / "install.sh").read_text())
    assert (DEPLOY / "edgetag.yaml").read_text().splitlines().count(was) == 1


# -- identities --------------------------------------------------------------------------------------------


def identity_of(folder: Path, **members: bytes | str) -> Path:
    """A tar with one folder, lamp-17, and in it files of these contents, or links to these places."""
    path = folder / "lamp-17.tar"
    with tarfile.open(path, "w") as tar:
        root = tarfile.TarInfo("lamp-17")
        root.type = tarfile.DIRTYPE
        tar.addfile(root)
        for name, content in members.items():
            member = tarfile.TarInfo(f"lamp-17/{name}")
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@needs_nobody
@needs_bookworm
def test_an_identity_may_hold_what_provisioning_makes(folder: Path) -> None:
    """It is no reason to refuse; that nobody is not root is one."""
    install = archive_of(folder, own_architecture())
    identity = identity_of(folder, **dict.fromkeys(IDENTITY, b"x"))
    assert "only root" in refused(UNSUITABLE, install, "--identity", identity)


@needs_nobody
@needs_bookworm
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("shadow", b"x"),
        ("sub/edgetag.yaml", b"x"),
        ("../edgetag.yaml", b"x"),
        ("edgetag.yaml", "/etc/shadow"),
        ("edgetag.mqtt-password\nca.crt", b"x"),
    ],
)
def test_an_identity_with_anything_else_is_refused(folder: Path, name: str, content: bytes | str) -> None:
    """A file of another name or place, or a link that leads to one."""
    install = archive_of(folder, own_architecture())
    identity = identity_of(folder, **dict.fromkeys(IDENTITY, b"x") | {name: content})
    assert "is no identity of provision.sh: it holds lamp-17/" in refused(
        USAGE, install, "--identity", identity
    )


@needs_nobody
@needs_bookworm
@pytest.mark.parametrize(
    "absent", [{"edgetag.yaml"}, {"ca.crt"}, {"edgetag.mqtt-password", "edgetag.mqtt-key"}]
)
def test_half_an_identity_is_refused(folder: Path, absent: set[str]) -> None:
    install = archive_of(folder, own_architecture())
    identity = identity_of(folder, **dict.fromkeys({*IDENTITY} - absent, b"x"))
    assert "it holds no " in refused(USAGE, install, "--identity", identity)


PASSWORD = b"""\
sensor:
  id: lamp-17
mqtt:
  url: mqtts://broker.example
  user: lamp-17
  password_credential: edgetag.mqtt-password
"""
KEY = (
    PASSWORD.replace(b"user", b"cert_file")
    .replace(b"password_cred", b"key_cred")
    .replace(b"-password", b"-key")
)


def sourced(script: str, root: Path, commands: str) -> subprocess.CompletedProcess[str]:
    """Some functions of a script, on a made-up root, as whoever runs this test."""
    text = (DEPLOY / script).read_text().removesuffix('main "$@"\n')
    text = re.sub("(?<==)/(?=opt|etc|var|usr|run)", f"{root}/", text)
    text = re.sub("root:(root|edgetag)", "$(id -un):$(id -gn)", text)
    command = ["bash", "-c", f"{text}\n{commands}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)


@pytest.mark.parametrize("own", [b"", PASSWORD, PASSWORD + b"log: {level: info} # a person's own\n"])
def test_an_identity_is_taken_by_the_sensor_whose_it_is(tmp_path: Path, own: bytes) -> None:
    """By that which has none yet, too, or whose configuration the power has taken."""
    done = given(tmp_path, own, PASSWORD)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "etc/credstore/edgetag.mqtt-password").read_bytes() == b"its"
    assert (tmp_path / "etc/edgetag/edgetag.yaml").read_bytes() == (own or PASSWORD)


@pytest.mark.parametrize(
    ("own", "names"),
    [
        (PASSWORD.replace(b"lamp-17", b"lamp-18"), "lamp-18"),
        (KEY, "edgetag.mqtt-key"),
        (b"sensor: {}\n", "null"),
        (b"lamp-17\n", "as said above"),
    ],
)
def test_no_sensor_loses_its_secret_to_another_identity(tmp_path: Path, own: bytes, names: str) -> None:
    """Another sensor's, or one with another kind of secret, than the configuration in force says."""
    done = given(tmp_path, own, PASSWORD)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert names in done.stderr.splitlines()[-1]
    assert (tmp_path / "etc/credstore/edgetag.mqtt-password").read_bytes() == b"own"
    assert [file.name for file in (tmp_path / "etc/edgetag").iterdir()] == ["edgetag.yaml"]


def given(root: Path, own: bytes, its: bytes) -> subprocess.CompletedProcess[str]:
    """A sensor with its own configuration and password is given an identity."""
    for name, content in {"edgetag/edgetag.yaml": own, "credstore/edgetag.mqtt-password": b"own"}.items():
        (root / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "etc" / name).write_bytes(content)
    identity = identity_of(root, **{"edgetag.yaml": its, "ca.crt": b"x", "edgetag.mqtt-password": b"its"})
    release = Path(sys.executable).parents[1]
    take = f"open_identity {identity} {release}; take_identity {identity}"
    return sourced("install.sh", root, f"private={root}/private; mkdir $private; {take}")


@needs_nobody
@needs_bookworm
def test_an_identity_that_is_no_tar_or_not_there_is_refused(folder: Path) -> None:
    install = archive_of(folder, own_architecture())
    (folder / "text.tar").write_text("no tar")
    assert "tar cannot read it" in refused(USAGE, install, "--identity", folder / "text.tar")
    assert "there is no file" in refused(USAGE, install, "--identity", folder / "absent.tar")


# -- what may happen in between ----------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path: Path) -> None:
    """Also for who goes on in spite of it, as the way back does."""
    unit = tmp_path / "edgetag.service"
    unit.write_text("old")
    (tmp_path / "new").write_bytes(bytes(100_000))
    put = f"set +e; ulimit -f 8; trap '' XFSZ; put new {unit} 644 root:root"
    done = sourced("install.sh", tmp_path, f"changed=; {put}".replace("root:root", "$(id -un):$(id -gn)"))
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert unit.read_text() == "old"
    assert {file.name for file in tmp_path.iterdir()} == {"new", unit.name}


def test_a_release_on_trial_is_not_what_is_fallen_back_to(tmp_path: Path) -> None:
    """The one that was proven is, and is kept; so, too, if the power failed before the exchange."""
    for name in ("1", "2", "3"):
        (tmp_path / "opt/edgetag/releases" / name).mkdir(parents=True)
    (tmp_path / "opt/edgetag/trial").symlink_to("releases/1")
    asked = ""
    for current in ("1", "2"):
        asked += f"link releases/{current} $OPT/current; proven; "
    done = sourced("install.sh", tmp_path, f"{asked} prune; ls $OPT/releases; rm $OPT/trial; proven")
    assert (done.stdout.split(), done.stderr) == (["1", "1", "1", "2", "2"], "")


@needs_bookworm
def test_what_lies_in_the_current_folder_is_not_run(tmp_path: Path) -> None:
    install = archive_of(tmp_path, own_architecture())
    for module in ("venv", "encodings", "ensurepip"):
        (tmp_path / f"{module}.py").write_text("open('run', 'w')\n")
    done = sourced("install.sh", tmp_path, f"here={install.parent}; check_machine; build $OPT/releases/1")
    assert (tmp_path / "opt/edgetag/releases/1.partial/pyvenv.cfg").exists(), done.stderr
    assert not (tmp_path / "run").exists()


def test_only_root_can_keep_root_from_installing(tmp_path: Path) -> None:
    """Who may not open the lock cannot hold it. Who holds it clears away what a killed one has left."""
    (tmp_path / "run").mkdir()
    (tmp_path / "opt/edgetag/releases/1.partial").mkdir(parents=True)
    done = sourced(
        "install.sh", tmp_path, "alone; stat --format=%a $LOCK $PRIVATE; ls $OPT/releases; (alone)"
    )
    assert (done.stdout.split(), done.returncode) == (["600", "700"], 1)
    assert done.stderr == "install.sh: another install.sh is running\n"


def test_a_repair_of_the_release_in_force_is_not_interrupted(tmp_path: Path) -> None:
    """Before and after it, everything is."""
    for folder in ("1", "1.partial"):
        (tmp_path / folder).mkdir()
    (tmp_path / "1.partial/whole").touch()
    interrupted = 'mv() { kill $$; command mv "$@"; }'
    done = sourced("install.sh", tmp_path, f"heed_interruptions; {interrupted}; rename_whole 1; kill $$; ls")
    assert (done.stdout, done.returncode) == ("", 143), done.stderr
    assert (tmp_path / "1/whole").exists()


# -- archive.sh --------------------------------------------------------------------------------------------


@needs_nobody
@pytest.mark.parametrize("arguments", [[], ["riscv64"], ["arm64", "amd64"]])
def test_an_archive_is_for_one_of_two_processors(folder: Path, arguments: list[str]) -> None:
    assert "arm64" in refused(USAGE, folder / "archive.sh", *arguments)


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_no_secret_is_packed(tmp_path: Path) -> None:
    """Wherever an authority was made, and whatever it is called."""
    for path in (
        "deploy/acl",
        "systemd/unit",
        "deploy/mosquitto/authority/ca.key",
        "deploy/.provision.7/lamp-17",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    done = sourced("archive.sh", tmp_path, "git init -q; git add deploy/acl systemd/unit; own_files")
    assert (done.stdout, done.returncode) == ("deploy/acl\0systemd/unit\0", 0), done.stderr


# -- edgetag-doctor ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def doctor() -> ModuleType:
    loader = SourceFileLoader("edgetag_doctor", str(DEPLOY / "edgetag-doctor"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)
        loader.exec_module(module)
    return module


def command(doctor: ModuleType, text: str, *arguments: str, release: Path | None = None) -> list[str]:
    made: list[str] = doctor.doctor_command(doctor.settings_in(text), release, arguments)
    return made


def properties(command: list[str]) -> list[str]:
    return [part.removeprefix("--property=") for part in command if part.startswith("--property=")]


def told(command: list[str]) -> list[str]:
    """The command that systemd-run is to run."""
    return command[command.index("--") + 1 :]


SERVICE = "[Unit]\nAfter=x\n[Service]\nExecStart=/opt/edgetag/current/bin/edgetag run --config /etc/e.yaml\n"


def test_the_doctor_is_given_all_of_the_sandbox(doctor: ModuleType) -> None:
    """Of the unit that ships, every setting, in order, but for those of the daemon's life."""
    settings = doctor.settings_in(UNIT.read_text())
    given = properties(command(doctor, UNIT.read_text()))
    left_out = {setting.key for setting in settings if not doctor.is_the_doctors(setting.key)}
    assert left_out == {
        "Type", "NotifyAccess", "ExecStart", "ExecReload", "Restart", "RestartSec",
        "RestartPreventExitStatus", "TimeoutStartSec", "WatchdogSec", "TimeoutStopSec", "StandardError",
        "SyslogIdentifier",
    }  # fmt: skip
    assert [line.partition("=")[0] for line in given[:-1]] == [
        setting.key for setting in settings if setting.key not in left_out
    ]
    assert {"User=edgetag", "StateDirectory=edgetag"} <= set(given)
    assert "LoadCredential=edgetag.mqtt-password" in given
    assert "CapabilityBoundingSet=" in given  # empty: none


def test_the_doctor_looks_with_the_services_configuration(doctor: ModuleType) -> None:
    edgetag = "/opt/edgetag/current/bin/edgetag"
    assert told(command(doctor, SERVICE, "--json")) == [
        edgetag,
        "doctor",
        "--config",
        "/etc/e.yaml",
        "--json",
    ]
    joined = SERVICE.replace("--config /", "--config=/")
    assert told(command(doctor, joined)) == [edgetag, "doctor", "--config=/etc/e.yaml"]
    assert told(command(doctor, SERVICE, "--config", "x")) == [edgetag, "doctor", "--config", "x"]
    assert told(command(doctor, SERVICE, "--config=x")) == [edgetag, "doctor", "--config=x"]


def test_the_doctor_can_be_another_releases(doctor: ModuleType) -> None:
    made = command(doctor, SERVICE, release=Path("/opt/edgetag/releases/2"))
    assert told(made) == ["/opt/edgetag/releases/2/bin/edgetag", "doctor", "--config", "/etc/e.yaml"]


def test_a_drop_in_goes_over_the_unit(doctor: ModuleType) -> None:
    """What it sets comes later, and so does an empty value, which takes back what was there."""
    drop_in = "[Service]\nUMask=0022\nDeviceAllow=\nDeviceAllow=/dev/null\nExecStart=\n"
    made = command(doctor, f"{SERVICE}DeviceAllow=char-alsa rw\n\n{drop_in}ExecStart=/bin/e --config y\n")
    assert properties(made)[:-1] == [
        "DeviceAllow=char-alsa rw", "UMask=0022", "DeviceAllow=", "DeviceAllow=/dev/null",
    ]  # fmt: skip
    assert told(made) == ["/bin/e", "doctor", "--config", "y"]


def test_units_are_read_as_systemd_reads_them(doctor: ModuleType) -> None:
    """Comments, lines that go on, and sections of others."""
    text = "# a\n[Install]\nWantedBy=x\n[Service]\n; b\n A = 1 \\\n# c\n  2\n\nB=C=D\n[X-Own]\nE=3\n"
    assert doctor.settings_in(text) == [("A", "1  2"), ("B", "C=D")]


def test_specifiers_are_what_systemd_would_make_of_them(doctor: ModuleType) -> None:
    given = properties(command(doctor, f"{SERVICE}Environment=HOME=%t/edgetag A=100%%\nMemoryMax=80%\n"))
    assert given[:2] == ["Environment=HOME=/run/edgetag A=100%", "MemoryMax=80%"]
    with pytest.raises(ValueError, match="what %q is"):
        command(doctor, f"{SERVICE}Environment=A=%q\n")


@pytest.mark.parametrize("text", ["", "[Service]\nUser=edgetag\n", f"{SERVICE}ExecStart=\n"])
def test_a_unit_that_starts_nothing_has_no_doctor(doctor: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match="ExecStart"):
        command(doctor, text)


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
def test_without_systemd_the_doctor_says_so() -> None:
    done = subprocess.run([DEPLOY / "edgetag-doctor"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"edgetag-doctor: systemd does not run here.*\n", done.stderr)


def test_the_doctors_help_is_its_own() -> None:
    done = subprocess.run([DEPLOY / "edgetag-doctor", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert {"--release", "--print", "--config"} <= set(re.findall(r"--[a-z]+", done.stdout))
