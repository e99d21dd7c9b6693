"""Which microphone: what PortAudio offers, and what each is called from one day to the next.

PortAudio numbers devices in the order in which they are found, and ALSA's names hold the card's number, which
moves likewise. A device on USB is called by its socket, any other by its name; and a sound card may have been
given an id, by a udev rule for instance:

```
PortAudio   USB PnP Sound Device: Audio (hw:1,0)
name        USB PnP Sound Device: Audio             two of a kind have the same
sysfs       /sys/class/sound/card1/device -> …/usb1/1-1/1-1.3/1-1.3:1.0
identity    usb:1-1.3                               bus 1, port 1, port 3 of the hub there
sysfs       /sys/class/sound/card1/id   street
card        card:street                             whatever the socket
```
"""

import contextlib
import grp
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from edgetag.contract.errors import InputError, first_line, own_user, printable

PortAudio: TypeAlias = ModuleType
"""`sounddevice`, or a test's fake of it."""

DEV_SND = Path("/dev/snd")

_HARDWARE = re.compile(r" \((?:plug)?hw:(\d+),(\d+)\)$")
# sysfs calls a device BUS-PORT[.PORT]… and its interfaces DEVICE:CONFIGURATION.INTERFACE.
_USB_DEVICE = re.compile(r"((\d+)-\d+(?:\.\d+)*)(?::\d+\.\d+)?")
_GROUP_MAY = stat.S_IRGRP | stat.S_IWGRP


class NoDeviceError(InputError):
    """There is no such input device, or more than one; or there is no PortAudio to ask."""


@dataclass(frozen=True)
class Device:
    """An input device.

    index: PortAudio's, valid until the next rescan only.
    name: without the card number that moves; printable.
    identity: what to put into the configuration: its socket where it hangs on USB, else the name.
    card: the same by its sound card's id, `card:ID`; "" if it has none. ALSA makes one up unless it was set.
    host_api: through which PortAudio reaches it.
    n_channels: that it offers.
    default_rate_hz: its own, or what PortAudio takes for that.
    is_default: it is the system's.
    is_hardware: it is a sound card, and its channels are real; sound servers and ALSA's plugins make up as
        many as anybody may want (32 and more), most of them silent.
    """

    index: int
    name: str
    identity: str
    host_api: str
    n_channels: int
    default_rate_hz: int
    is_default: bool
    is_hardware: bool = False
    card: str = ""


def load_portaudio() -> PortAudio:
    """`sounddevice`, which looks for the devices there are; `rescan` does it again.

    Raises:
        NoDeviceError: PortAudio is not installed, or does not start.
    """
    try:
        import sounddevice
    except OSError:
        raise NoDeviceError(
            "PortAudio is not installed, nothing can be heard; `sudo apt install libportaudio2` installs it"
        ) from None
    except Exception as error:  # sounddevice's own, which cannot be named without it
        raise NoDeviceError(f"PortAudio does not start ({first_line(error)})") from error
    module: PortAudio = sounddevice
    return module


def rescan(portaudio: PortAudio) -> None:
    """Look for devices again, only while no stream is open: PortAudio lists them when it starts.

    Raises:
        NoDeviceError: PortAudio does not start again; the next rescan may succeed.
    """
    try:
        if portaudio._initialized:
            portaudio._terminate()
        portaudio._initialize()
    except portaudio.PortAudioError as error:
        raise NoDeviceError(f"PortAudio does not start ({first_line(error)})") from error


def input_devices(portaudio: PortAudio, sys_sound: Path = Path("/sys/class/sound")) -> list[Device]:
    """All devices with input channels, as of the last scan.

    Raises:
        NoDeviceError: PortAudio does not tell.
    """
    try:
        host_apis = portaudio.query_hostapis()
        default = host_apis[portaudio.default.hostapi]["default_input_device"] if host_apis else None
        found = [
            (index, host_api["name"], _info(portaudio, index))
            for host_api in host_apis
            for index in host_api["devices"]
        ]
    except portaudio.PortAudioError as error:
        raise NoDeviceError(f"PortAudio does not list the devices ({first_line(error)})") from error
    return [
        _device(index, host_api, info, index == default, sys_sound)
        for index, host_api, info in sorted(found, key=lambda entry: entry[0])
        if info["max_input_channels"] > 0
    ]


def find(devices: Sequence[Device], wanted: str | None) -> Device:
    """The one device that `wanted` means: an identity or a card, else a name, else a part of one in any case.

    None means the system's default input. Never another device than that.

    Raises:
        NoDeviceError: there is none, or there are several.
    """
    matching = _matching(devices, wanted)
    if len(matching) == 1:
        return matching[0]
    what = "the default input" if wanted is None else f'the input device "{wanted}"'
    if matching:
        raise NoDeviceError(f"{what} may be any of {len(matching)}: {_listed(matching)}; name one of them")
    there_is = _listed(devices) if devices else "no input device at all"
    raise NoDeviceError(f"{what} is not there; there is {there_is}")


