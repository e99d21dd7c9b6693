"""deploy/install.sh on a Debian whose systemd runs: from the archive to a sensor, and every way back.

Run by `make test-system`, as root; a plain `make test` leaves these tests out. The stories happen to one
machine (see `machine`), in this order:

```
blank ─ install, again ─ upgrade: unfit, killed, killed, done ─ rollback ─ uninstall, install, purge ─ blank
```

The other releases are made of the same archive: *another* has one more comment in it, *unfit* damaged nets. A
line is printed for every claim.
"""

import os
import platform
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from system.machine import Machine, missing
from system.service import CONFIGURATION, INSTALLING_S, Service, lamp

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the archive that is built is for amd64"),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

DONE, UNFIT, UNHEALTHY = 0, 4, 5  # of install.sh
_OTHERS = {
    # What a machine changes all the time, or dpkg when it installs a package.
    *("var/log", "var/cache", "var/tmp", "var/lib/systemd", "var/lib/dpkg", "tmp", "root"),
    *("var/lib/mosquitto", "var/lib/reader", "var/lib/street"),
}

Listing = Mapping[str, tuple[int, int, int, int, str]]


def say(claim: str) -> None:
    print(f"\ninstall.sh: {claim}", end="")  # noqa: T201


@pytest.fixture(scope="module")
def blank() -> Iterator[tuple[Service, Listing]]:
    """A machine without edgetag, and all the files on it."""
    with lamp() as service:
        yield service, listing(service.machine)


@pytest.fixture(scope="module")
def service(blank: tuple[Service, Listing]) -> Service:
    """Installed once, whatever the first test says of it."""
    service, _ = blank
    done = service.install_here()
    assert done.returncode in (DONE, UNHEALTHY), done.stdout
    return service


def listing(machine: Machine, *folders: str) -> Listing:
    """Every file, of these folders or of all: its rights, its owner, when it was changed, where it leads."""
    found = {}
    for folder in folders or ("",):
        for path, names, files in os.walk(machine.root / folder):
            inside = Path(path).relative_to(machine.root)
            names[:] = [name for name in names if str(inside / name) not in _OTHERS]
            for name in (*names, *files):
                file = Path(path, name)
                is_folder = file.is_dir() and not file.is_symlink()
                status = file.lstat()
                leads_to = str(file.readlink()) if file.is_symlink() else ""
                changed = 0 if is_folder else status.st_mtime_ns
                found[str(inside / name)] = (status.st_mode, status.st_uid, status.st_gid, changed, leads_to)
    return found


def unpacked_as(service: Service, name: str) -> Path:
    """The archive's folder once more; to be changed, and `summed` then."""
    home = service.machine.root / "root"
    shutil.copytree(home / service.unpacked, home / name, dirs_exist_ok=True)
    return home / name


def summed(folder: Path) -> str:
    """As `make archive` signs for it; the folder's name."""
    write_sums = "find . -type f ! -path ./SHA256SUMS -printf '%P\\0' | sort -z | xargs -0 sha256sum >../sums"
    subprocess.run(["sh", "-c", f"{write_sums} && mv ../sums SHA256SUMS"], cwd=folder, check=True)
    return folder.name


def with_one_more_comment(service: Service) -> str:
    folder = unpacked_as(service, "another")
    with (folder / "deploy/edgetag.yaml").open("a") as file:
        file.write("# One more comment.\n")
    return summed(folder)


def with_a_damaged_bundle(service: Service) -> str:
    """One byte of every net in the wheel is another one."""
    folder = unpacked_as(service, "unfit")
    (wheel,) = (folder / "wheels").glob("edgetag-*.whl")
    whole = wheel.rename(folder / "whole")
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as damaged:
        for entry in source.infolist():
            content = bytearray(source.read(entry))
            if entry.filename.endswith(".onnx"):
                content[len(content) // 2] ^= 1
            damaged.writestr(entry, bytes(content))
    whole.unlink()
    return summed(folder)


# -- the first time ----------------------------------------------------------------------------------------


def test_one_command_makes_a_sensor_of_a_blank_debian(blank: tuple[Service, Listing]) -> None:
    """It hears and publishes; its doctor has nothing to say but of the clock, which is the host's."""
    service, _ = blank
    began_s = time.time()
    done = service.install_here()
    took_s = time.time() - began_s
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("failed")]
    assert done.returncode == (UNHEALTHY if failed else DONE), done.stdout
    assert failed in ([], ["clock"])
    assert (service.show("ActiveState"), service.show("UnitFileState")) == ("active", "enabled")
    service.wait_for_tags(began_s)
    service.wait_for_state("online", began_s)
    say(f"from a blank Debian to a sensor that is ready took {took_s:.0f} s; the doctor found: {failed}")


