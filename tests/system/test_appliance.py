"""What `deploy/` has for a board as a whole: the microphone's name, the journal, the hardware watchdog.

Each is read by whoever is to obey it: udev, journald, systemd. There is no sound card here and no watchdog:
udev is shown cards in a /sys that is made up, in a mount namespace of its own. That a kernel takes the name,
and that a board is reset, is not tested.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "70-edgetag-microphone.rules"
SYSTEMD, JOURNALD = Path("/lib/systemd/systemd"), Path("/lib/systemd/systemd-journald")

_MICROPHONE = {"idVendor": "0d8c", "idProduct": "0014", "serial": "A1"}
_OTHER = {"idVendor": "046d", "idProduct": "0825"}


def _needs(*programs: str | Path) -> pytest.MarkDecorator:
    absent = [str(program) for program in programs if not shutil.which(program)]
    is_root = os.geteuid() == 0
    return pytest.mark.skipif(
        bool(absent) or not is_root,
        reason=f"{', '.join(absent)} not installed" if absent else "only root can mount",
    )


# -- the microphone's name ---------------------------------------------------------------------------------


def made_up_card(sys: Path, socket: str, attributes: dict[str, str], *, captures: bool) -> None:
    """A sound card in a USB socket, as a kernel shows it in /sys."""
    device = sys / "devices" / "platform" / "soc" / "usb1" / socket
    interface = device / f"{socket}:1.0"
    card = interface / "sound" / "card1"
    (card / f"pcmC1D0{'c' if captures else 'p'}").mkdir(parents=True)
    for path, subsystem in ((device, "bus/usb"), (interface, "bus/usb"), (card, "class/sound")):
        (sys / subsystem).mkdir(parents=True, exist_ok=True)
        (path / "uevent").touch()
        (path / "subsystem").symlink_to(f"/sys/{subsystem}")
    for name, value in attributes.items():
        (device / name).write_text(f"{value}\n")
    (card / "id").write_text("Device\n")


def card_on_the_board(sys: Path) -> None:
    """As those of HDMI, or of a microphone that is soldered on."""
    card = sys / "devices" / "platform" / "soc" / "sound" / "card1"
    (card / "pcmC1D0c").mkdir(parents=True)
    (sys / "class" / "sound").mkdir(parents=True)
    (card / "uevent").touch()
    (card / "subsystem").symlink_to("/sys/class/sound")
    (card / "id").write_text("Device\n")


def what_udev_does(sys: Path, rules: str, action: str = "change") -> tuple[str, str]:
    """The card's id after udev has looked at it, and what udev says of the rules."""
    (sys.parent / RULES.name).write_text(rules)
    (card,) = sys.glob("devices/**/sound/card1")
    inside = Path("/sys", card.relative_to(sys))
    script = f"""
        mount --bind {sys} /sys
        mount -t tmpfs none /run
        mount -t tmpfs none /etc/udev/rules.d
        cp {sys.parent / RULES.name} /etc/udev/rules.d/
        SYSTEMD_DEVICE_VERIFY_SYSFS=0 udevadm test --action={action} {inside} 2>&1
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", script], stdout=subprocess.PIPE, text=True, check=True
    )
    assert f"Reading rules file: /etc/udev/rules.d/{RULES.name}" in done.stdout
    said = [line for line in done.stdout.splitlines() if f"{RULES.name}:" in line]
    return (card / "id").read_text().strip(), "\n".join(said)


needs_udev = _needs("udevadm", "unshare", "mount")


@needs_udev
def test_a_usb_microphone_is_called_street(tmp_path: Path) -> None:
    """And udev has nothing else to say of the rules: no mistake in them."""
    made_up_card(tmp_path / "sys", "1-1.3", _MICROPHONE, captures=True)
    name, said = what_udev_does(tmp_path / "sys", RULES.read_text())
    assert name == "street"
    assert re.fullmatch(r"card1: \S+:\d+ ATTR '/sys/\S+/card1/id' writing 'street'", said)


@needs_udev
def test_it_is_called_so_once_and_when_all_of_it_is_there(tmp_path: Path) -> None:
    made_up_card(tmp_path / "sys", "1-1.3", _MICROPHONE, captures=True)
    assert what_udev_does(tmp_path / "sys", RULES.read_text(), "add") == ("Device", "")
    assert what_udev_does(tmp_path / "sys", RULES.read_text())[0] == "street"
    assert what_udev_does(tmp_path / "sys", RULES.read_text()) == ("street", "")


@needs_udev
def test_no_other_card_is(tmp_path: Path) -> None:
    """One that only plays, in a USB socket; one on the board."""
    made_up_card(tmp_path / "usb" / "sys", "1-1.3", _MICROPHONE, captures=False)
    card_on_the_board(tmp_path / "board" / "sys")
    for folder in ("usb", "board"):
        assert what_udev_does(tmp_path / folder / "sys", RULES.read_text()) == ("Device", "")


@needs_udev
@pytest.mark.parametrize("number", [0, 1])
def test_the_rules_for_one_of_several_are_good_too(tmp_path: Path, number: int) -> None:
    """As they stand in the comment: by vendor, product and serial number, or by the socket."""
    rules = re.findall(r'^#(ACTION==.*)\\\n#(.*ATTR{id}="street")$', RULES.read_text(), re.MULTILINE)
    assert len(rules) == 2
    rule = "".join(rules[number]) + "\n"
    made_up_card(tmp_path / "mine" / "sys", "1-1.3", _MICROPHONE, captures=True)
    made_up_card(tmp_path / "other" / "sys", "1-1.4", _MICROPHONE | _OTHER, captures=True)
    assert what_udev_does(tmp_path / "mine" / "sys", rule)[0] == "street"
    assert what_udev_does(tmp_path / "other" / "sys", rule) == ("Device", "")


# -- the journal, the watchdog -----------------------------------------------------------------------------


def said_of_ours(text: str) -> list[str]:
    return [line for line in text.splitlines() if "/edgetag.conf:" in line]


@_needs(JOURNALD, "unshare", "mount")
@pytest.mark.parametrize("more", ["", "Storages=persistent\n", "SystemMaxUse=much\n"])
def test_journald_understands_every_line(tmp_path: Path, more: str) -> None:
    """And says so of one that it does not. It is a journald of its own, of no journal."""
    config = (DEPLOY / "appliance" / "journald.conf.d" / "edgetag.conf").read_text()
    (tmp_path / "edgetag.conf").write_text(config + more)
    script = f"""
        for folder in /run /var/log; do mount -t tmpfs none $folder; done
        mkdir -p /run/systemd/journal /run/systemd/journald.conf.d
        cp {tmp_path}/edgetag.conf /run/systemd/journald.conf.d/
        SYSTEMD_LOG_TARGET=console {JOURNALD} 2>{tmp_path}/said &
        while ! [ -e /run/systemd/journal/socket ]; do sleep 0.1; done
        kill $!
    """
    subprocess.run(["unshare", "--mount", "--net", "sh", "-euc", script], check=True, timeout=60)
    said = said_of_ours((tmp_path / "said").read_text())
    assert len(said) == bool(more), said


@pytest.mark.skipif(not (SYSTEMD.exists() and shutil.which("setpriv")), reason="systemd is not installed")
@pytest.mark.parametrize("more", ["", "RuntimeWatchdog=15s\n", "RebootWatchdogSec=soon\n"])
def test_systemd_understands_every_line(more: str) -> None:
    """A user's instance reads the same settings, and can be asked by anybody but root."""
    config = (DEPLOY / "appliance" / "system.conf.d" / "edgetag.conf").read_text()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        place = Path(folder, "systemd", "user.conf.d", "edgetag.conf")
        place.parent.mkdir(parents=True)
        place.write_text(config + more)
        as_nobody = [] if os.geteuid() else ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        done = subprocess.run(
            [*as_nobody, str(SYSTEMD), "--test", "--user"],
            env={"XDG_CONFIG_HOME": folder, "XDG_RUNTIME_DIR": folder, "SYSTEMD_LOG_TARGET": "console"},
            capture_output=True,
            text=True,
            check=False,
        )
    said = said_of_ours(done.stderr)
    assert len(said) == bool(more), said


def test_the_watchdog_is_one_that_a_raspberry_pi_has() -> None:
    """Its hardware counts to fifteen."""
    config = (DEPLOY / "appliance" / "system.conf.d" / "edgetag.conf").read_text()
    (seconds,) = re.findall(r"^RuntimeWatchdogSec=(\d+)s$", config, re.MULTILINE)
    assert int(seconds) <= 15
