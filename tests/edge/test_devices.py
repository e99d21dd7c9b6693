"""Which microphone: the same one after a reboot, and never another than was asked for."""

import grp
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag.capture.devices import (
    Device,
    NoDeviceError,
    find,
    input_devices,
    load_portaudio,
    locked_out,
    rescan,
)
from edgetag.contract.errors import InputError
from edgetag.devices_cli import devices as devices_command
from fakes_cli import ROOT_WITHOUT_RIGHTS, needs_root, refused, run_python

PI_3 = "platform/soc/3f980000.usb"
PI_4 = "platform/scb/fd500000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0"
PI_5 = "platform/axi/1000120000.pcie/1f00300000.usb/xhci-hcd.1"
PC = "pci0000:00/0000:00:14.0"

USB_MIC = "USB PnP Sound Device: Audio"


class FakePortAudioError(Exception):
    """As sounddevice's: what happened, PortAudio's code, and ALSA's words where it has some."""


class FakePortAudio:
    """What of sounddevice is used. Each entry is one device: name and channels that it hears.

    A name in bytes is one that is not UTF-8. `plugged` takes effect at the next rescan.
    """

    PortAudioError = FakePortAudioError

    def __init__(self, *plugged: tuple[str | bytes, int], default: int = -1) -> None:
        self.plugged, self.default_input = list(plugged), default
        self.default = SimpleNamespace(hostapi=0)
        self.refuses_to_start = False
        self.opens_at_hz = {44_100, 48_000}
        self.refusal: FakePortAudioError | None = None
        self.hears: NDArray[np.float32] = np.zeros(1, np.float32)
        self.asked_channels: set[int] = set()
        self._initialized = 0
        self._initialize()

    def _initialize(self) -> None:
        if self.refuses_to_start:
            raise FakePortAudioError("Error initializing PortAudio: Unanticipated host error", -9999)
        self._initialized += 1
        self._known = list(self.plugged)

    def _terminate(self) -> None:
        assert self._initialized
        self._initialized -= 1

    def query_hostapis(self) -> Sequence[dict[str, Any]]:
        if not self._initialized:
            raise FakePortAudioError("PortAudio not initialized", -10000)
        alsa = {"name": "ALSA", "devices": list(range(len(self._known)))}
        return (
            alsa | {"default_input_device": self.default_input},
            {"name": "OSS", "devices": [], "default_input_device": -1},
        )

    def query_devices(self, index: int) -> dict[str, Any]:
        name, n_channels = self._known[index]
        text = name if isinstance(name, str) else name.decode()
        return {"name": text, "max_input_channels": n_channels, "default_samplerate": 48000.0}

    def check_input_settings(self, device: int, channels: int, dtype: str, *, samplerate: int) -> None:
        self.query_devices(device)
        self.asked_channels.add(channels)
        if self.refusal or samplerate not in self.opens_at_hz:
            raise self.refusal or FakePortAudioError("Invalid sample rate", -9997)

    def InputStream(  # noqa: N802
        self, rate_hz: int, blocksize: int, device: int, n_channels: int, dtype: str
    ) -> "FakeStream":
        self.query_devices(device)
        self.asked_channels.add(n_channels)
        if self.refusal:
            raise self.refusal
        return FakeStream(self.hears, n_channels)


class FakeStream:
    def __init__(self, hears: NDArray[np.float32], n_channels: int) -> None:
        self._hears, self._n_channels = hears, n_channels

    def read(self, n_frames: int) -> tuple[NDArray[np.float32], bool]:
        return np.repeat(np.resize(self._hears, n_frames)[:, None], self._n_channels, axis=1), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