def test_secrets_are_root_s_and_nobody_reads_more_than_he_must(service: Service) -> None:
    modes = service.machine.run(
        "stat", "--format=%a %U:%G %n", "/etc/credstore", "/etc/credstore/edgetag.mqtt-password",
        "/etc/edgetag", "/etc/edgetag/edgetag.yaml", "/etc/edgetag/ca.crt", "/var/lib/edgetag",
    )  # fmt: skip
    assert modes.splitlines() == [
        "700 root:root /etc/credstore",
        "600 root:root /etc/credstore/edgetag.mqtt-password",
        "750 root:edgetag /etc/edgetag",
        "640 root:edgetag /etc/edgetag/edgetag.yaml",
        "640 root:edgetag /etc/edgetag/ca.crt",
        "700 edgetag:edgetag /var/lib/edgetag",
    ]
    password = (service.machine.root / "etc/credstore/edgetag.mqtt-password").read_text().strip()
    assert password not in service.machine.run("journalctl", "--no-pager")
    assert password not in service.machine.run("ps", "-eo", "args")
    say("secrets are root's alone; none is in the journal or on a command line")


def test_again_changes_nothing(service: Service) -> None:
    """Not a file, and the service runs on."""
    folders = ("opt", "etc", "usr")
    before, pid = listing(service.machine, *folders), service.show("MainPID")
    done = service.install("--identity", "/root/lamp-17.tar")
    assert done.returncode in (DONE, UNHEALTHY), done.stdout
    assert different(before, listing(service.machine, *folders)) == []
    assert service.show("MainPID") == pid
    say(f"installed again: none of {len(before)} files is another one, and the same process runs")


def different(before: Listing, after: Listing) -> list[str]:
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


# -- upgrades ----------------------------------------------------------------------------------------------


def test_a_release_that_is_unfit_is_given_up(service: Service) -> None:
    """Its doctor fails; the service is the old one's, with the old one's files."""
    old, before = service.release(), listing(service.machine, "opt", "etc", "usr")
    since_s = time.time()
    done = service.install(folder=with_a_damaged_bundle(service))
    assert done.returncode == UNFIT, done.stdout
    assert "bundle" in done.stdout
    service.wait_for("active")
    service.wait_for_state("online", since_s)
    assert service.release() == old
    assert different(before, listing(service.machine, "opt", "etc", "usr")) == []
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("install.sh:"))
    say(f"an unfit release is given up, the old one runs. {line}")


@pytest.mark.parametrize("moment", ["installing", "asking the doctor"])
def test_an_upgrade_that_is_killed_leaves_a_service_that_starts(service: Service, moment: str) -> None:
    """While it unpacks, and while the service is stopped for the doctor: what a power failure would leave."""
    machine, old = service.machine, service.release()
    unit, folder = f"upgrade-{moment.split()[0]}", with_one_more_comment(service)
    machine.run("systemd-run", "--collect", f"--unit={unit}", f"/root/{folder}/install.sh")
    machine.wait_until(lambda: any(moment in line for line in machine.journal(unit)), moment, INSTALLING_S)
    machine.run("systemctl", "kill", "--signal=KILL", unit)
    since_s = time.time()
    service.systemctl("start")
    service.wait_for("active")
    assert service.release() == old
    service.wait_for_tags(since_s)
    say(f"killed while {moment}: the old release starts, and tags")


def test_an_upgrade_keeps_configuration_and_outbox(service: Service) -> None:
    """What waits for a broker that is away is delivered by the new release; a changed configuration stays."""
    machine, old = service.machine, service.release()
    file = machine.root / CONFIGURATION
    file.write_text(file.read_text() + "# a person's own remark\n")
    before = file.read_bytes()
    machine.run("systemctl", "stop", "mosquitto")
    machine.wait_until(lambda: len(service.waiting()) >= 2, "two windows wait")
    boot = service.waiting()[0].boot
    done = service.install(folder="another")
    assert done.returncode in (DONE, UNHEALTHY), done.stdout
    assert service.release() != old
    assert file.read_bytes() == before
    of_the_old = [number for number in service.waiting() if number.boot == boot]
    back_s = time.time()
    machine.run("systemctl", "start", "mosquitto")
    events = service.wait_for_tags(back_s, n=len(of_the_old) + 1)
    assert [(event["boot"], event["seq"]) for event in events][: len(of_the_old)] == of_the_old
    assert len(of_the_old) >= 2
    assert {path.name for path in (machine.root / "opt/edgetag/releases").iterdir()} == {
        old,
        service.release(),
    }
    say(f"an upgrade keeps the configuration; {len(of_the_old)} windows that waited were delivered after it")