def _matching(devices: Sequence[Device], wanted: str | None) -> list[Device]:
    if wanted is None:
        return [device for device in devices if device.is_default]
    if wanted.startswith(("usb:", "card:")):
        return [device for device in devices if wanted in (device.identity, device.card)]
    named = [device for device in devices if device.name == wanted]
    part = wanted.casefold()
    return named or [device for device in devices if part and part in device.name.casefold()]


def _listed(devices: Sequence[Device]) -> str:
    return ", ".join(f'"{device.identity}"{_also_called(device)}' for device in devices)


def _also_called(device: Device) -> str:
    others = [name for name in (device.name, device.card) if name not in ("", device.identity)]
    return f" ({', '.join(others)})" if others else ""


def _info(portaudio: PortAudio, index: int) -> Mapping[str, Any]:
    """What PortAudio knows of a device."""
    try:
        info: Mapping[str, Any] = portaudio.query_devices(index)
    except UnicodeDecodeError as error:
        # sounddevice neither describes nor opens it; but it is there, and nobody shall look for it in vain.
        name = error.object.decode("utf-8", "backslashreplace")
        return {"name": name, "max_input_channels": 1, "default_samplerate": 0}
    return info


def _device(index: int, host_api: str, info: Mapping[str, Any], is_default: bool, sys_sound: Path) -> Device:
    hardware = _HARDWARE.search(info["name"])
    name = printable(_HARDWARE.sub("", info["name"]).strip())
    return Device(
        index=index,
        name=name,
        identity=(hardware and _usb_identity(sys_sound, *hardware.groups())) or name,
        host_api=printable(host_api),
        n_channels=info["max_input_channels"],
        default_rate_hz=round(info["default_samplerate"]),
        is_default=is_default,
        is_hardware=hardware is not None,
        card=_card(sys_sound, *hardware.groups()) if hardware else "",
    )


def _usb_identity(sys_sound: Path, card: str, subdevice: str) -> str | None:
    """`usb:` and the socket that a card hangs on, with the number of its subdevice if that is not the first.

    The card's parent is the interface or, for some drivers, the device itself.
    """
    parent = (sys_sound / f"card{card}" / "device").resolve()
    match = _USB_DEVICE.fullmatch(parent.name)
    if match is None or f"usb{match[2]}" not in parent.parts:  # I2C's look alike
        return None
    return f"usb:{match[1]}{_suffix(subdevice)}"


def _card(sys_sound: Path, card: str, subdevice: str) -> str:
    """`card:` and the id of the sound card, with the number of its subdevice if that is not the first."""
    try:
        id = (sys_sound / f"card{card}" / "id").read_text(errors="replace").strip()
    except OSError:
        return ""
    return f"card:{printable(id)}{_suffix(subdevice)}"


def _suffix(subdevice: str) -> str:
    return f",{subdevice}" if subdevice != "0" else ""


# -- those that are not seen -----------------------------------------------------------------------------


def locked_out(dev_snd: Path = DEV_SND, may_open: Callable[[Path], bool] | None = None) -> str:
    """Why sound cards that can record are not seen, and what to do: "" if this user may open all of them.

    Args:
        dev_snd: the folder of ALSA's nodes.
        may_open: whether this user may read and write a node; the kernel's answer if absent.
    """
    closed = [node for node in sorted(dev_snd.glob("pcmC*D*c")) if not (may_open or _may_open)(node)]
    for node in closed:
        with contextlib.suppress(OSError):  # it has gone meanwhile
            return f"{node} is there, and {own_user()} may not open it: {_who_may(node)}"
    return ""


def _may_open(node: Path) -> bool:
    return os.access(node, os.R_OK | os.W_OK, effective_ids=True)


def _who_may(node: Path) -> str:
    """Whose it is, and how to become one of them."""
    status = node.stat()
    if status.st_gid == 0 or status.st_mode & _GROUP_MAY != _GROUP_MAY:
        mode = stat.S_IMODE(status.st_mode)
        return (
            f"only root may, for its mode is {mode:04o}; udev would give it to the group audio, does it run?"
        )
    group = _group(status.st_gid)
    return (
        f"it belongs to the group {group}; `SupplementaryGroups={group}` lets a service in, "
        f"`sudo usermod -aG {group} {own_user()}` everything of this user's that begins after that"
    )


def _group(gid: int) -> str:
    """By name. In a service's own user namespace (PrivateUsers=) others' groups are one nobody's."""
    try:
        name = grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
    return "audio" if name == "nogroup" else name