class Sysfs:
    """A /sys with sound cards where they are to be plugged in."""

    def __init__(self, folder: Path) -> None:
        self._root = folder
        self.sound = folder / "class" / "sound"
        self.sound.mkdir(parents=True)

    def plug(self, card: int, parent: str, id: str = "") -> None:
        """`parent` is the device's, below /sys/devices; `id` the sound card's."""
        device = self._root / "devices" / parent
        node = device / "sound" / f"card{card}"
        node.mkdir(parents=True)
        (node / "device").symlink_to(Path("..", "..", "..", device.name))
        if id:
            (node / "id").write_text(f"{id}\n")
        (self.sound / node.name).symlink_to(Path("..", "..", node.relative_to(self._root)))


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def named(*names: str, default: str | None = None) -> list[Device]:
    return [Device(index, name, name, "ALSA", 1, 48_000, name == default) for index, name in enumerate(names)]


# -- what there is ---------------------------------------------------------------------------------------


def test_only_inputs_are_listed_and_the_default_is_marked(sysfs: Sysfs) -> None:
    """An output is no microphone; indices stay PortAudio's."""
    portaudio = FakePortAudio(("HDMI: 0 (hw:0,0)", 0), ("pulse", 32), ("default", 32), default=2)
    assert input_devices(portaudio, sysfs.sound) == [
        Device(1, "pulse", "pulse", "ALSA", 32, 48_000, is_default=False),
        Device(2, "default", "default", "ALSA", 32, 48_000, is_default=True),
    ]


def test_there_may_be_nothing(sysfs: Sysfs) -> None:
    """No devices are no error, until one is wanted."""
    assert input_devices(FakePortAudio(), sysfs.sound) == []