def test_rollback_goes_back_to_the_release_before(service: Service) -> None:
    new, since_s = service.release(), time.time()
    done = service.install("--rollback", folder="another")
    assert done.returncode == DONE, done.stdout
    assert service.release() != new
    service.wait_for("active")
    service.wait_for_state("online", since_s)
    say(f"--rollback: {new} gives way to {service.release()}, which runs")


def test_an_upgrade_that_is_killed_after_the_exchange_is_completed_by_the_next(service: Service) -> None:
    """The new release starts, and is not trusted yet; the second run says whether it may stay.

    in force   old ─── new ────────────────── new
    installer      ───| killed      ─────────────|
    """
    machine, old = service.machine, service.release()
    machine.run("systemd-run", "--collect", "--unit=upgrade", "/root/another/install.sh")
    machine.wait_until(lambda: service.release() != old, "exchanged", INSTALLING_S)
    machine.run("systemctl", "kill", "--signal=KILL", "upgrade")
    new, since_s = service.release(), time.time()
    service.systemctl("start")
    service.wait_for("active")
    service.wait_for_tags(since_s)
    done = service.install(folder="another")
    assert done.returncode in (DONE, UNHEALTHY), done.stdout
    assert service.release() == new
    assert {file.name for file in (machine.root / "opt/edgetag/releases").iterdir()} == {old, new}
    say("killed after the exchange: the new release starts, and tags; the second run completes it")


# -- the end -----------------------------------------------------------------------------------------------


def test_uninstalling_leaves_what_is_this_sensor_s(blank: tuple[Service, Listing], service: Service) -> None:
    """Configuration, credentials, outbox and user; installed again, it is the same sensor."""
    assert service.install("--uninstall").returncode == DONE
    left = left_behind(blank)
    own = ("etc/edgetag", "etc/credstore", "var/lib/edgetag", *_USERS)
    assert [path for path in left if not path.startswith(own)] == []
    assert {CONFIGURATION, "etc/credstore/edgetag.mqtt-password", "var/lib/edgetag/outbox.db"} <= left
    assert service.show("LoadState") == "not-found"
    done, since_s = service.install(), time.time()
    assert done.returncode in (DONE, UNHEALTHY), done.stdout
    service.wait_for_tags(since_s)
    say(f"--uninstall leaves {len(left)} files, the sensor's own; installed again, it tags and publishes")


def test_purging_leaves_nothing(blank: tuple[Service, Listing], service: Service) -> None:
    """But Debian's packages."""
    assert service.install("--uninstall", "--purge").returncode == DONE
    assert left_behind(blank) - _USERS == set()
    for file in ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow"):
        assert "edgetag" not in (service.machine.root / file).read_text()
    assert service.machine.run("systemctl", "--failed", "--no-legend") == ""
    say("--uninstall --purge leaves nothing but Debian's packages")


_USERS = {f"etc/{name}{old}" for name in ("passwd", "group", "shadow", "gshadow") for old in ("", "-")}
"""They list the user edgetag, and are written anew when it goes."""


def left_behind(blank: tuple[Service, Listing]) -> set[str]:
    """What there was not before the first installation, or is another one, and is no Debian package's."""
    service, before = blank
    names = service.machine.run("dpkg-query", "--show", "--showformat=${Package}\n").split()
    packaged = service.machine.run("dpkg-query", "--listfiles", *names).splitlines()
    known = {
        path.removeprefix("/").replace("lib/", "usr/lib/", 1) for path in packaged if path[:5] == "/lib/"
    }
    known |= {path.removeprefix("/") for path in packaged} | {"etc/ld.so.cache"}
    return {path for path in different(before, listing(service.machine)) if path not in known}


# -- an image ----------------------------------------------------------------------------------------------


def test_an_image_that_was_installed_switched_off_is_a_sensor_when_it_boots() -> None:
    """In a chroot, as images for SD cards are built: nothing is started there, everything is enabled."""
    with lamp(is_on=False) as service:
        script = f"/root/{service.unpacked}/install.sh"
        said = service.machine.offline(script, "--identity", "/root/lamp-17.tar", "--appliance")
        assert "it starts when this system boots" in said
        since_s = time.time()
        service.machine.boot()
        service.wait_for("active")
        service.wait_for_tags(since_s)
        service.wait_for_state("online", since_s)
        watchdog = service.machine.run("systemctl", "show", "--property=RuntimeWatchdogUSec", "--value")
        assert watchdog == "15s"
        assert list((service.machine.root / "var/log/journal").glob("*/system.journal"))
        say(
            "an image that was installed in a chroot hears and publishes at its first boot; --appliance holds"
        )
