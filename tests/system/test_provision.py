"""`deploy/provision.sh`: what it makes, whom it refuses, and that nothing is left of what fails.

What a broker makes of it is asked in `test_mosquitto_deploy.py`.
"""

import os
import re
import shutil
import signal
import ssl
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgetag.config import Settings, changes, read_settings, value_of

PROVISION = Path(__file__).parents[2] / "deploy" / "provision.sh"
BROKER = ("--broker", "broker.example")

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def run(
    folder: Path, *arguments: str, under: tuple[str, ...] = (), restore_signals: bool = True
) -> subprocess.CompletedProcess[str]:
    """There, by somebody whose files everybody may read and write."""
    return subprocess.run(
        [*under, str(PROVISION), *arguments],
        cwd=folder,
        umask=0,
        restore_signals=restore_signals,
        capture_output=True,
        text=True,
        check=False,
    )


def provision(folder: Path, *arguments: str) -> str:
    """What it says, having done it."""
    done = run(folder, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def refused(folder: Path, *arguments: str) -> str:
    """With one sentence, and nothing is other than before."""
    before = tree(folder)
    done = run(folder, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("provision.sh: ")
    assert done.stderr.count("\n") == 1
    assert tree(folder) == before
    return done.stderr


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder in there, by its path."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


def unpacked(folder: Path, name: str) -> Path:
    """What is in its tar, in a folder of its name."""
    with tarfile.open(folder / f"{name}.tar") as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return folder / "unpacked" / name


def openssl(*arguments: str | Path) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def dated_s(kind: str, date: str, file: Path) -> int:
    """A date of a certificate, or of a list of revoked ones, in seconds since 1970."""
    return ssl.cert_time_to_seconds(
        openssl(kind, "-noout", f"-{date}", "-in", file).partition("=")[2].strip()
    )


def is_accepted(authority: Path, certificate: Path, purpose: str = "sslclient") -> bool:
    """By the strictest reader, which knows what was revoked."""
    how = ["-x509_strict", "-purpose", purpose, "-crl_check", "-CRLfile", str(authority / "ca.crl")]
    command = ["openssl", "verify", *how, "-CAfile", str(authority / "ca.crt"), str(certificate)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def stated(config: Path) -> dict[str, object]:
    """Settings that are not as by default."""
    settings = read_settings(config, {})
    return {path: value_of(settings, path) for path in changes(Settings(), settings)}


# -- what is made ----------------------------------------------------------------------------------------


def test_a_password_and_all_that_goes_with_it(tmp_path: Path) -> None:
    """For root alone, in one folder; the configuration says what is this sensor's own, and nothing else."""
    provision(tmp_path, "lamp-17", *BROKER, "--device", "it's card:street")
    with tarfile.open(tmp_path / "lamp-17.tar") as archive:
        members = archive.getmembers()
    assert {(member.name, member.mode & 0o077, member.uid, member.gid) for member in members} == {
        (name, 0, 0, 0)
        for name in (
            "lamp-17",
            "lamp-17/ca.crt",
            "lamp-17/edgetag.yaml",
            "lamp-17/edgetag.mqtt-password",
        )
    }
    identity = unpacked(tmp_path, "lamp-17")
    assert stated(identity / "edgetag.yaml") == {
        "sensor.id": "lamp-17",
        "audio.device": "it's card:street",
        "mqtt.url": "mqtts://broker.example",
        "mqtt.user": "lamp-17",
        "mqtt.password_credential": "edgetag.mqtt-password",
        "mqtt.ca_file": "/etc/edgetag/ca.crt",
        "log.level": "info",
    }
    assert re.fullmatch(r"[0-9a-f]{48}\n", (identity / "edgetag.mqtt-password").read_text())


def test_a_certificate_and_all_that_goes_with_it(tmp_path: Path) -> None:
    """Good for being that sensor, for ten years, and for nothing else: not for posing as the broker."""
    provision(tmp_path, "lamp-17", "--broker", "broker.example:8884", "--certificate")
    identity = unpacked(tmp_path, "lamp-17")
    assert {file.name for file in identity.iterdir()} == {
        *("edgetag.yaml", "ca.crt", "sensor.crt", "edgetag.mqtt-key")
    }
    assert stated(identity / "edgetag.yaml") == {
        "sensor.id": "lamp-17",
        "mqtt.url": "mqtts://broker.example:8884",
        "mqtt.cert_file": "/etc/edgetag/sensor.crt",
        "mqtt.key_credential": "edgetag.mqtt-key",
        "mqtt.ca_file": "/etc/edgetag/ca.crt",
        "log.level": "info",
    }
    certificate, key = identity / "sensor.crt", identity / "edgetag.mqtt-key"
    assert openssl("x509", "-in", certificate, "-noout", "-pubkey") == openssl("pkey", "-in", key, "-pubout")
    assert "NIST CURVE: P-256" in openssl("x509", "-in", certificate, "-noout", "-text")
    assert openssl("x509", "-in", certificate, "-noout", "-subject") == "subject=CN = lamp-17\n"
    assert is_accepted(tmp_path / "ca", certificate)
    assert not is_accepted(tmp_path / "ca", certificate, "sslserver")
    assert ends_after(certificate, 3649)
    assert not ends_after(certificate, 3650)


def ends_after(certificate: Path, n_days: int) -> bool:
    command = ["openssl", "x509", "-noout", "-in", str(certificate), "-checkend", str(n_days * 86_400)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_how_long_it_is_good_can_be_said(tmp_path: Path) -> None:
    """But not longer than its authority, nor is the list of what was revoked over before."""
    provision(tmp_path, "lamp-17", *BROKER, "--certificate", "--days", "9")
    certificate = unpacked(tmp_path, "lamp-17") / "sensor.crt"
    assert ends_after(certificate, 8)
    assert not ends_after(certificate, 9)
    assert ends_after(tmp_path / "ca" / "ca.crt", 7299)
    said = refused(tmp_path, "lamp-18", *BROKER, "--certificate", "--days", "7300")
    assert "would outlive the authority, which ends on 20" in said
    authority = tmp_path / "ca"
    assert dated_s("crl", "nextupdate", authority / "ca.crl") >= dated_s(
        "x509", "enddate", authority / "ca.crt"
    )


@pytest.mark.parametrize("name", ["007", "null", "1e3", "yes", "a.b_c-D", "x" * 64])
def test_a_name_is_text(tmp_path: Path, name: str) -> None:
    """Whatever YAML would take it for."""
    provision(tmp_path, name, *BROKER)
    assert read_settings(unpacked(tmp_path, name) / "edgetag.yaml", {}).sensor.id == name


@pytest.mark.parametrize(
    "broker", ["10.0.0.1", "b:1", "b:65535", "broker.example:08883", "[::1]", "[fe80::1]:1"]
)
def test_a_broker_is_a_host_and_perhaps_a_port(tmp_path: Path, broker: str) -> None:
    provision(tmp_path, "lamp-17", "--broker", broker)
    assert stated(unpacked(tmp_path, "lamp-17") / "edgetag.yaml")["mqtt.url"] == f"mqtts://{broker}"


def test_a_reader_has_a_password_only(tmp_path: Path) -> None:
    provision(tmp_path, "--reader", "dashboard")
    assert set(tree(tmp_path)) - {"ca", *(f"ca/{path}" for path in tree(tmp_path / "ca"))} == {
        "dashboard.password"
    }
    assert (tmp_path / "ca" / "passwords").read_text().startswith("dashboard:$6$")


@pytest.mark.parametrize("host", ["broker.example", "10.0.0.1", "[::1]"])
def test_a_broker_has_a_certificate_for_its_host(tmp_path: Path, host: str) -> None:
    """A later one takes its place; it is good for no sensor."""
    provision(tmp_path, "--server", host)
    first = (tmp_path / "ca" / "server.crt").read_bytes()
    provision(tmp_path, "--server", host)
    certificate = tmp_path / "ca" / "server.crt"
    assert certificate.read_bytes() != first
    option = "-checkhost" if host == "broker.example" else "-checkip"
    said = openssl("x509", "-noout", "-in", certificate, option, host.strip("[]"))
    assert "does match certificate" in said
    assert is_accepted(tmp_path / "ca", certificate, "sslserver")
    assert not is_accepted(tmp_path / "ca", certificate)


def test_everything_is_its_owners_alone(tmp_path: Path) -> None:
    """Whatever the umask, and nothing else is left behind."""
    provision(tmp_path, "lamp-17", *BROKER)
    provision(tmp_path, "lamp-18", *BROKER, "--certificate")
    provision(tmp_path, "--reader", "dashboard")
    provision(tmp_path, "--server", "broker.example")
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("ca", "lamp-17.tar", "lamp-18.tar", "dashboard.password")
    }
    assert {path.name for path in (tmp_path / "ca").iterdir()} == {
        *("ca.key", "ca.crt", "ca.crl", "crlnumber", "index.txt", "issued", "passwords"),
        *("server.key", "server.crt"),
    }


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_password_is_told_to_nobody(tmp_path: Path) -> None:
    """It is not printed, and on no command line, where every user of the machine could see it."""
    trace = tmp_path / "trace"
    under = ("strace", "-f", "-qq", "-v", "-s", "10000", "-e", "trace=execve", "-o", str(trace))
    done = run(tmp_path, "lamp-17", *BROKER, under=under)
    assert done.returncode == 0
    password = (unpacked(tmp_path, "lamp-17") / "edgetag.mqtt-password").read_text().strip()
    assert "openssl" in trace.read_text()
    for place in (trace.read_text(), done.stdout, (tmp_path / "ca" / "passwords").read_text()):
        assert password not in place


def test_an_authority_that_was_made_by_hand_will_do(tmp_path: Path) -> None:
    """Its key and its certificate are all it needs to have."""
    (tmp_path / "ca").mkdir()
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "9", "-subj", "/CN=x"]
    usage = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    files = ["-keyout", str(tmp_path / "ca" / "ca.key"), "-out", str(tmp_path / "ca" / "ca.crt")]
    openssl("req", "-x509", *new, *usage, *files)
    provision(tmp_path, "lamp-17", *BROKER, "--certificate", "--days", "5")
    assert is_accepted(tmp_path / "ca", unpacked(tmp_path, "lamp-17") / "sensor.crt")


def test_many_at_a_time_have_one_authority(tmp_path: Path) -> None:
    """Which knows all of them."""
    names = [f"lamp-{n}" for n in range(8)]
    command = [str(PROVISION), *BROKER, "--certificate"]
    running = [subprocess.Popen([*command, name], cwd=tmp_path, stdout=subprocess.DEVNULL) for name in names]
    assert [process.wait() for process in running] == [0] * len(names)
    known = (tmp_path / "ca" / "index.txt").read_text()
    for name in names:
        assert known.count(f"/CN={name}\n") == 1
        assert is_accepted(tmp_path / "ca", unpacked(tmp_path, name) / "sensor.crt")


# -- later -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["--password", "--certificate"])
def test_whoever_has_an_identity_gets_another_only_by_saying_so(tmp_path: Path, kind: str) -> None:
    provision(tmp_path, "lamp-17", *BROKER, kind)
    assert "lamp-17.tar is there already" in refused(tmp_path, "lamp-17", *BROKER, kind, "--renew")
    first = unpacked(tmp_path, "lamp-17").rename(tmp_path / "first")
    (tmp_path / "lamp-17.tar").unlink()
    assert "has an identity already: --renew" in refused(tmp_path, "lamp-17", *BROKER, kind)
    assert "has an identity already" in refused(tmp_path, "--reader", "lamp-17")
    provision(tmp_path, "lamp-17", *BROKER, kind, "--renew")
    secret = {"--password": "edgetag.mqtt-password", "--certificate": "edgetag.mqtt-key"}[kind]
    second = unpacked(tmp_path, "lamp-17")
    assert (second / secret).read_text() != (first / secret).read_text()
    assert (tmp_path / "ca" / "passwords").read_text().count("lamp-17:") == (kind == "--password")
    assert "lamp-18 has no identity yet" in refused(tmp_path, "lamp-18", *BROKER, kind, "--renew")


def test_what_is_revoked_is_all_that_somebody_had_and_nobody_elses(tmp_path: Path) -> None:
    """After that the name is free again."""
    for name in ("lamp-1", "lamp-17"):
        provision(tmp_path, name, *BROKER, "--certificate")
    theirs = [unpacked(tmp_path, name).rename(tmp_path / f"{name}-first") for name in ("lamp-1", "lamp-17")]
    (tmp_path / "lamp-1.tar").unlink()
    provision(tmp_path, "lamp-1", *BROKER, "--certificate", "--renew")
    theirs.append(unpacked(tmp_path, "lamp-1"))
    provision(tmp_path, "lamp-11", *BROKER)
    provision(tmp_path, "--revoke", "lamp-1")
    assert [is_accepted(tmp_path / "ca", one / "sensor.crt") for one in theirs] == [False, True, False]
    assert "lamp-1 has no identity of this authority" in refused(tmp_path, "--revoke", "lamp-1")
    assert (tmp_path / "ca" / "passwords").read_text().startswith("lamp-11:")
    first_s = dated_s("crl", "lastupdate", tmp_path / "ca" / "ca.crl")
    provision(tmp_path, "--revoke", "lamp-11")
    assert (tmp_path / "ca" / "passwords").read_text() == ""
    assert dated_s("crl", "lastupdate", tmp_path / "ca" / "ca.crl") > first_s  # a broker takes the later list
    (tmp_path / "lamp-1.tar").unlink()
    provision(tmp_path, "lamp-1", *BROKER, "--certificate")
    assert is_accepted(tmp_path / "ca", unpacked(tmp_path, "lamp-1") / "sensor.crt")


# -- what cannot be --------------------------------------------------------------------------------------


NO_NAMES = ["", ".", "..", "a/b", "a+b", "a#b", "a:b", "ä", "a b", "a\x1b[31m", "a\n", ".a", "x" * 65]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected the name of a sensor"),
        (["lamp-17"], "--broker HOST[:PORT] is missing: where does lamp-17 publish?"),
        (["lamp-17", "--broker"], "--broker needs a value"),
        (["lamp-17", "lamp-18"], "one at a time: there is 'lamp-18' beside 'lamp-17'"),
        (["lamp-17", "--revoke", "lamp-17"], "one at a time"),
        (["--renew", "lamp-17", "--server", "b"], "one at a time"),
        (["lamp-17", "--borker", "b"], "there is no '--borker'; --help"),
        (["lamp-17", "--password", "--certificate"], "one of them is enough"),
        (["--revoke", "lamp-17", *BROKER], "--revoke takes --ca and --out only"),
        (["--server", "b", "--renew"], "--renew is for sensors and readers"),
        (["--revoke", "lamp-17"], "there is no authority in 'ca'"),
        (["lamp-17", *BROKER, "--days", "9"], "--days is for --certificate"),
        (["lamp-17", *BROKER, "--certificate", "--days", "0"], "--days '0': expected a number of days"),
        (["lamp-17", *BROKER, "--device", "a\nb"], "--device holds a control character"),
        (["lamp-17", *BROKER, "--out", "absent"], "--out 'absent' is no folder"),
        (["admin", *BROKER], "admin has a reader's rights in "),
        *(
            (["lamp-17", "--broker", broker], "is no host: expected a name or an address, without mqtts://")
            for broker in ("mqtts://b", "b/c", "u@b", "::1", "b:", "b:1:2", "b:123456", "-b", "b c", "b'")
        ),
        *((["lamp-17", "--broker", f"b:{port}"], "expected a port from 1 to 65535") for port in (0, 65536)),
        (["--server", "b:8883"], "is no host"),
        *(
            ([name, *BROKER], "is no name: expected 1 to 64 letters, digits, . _ -, the first a letter or")
            for name in NO_NAMES
        ),
        (["--reader", "a:b"], "is no name"),
        (["--revoke", "../ca"], "is no name"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_one_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    sentence = refused(tmp_path, *arguments)
    assert said in sentence
    assert sentence.strip().isprintable()


def test_a_folder_of_other_things_becomes_no_authority(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir()
    (tmp_path / "ca" / "photographs").touch()
    assert "'ca' holds other things than an authority" in refused(tmp_path, "lamp-17", *BROKER)


@pytest.mark.parametrize("file", ["ca.key", "ca.crt"])
def test_half_an_authority_is_none(tmp_path: Path, file: str) -> None:
    """And is not made anew: somebody keeps the other half somewhere else."""
    provision(tmp_path, "--reader", "dashboard")
    (tmp_path / "ca" / file).unlink()
    assert f"ca/{file} cannot be read" in refused(tmp_path, "lamp-17", *BROKER)


@pytest.fixture(scope="module")
def two_lamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority of one with a certificate, lamp-2, and one with a password, lamp-3."""
    folder = tmp_path_factory.mktemp("two-lamps")
    provision(folder, "lamp-2", *BROKER, "--certificate")
    provision(folder, "lamp-3", *BROKER)
    for tar in folder.glob("*.tar"):
        tar.unlink()
    return folder


@pytest.mark.skipif(not shutil.which("prlimit"), reason="prlimit is not installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ["lamp-1", *BROKER],
        ["lamp-1", *BROKER, "--certificate"],
        ["lamp-2", *BROKER, "--certificate", "--renew"],
        ["lamp-3", *BROKER, "--renew"],
        ["--revoke", "lamp-2"],
        ["--server", "broker.example"],
    ],
)
def test_nothing_is_left_of_what_fails(tmp_path: Path, two_lamps: Path, arguments: list[str]) -> None:
    """At whatever step there is no more room, until there is enough for all."""
    shutil.copytree(two_lamps, tmp_path, dirs_exist_ok=True)
    before = tree(tmp_path)
    n_failures = fails_for_want_of_room(tmp_path, *arguments)
    assert n_failures >= 3
    assert set(tree(tmp_path)) >= set(before)


@pytest.mark.skipif(not shutil.which("prlimit"), reason="prlimit is not installed")
def test_an_authority_that_cannot_be_made_whole_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(
        AssertionError, match="new authority"
    ):  # there is room for that before there is for all
        fails_for_want_of_room(tmp_path, "lamp-1", *BROKER)
    assert {path.name for path in tmp_path.iterdir()} == {"ca"}
    provision(tmp_path, "lamp-1", *BROKER)


def test_who_is_interrupted_has_made_an_identity_or_has_not(tmp_path: Path) -> None:
    """At whatever moment; a terminal's Ctrl-C is for everything that the script has started, too."""
    numbers = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    folders = [tmp_path / number.name for number in numbers]
    with ThreadPoolExecutor() as side_by_side:  # they wait most of the time
        list(side_by_side.map(interrupt, folders, numbers))
    for folder in folders:
        made = {tar.stem for tar in folder.glob("*.tar")}
        known = (folder / "ca" / "index.txt").read_text()
        assert made == set(re.findall(r"/CN=(\S+)$", known, re.MULTILINE))
        assert len(list((folder / "ca" / "issued").iterdir())) == len(made)
        assert not [path for path in folder.rglob(".*") if path.name.startswith(".")]


def interrupt(folder: Path, number: signal.Signals) -> None:
    """Sixteen of that folder's identities in the making, each a little later."""
    folder.mkdir()
    provision(folder, "--reader", "dashboard")
    command = [str(PROVISION), *BROKER, "--certificate"]
    for n in range(16):
        with subprocess.Popen(
            [*command, f"lamp-{n}"], cwd=folder, stdout=subprocess.DEVNULL, process_group=0
        ) as running:
            time.sleep(n / 64)
            os.killpg(running.pid, number)


def fails_for_want_of_room(folder: Path, *arguments: str) -> int:
    """How often, with files of up to 64, 128, 256 … bytes; with nothing other than before, every time."""
    before = tree(folder)
    for doubled in range(12):
        under = ("prlimit", f"--fsize={64 << doubled}", "--")
        done = run(folder, *arguments, under=under, restore_signals=False)  # so that who writes is told
        if done.returncode == 0:
            return doubled
        assert (done.returncode, done.stdout) == (1, ""), done
        assert tree(folder) == before
    raise AssertionError("there is never enough room")


# -- the script itself -----------------------------------------------------------------------------------


def test_the_help_names_every_option(tmp_path: Path) -> None:
    """And the exit codes."""
    said = provision(tmp_path, "--help")
    options = set(re.findall(r"^ +((?:--\w+(?: \| )?)+)\)", PROVISION.read_text(), re.MULTILINE))
    assert len(options) >= 4
    for option in " | ".join(options).split(" | "):
        assert option == "--help" or option in said, option
    assert "Exit codes: 0 done; 1 something failed" in said


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", str(PROVISION)], check=True)