@pytest.mark.parametrize(
    ("parent", "identity"),
    [
        (f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0", "usb:1-1.3"),
        (f"{PI_4}/usb1/1-1/1-1.4/1-1.4.2/1-1.4.2:1.0", "usb:1-1.4.2"),
        (f"{PI_5}/usb3/3-1/3-1:1.0", "usb:3-1"),
        (f"{PC}/usb1/1-10/1-10:1.2", "usb:1-10"),
        (f"{PC}/usb2/2-4", "usb:2-4"),  # drivers of devices that are not of the audio class
        ("platform/soc/soc:sound", USB_MIC),
        ("platform/soc/3f804000.i2c/i2c-1/1-0048", USB_MIC),  # called like a socket, but not on USB
        (f"{PC}/0000:00:1f.3", USB_MIC),
    ],
)
def test_a_device_on_usb_is_called_by_its_socket(sysfs: Sysfs, parent: str, identity: str) -> None:
    """Whatever lies between the processor and the bus; others by their name."""
    sysfs.plug(1, parent)
    (device,) = input_devices(FakePortAudio((f"{USB_MIC} (hw:1,0)", 1)), sysfs.sound)
    assert (device.name, device.identity, device.is_hardware) == (USB_MIC, identity, True)


def test_a_card_without_sysfs_is_called_by_its_name(tmp_path: Path) -> None:
    """As in a container."""
    (device,) = input_devices(FakePortAudio((f"{USB_MIC} (hw:1,0)", 1)), tmp_path / "none")
    assert device.identity == device.name == USB_MIC


def test_the_identity_does_not_move_with_the_card_number(sysfs: Sysfs, tmp_path: Path) -> None:
    """The same socket, another card number, another place in the list: the same device."""
    sysfs.plug(1, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0")
    before = find(input_devices(FakePortAudio((f"{USB_MIC} (hw:1,0)", 1)), sysfs.sound), "usb:1-1.3")
    rebooted = Sysfs(tmp_path / "rebooted")
    rebooted.plug(3, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0")
    rebooted.plug(1, f"{PI_3}/usb1/1-1/1-1.2/1-1.2:1.0")
    portaudio = FakePortAudio((f"{USB_MIC} (hw:1,0)", 1), (f"{USB_MIC} (hw:3,0)", 1))
    after = find(input_devices(portaudio, rebooted.sound), before.identity)
    assert (after.index, after.identity, after.name) == (1, before.identity, before.name)


def test_subdevices_of_one_card_are_told_apart(sysfs: Sysfs) -> None:
    """An interface with two inputs hangs on one socket."""
    sysfs.plug(2, f"{PC}/usb1/1-2/1-2:1.0")
    portaudio = FakePortAudio(("Two: USB Audio (hw:2,0)", 2), ("Two: USB Audio #1 (hw:2,1)", 2))
    assert [d.identity for d in input_devices(portaudio, sysfs.sound)] == ["usb:1-2", "usb:1-2,1"]


def test_a_sound_card_s_id_is_another_name(sysfs: Sysfs) -> None:
    """For hardware on any bus; a sound server has no card."""
    sysfs.plug(1, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0", id="street")
    sysfs.plug(2, "platform/soc/soc:sound", id="sndrpihifiberry")
    portaudio = FakePortAudio(
        (f"{USB_MIC} (hw:1,0)", 1), ("Two (hw:1,1)", 1), ("HifiBerry (hw:2,0)", 2), ("pulse", 32)
    )
    names = [(d.identity, d.card) for d in input_devices(portaudio, sysfs.sound)]
    assert names == [
        ("usb:1-1.3", "card:street"),
        ("usb:1-1.3,1", "card:street,1"),
        ("HifiBerry", "card:sndrpihifiberry"),
        ("pulse", ""),
    ]


@given(name=st.text(st.characters(exclude_categories=()), max_size=40))
def test_names_are_printable(name: str) -> None:
    """Whatever a device calls itself, a terminal shows it and obeys none of it."""
    (device,) = input_devices(FakePortAudio((name, 1)), Path("/nowhere"))
    assert device.name.isprintable()
    assert device.identity == device.name


def test_a_name_that_is_not_utf8_hides_nobody(sysfs: Sysfs) -> None:
    """Its device is listed like the others, and still by its socket."""
    sysfs.plug(1, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0")
    portaudio = FakePortAudio((b"Mikrofon gr\xfcn (hw:1,0)", 1), ("default", 32))
    green, default = input_devices(portaudio, sysfs.sound)
    assert (green.name, green.identity) == ("Mikrofon gr\\xfcn", "usb:1-1.3")
    assert default.name == "default"


# -- which of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (None, "default"),
        ("pulse", "pulse"),
        ("USB Mic: Audio", "USB Mic: Audio"),
        ("usb mic", "USB Mic: Audio"),
        ("Mic", "Mic"),  # the exact name, though it is a part of another one
        ("DEFAULT", "default"),
    ],
)
def test_a_name_or_its_part_finds_the_device(wanted: str | None, found: str) -> None:
    """An exact name before a part; a part in any case; nothing means the system's default."""
    devices = named("pulse", "default", "USB Mic: Audio", "Mic", default="default")
    assert find(devices, wanted).name == found


@pytest.mark.parametrize("wanted", ["", "Line", "usb:1-1.3", "usb:", "usb mic:", "0", "mic (hw:1,0)"])
def test_what_is_not_there_is_refused(wanted: str) -> None:
    """No other microphone is heard instead; the sentence says what was wanted and what there is."""
    with pytest.raises(NoDeviceError) as caught:
        find(named("pulse", "Mic", default="pulse"), wanted)
    assert str(caught.value) == f'the input device "{wanted}" is not there; there is "pulse", "Mic"'
    assert isinstance(caught.value, InputError)


def test_without_a_default_none_is_taken() -> None:
    """Not even the only one."""
    with pytest.raises(NoDeviceError, match=r'^the default input is not there; there is "pulse"$'):
        find(named("pulse"), None)
    with pytest.raises(
        NoDeviceError, match=r"^the default input is not there; there is no input device at all$"
    ):
        find([], None)


def test_two_of_a_kind_are_told_apart_by_their_sockets(sysfs: Sysfs) -> None:
    """Their name is refused, with what to say instead; and that is understood."""
    sysfs.plug(1, f"{PI_3}/usb1/1-1/1-1.2/1-1.2:1.0")
    sysfs.plug(2, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0")
    portaudio = FakePortAudio((f"{USB_MIC} (hw:1,0)", 1), (f"{USB_MIC} (hw:2,0)", 1))
    devices = input_devices(portaudio, sysfs.sound)
    for wanted in (USB_MIC, "pnp"):
        with pytest.raises(NoDeviceError, match="may be any of 2: ") as caught:
            find(devices, wanted)
        assert '"usb:1-1.2" (' in str(caught.value)
        assert '"usb:1-1.3" (' in str(caught.value)
    assert [find(devices, identity).index for identity in ("usb:1-1.2", "usb:1-1.3")] == [0, 1]


def test_a_card_is_found_by_its_id_in_whatever_socket(sysfs: Sysfs, tmp_path: Path) -> None:
    """A part of its id is another card's; what there is is told with both names."""
    sysfs.plug(1, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0", id="street")
    moved = Sysfs(tmp_path / "moved")
    moved.plug(2, f"{PI_3}/usb1/1-1/1-1.2/1-1.2:1.0", id="street")
    for portaudio, sys_sound in (
        (FakePortAudio(("pulse", 32), (f"{USB_MIC} (hw:1,0)", 1)), sysfs.sound),
        (FakePortAudio(("pulse", 32), (f"{USB_MIC} (hw:2,0)", 1)), moved.sound),
    ):
        devices = input_devices(portaudio, sys_sound)
        assert find(devices, "card:street").index == 1
        for other in ("card:stree", "card:", "card:street,1"):
            with pytest.raises(NoDeviceError, match=rf'^the input device "{other}" is not there; ') as caught:
                find(devices, other)
            assert f"({USB_MIC}, card:street)" in str(caught.value)


def test_part_of_a_socket_is_another_socket(sysfs: Sysfs) -> None:
    """1-1 is the hub that 1-1.3 hangs on."""
    sysfs.plug(1, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0")
    devices = input_devices(FakePortAudio((f"{USB_MIC} (hw:1,0)", 1)), sysfs.sound)
    with pytest.raises(NoDeviceError, match='"usb:1-1" is not there'):
        find(devices, "usb:1-1")


def test_an_impostor_makes_a_socket_ambiguous(sysfs: Sysfs) -> None:
    """A device may call itself what it likes; it is not taken for the one that hangs there."""
    sysfs.plug(1, f"{PI_3}/usb1/1-1/1-1.3/1-1.3:1.0")
    devices = input_devices(FakePortAudio((f"{USB_MIC} (hw:1,0)", 1), ("usb:1-1.3", 1)), sysfs.sound)
    with pytest.raises(NoDeviceError, match="may be any of 2"):
        find(devices, "usb:1-1.3")


# -- which of them may be opened ------------------------------------------------------------------------


@pytest.fixture
def dev_snd(tmp_path: Path) -> Path:
    """A card that plays and records."""
    folder = tmp_path / "snd"
    folder.mkdir()
    for name in ("controlC1", "pcmC1D0c", "pcmC1D0p", "timer"):
        (folder / name).touch()
        (folder / name).chmod(0o660)
    return folder


def test_nobody_is_locked_out_of_what_is_not_there(dev_snd: Path, tmp_path: Path) -> None:
    """No folder, no input, or every input may be opened: nothing is said; outputs do not matter."""
    assert locked_out(tmp_path / "none") == ""
    assert locked_out(dev_snd, lambda node: node.name != "pcmC1D0p") == ""
    (dev_snd / "pcmC1D0c").unlink()
    assert locked_out(dev_snd, lambda _: False) == ""


@needs_root
def test_who_is_locked_out_is_told_how_to_come_in(dev_snd: Path) -> None:
    """The node, the group that it belongs to, and what makes this user, or the service, one of them."""
    os.chown(dev_snd / "pcmC1D0c", 0, grp.getgrnam("audio").gr_gid)
    said = locked_out(dev_snd, lambda node: node.name == "timer")
    assert said.startswith(f"{dev_snd}/pcmC1D0c is there, and root may not open it: ")
    assert "it belongs to the group audio; " in said
    assert "`SupplementaryGroups=audio`" in said
    assert "`sudo usermod -aG audio root`" in said


@needs_root
@pytest.mark.parametrize(("group", "mode"), [("root", 0o660), ("audio", 0o600), ("audio", 0o640)])
def test_a_node_that_no_group_may_open_is_udev_s_to_give(dev_snd: Path, group: str, mode: int) -> None:
    """To join a group would not help, and nobody is asked to join root's."""
    os.chown(dev_snd / "pcmC1D0c", 0, grp.getgrnam(group).gr_gid)
    (dev_snd / "pcmC1D0c").chmod(mode)
    said = locked_out(dev_snd, lambda _: False)
    assert f"only root may, for its mode is 0{mode:o}; udev would" in said
    assert "usermod" not in said


@needs_root
@pytest.mark.parametrize("is_member", [False, True])
def test_whether_a_user_is_locked_out_is_the_kernel_s_word(dev_snd: Path, is_member: bool) -> None:
    """Of a user in the group, and of one who is not."""
    audio, nobody = grp.getgrnam("audio").gr_gid, 65_534
    node = dev_snd / "pcmC1D0c"
    os.chown(node, nobody, audio)
    code = f"import edgetag.capture.devices as d; print(d.locked_out(d.Path({str(dev_snd)!r})))"
    under = (*ROOT_WITHOUT_RIGHTS, f"--groups={audio}" if is_member else "--clear-groups")
    said = run_python("-c", code, state=dev_snd, under=under).stdout.strip()
    assert said.startswith(f"{node} is there, and root may not open it: ") != is_member
    assert bool(said) != is_member


# -- looking again ---------------------------------------------------------------------------------------


def test_a_device_is_found_after_a_rescan(sysfs: Sysfs) -> None:
    """PortAudio lists what there was when it started."""
    portaudio = FakePortAudio()
    portaudio.plugged.append(("pulse", 32))
    assert input_devices(portaudio, sysfs.sound) == []
    rescan(portaudio)
    assert [device.name for device in input_devices(portaudio, sysfs.sound)] == ["pulse"]


def test_a_rescan_that_fails_can_be_repeated(sysfs: Sysfs) -> None:
    """PortAudio that did not start is not ended again, and until it starts it tells nothing."""
    portaudio = FakePortAudio(("pulse", 32))
    portaudio.refuses_to_start = True
    for _ in range(2):
        with pytest.raises(NoDeviceError, match=r"^PortAudio does not start "):
            rescan(portaudio)
    with pytest.raises(NoDeviceError, match=r"^PortAudio does not list the devices "):
        input_devices(portaudio, sysfs.sound)
    portaudio.refuses_to_start = False
    rescan(portaudio)
    assert len(input_devices(portaudio, sysfs.sound)) == 1


# -- the command -----------------------------------------------------------------------------------------


def listed(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[dict[str, Any]]:
    """What `edgetag devices --json` says."""
    monkeypatch.setitem(sys.modules, "sounddevice", portaudio)
    devices_command(as_json=True, seconds=0.1)
    return json.loads(capsys.readouterr().out)["devices"]


@pytest.mark.parametrize(
    ("hears", "state", "peak_dbfs"),
    [([0.0], "digital silence", None), ([0.0, -0.25], "signal", -12.0), ([2**-15, 0], "signal", -90.3)],
)
def test_the_least_signal_is_one(
    hears: list[float],
    state: str,
    peak_dbfs: float | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One step of 16 bits is a signal; only zeros are digital silence."""
    portaudio = FakePortAudio(("Mic: Audio (hw:7,0)", 4))
    portaudio.hears = np.array(hears, np.float32)
    (entry,) = listed(portaudio, monkeypatch, capsys)
    assert (entry["state"], entry["peak_dbfs"], entry["rates_hz"]) == (state, peak_dbfs, [44_100, 48_000])


def test_channels_that_are_made_up_are_not_heard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All four of a card are opened; of a sound server's 32, one, into which it mixes what there is."""
    portaudio = FakePortAudio(("Array: USB Audio (hw:7,0)", 4))
    listed(portaudio, monkeypatch, capsys)
    assert portaudio.asked_channels == {4}
    portaudio = FakePortAudio(("pulse", 32))
    listed(portaudio, monkeypatch, capsys)
    assert portaudio.asked_channels == {1}


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (("Error opening InputStream: Device unavailable", -9985), "in use by another program"),
        (("Error opening InputStream: Invalid device", -9996), "Invalid device"),
        (
            ("Error opening InputStream: Unanticipated host error", -9999, (0, -5, "Input/output error")),
            "Input/output error",
        ),
    ],
)
def test_a_device_that_cannot_be_opened_says_why(
    refusal: tuple[Any, ...],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In as few words as tell it, and the command goes on."""
    portaudio = FakePortAudio(("Mic", 1), ("default", 1))
    portaudio.refusal = FakePortAudioError(*refusal)
    entries = listed(portaudio, monkeypatch, capsys)
    assert [(entry["state"], entry["reason"]) for entry in entries] == [("cannot be opened", reason)] * 2


def test_a_device_with_an_unreadable_name_is_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """sounddevice cannot open it."""
    (entry,) = listed(FakePortAudio((b"gr\xfcn", 1)), monkeypatch, capsys)
    assert (entry["device"], entry["state"]) == ("gr\\xfcn", "cannot be opened")
    assert entry["reason"] == "its name is not UTF-8"


def test_the_table_says_what_to_put_into_the_configuration(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quoted, for YAML would take the colon for its own; a name is not taken for markup."""
    portaudio = FakePortAudio(("HDMI: in (hw:7,0)", 2), ("[red]Mic: 1", 1), default=1)
    monkeypatch.setitem(sys.modules, "sounddevice", portaudio)
    monkeypatch.setenv("COLUMNS", "120")
    devices_command(as_json=False, seconds=0.1)
    text = capsys.readouterr().out
    assert text.splitlines()[1:3] == [
        "HDMI: in             ALSA         2  44.1 48  digital silence",
        "[red]Mic: 1 *        ALSA         1  44.1 48  digital silence",
    ]
    assert 'audio: {device: "HDMI: in"}' in text
    assert "* is heard where the configuration names none." in text


def test_a_card_s_id_is_listed(
    sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For programs always, for people beside the name."""
    device = Device(0, USB_MIC, "usb:1-1.3", "ALSA", 1, 48_000, is_default=False, card="card:street")
    monkeypatch.setattr("edgetag.capture.devices.input_devices", lambda _: [device])
    monkeypatch.setenv("COLUMNS", "120")
    (entry,) = listed(FakePortAudio((USB_MIC, 1)), monkeypatch, capsys)
    assert (entry["device"], entry["card"]) == ("usb:1-1.3", "card:street")
    devices_command(as_json=False, seconds=0.1)
    assert f"usb:1-1.3  {USB_MIC}, card:street " in capsys.readouterr().out


def test_no_microphone_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence for people, an empty list for programs; nothing failed."""
    assert listed(FakePortAudio(), monkeypatch, capsys) == []
    devices_command(as_json=False, seconds=0.1)
    assert capsys.readouterr().out.startswith("There is no input device.")


def test_without_portaudio_the_sentence_says_what_installs_it(tmp_path: Path) -> None:
    """Exit code 2, no traceback."""
    code = "import ctypes.util as u, edgetag.cli as c; u.find_library = lambda name: None; c.main()"
    done = run_python("-c", code, "devices", state=tmp_path)
    refused(done, 2, "PortAudio is not installed", "`sudo apt install libportaudio2`")


def test_portaudio_that_does_not_start_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """sounddevice raises its own error when it is imported."""
    (tmp_path / "sounddevice.py").write_text("raise Exception('Error initializing PortAudio')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    with pytest.raises(NoDeviceError, match=r"^PortAudio does not start \(Error initializing PortAudio\)$"):
        load_portaudio()
