"""`edgetag devices`: which microphones there are, what to call them, and whether they hear anything."""

import contextlib
import math
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import msgspec
import typer

from edgetag.contract.errors import first_line, printable
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.deadline import within
from edgetag.terminal import print_rendered, print_text

if TYPE_CHECKING:
    from rich.table import Table

    from edgetag.capture.devices import Device, PortAudio

RATES_HZ = (16_000, 32_000, 44_100, 48_000, 96_000, 192_000)
DEADLINE_S = 8.0  # for whatever takes no time; a sound server's first samples take two seconds
READ_S = 0.1

State: TypeAlias = Literal["signal", "digital silence", "cannot be opened", "cannot be read"]

_NO_DEVICE = "There is no input device. Is a microphone plugged in?"


class Heard(msgspec.Struct, frozen=True):
    """What a device says for itself.

    device: what to put into the configuration as `audio.device`.
    card: the same by its sound card's id, which a udev rule may set; None if it has none.
    rates_hz: of the usual ones, those it opens at.
    state: whether it hears.
    peak_dbfs: largest sample in any channel, of a signal.
    reason: why it cannot be opened or read.
    """

    device: str
    card: str | None
    name: str
    host_api: str
    n_channels: int
    default_rate_hz: int
    default: bool
    rates_hz: list[int]
    state: State
    peak_dbfs: float | None = None
    reason: str | None = None


def devices(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=60, help="How long to listen to each.")
    ] = 1.0,
) -> None:
    """List microphones: what to call them, and whether they hear anything. That there is none is no error.

    A microphone is called by its USB socket (usb:PATH), by the id of its sound card (card:ID), which a udev
    rule can set, or by its name.

    Example: edgetag devices --json
    """
    from edgetag.capture.devices import locked_out

    heard = _all_heard(seconds)
    closed = locked_out()
    if as_json:
        print_text(msgspec.json.encode({"devices": heard}).decode())
    elif heard:
        print_rendered(_table(heard), "\n".join(filter(None, [_advice(heard), closed])))
    else:
        print_text("\n".join(filter(None, [_NO_DEVICE, closed])))


def _all_heard(seconds: float) -> list[Heard]:
    """One after the other: a sound card can be opened once.

    Raises:
        NoDeviceError: there is no PortAudio, or it does not answer.
    """
    from edgetag.capture.devices import NoDeviceError, input_devices, load_portaudio
    from edgetag.capture.stderr import stderr_silenced

    def listed() -> tuple["PortAudio", list["Device"]]:
        portaudio = load_portaudio()
        return portaudio, input_devices(portaudio)

    with stderr_silenced():  # here, not in a thread that may never leave it
        try:
            portaudio, found = within(DEADLINE_S, listed, exit_code=NoDeviceError.exit_code)
        except TimeoutError:
            raise NoDeviceError(
                f"PortAudio does not list the devices within {DEADLINE_S:.0f} s; does a sound server hang?"
            ) from None
        return [_heard(portaudio, device, seconds) for device in found]


def _heard(portaudio: "PortAudio", device: "Device", seconds: float) -> Heard:
    rates_hz: list[int] = []
    peak, reason = 0.0, None
    try:
        peak = within(DEADLINE_S + seconds, lambda: _peak(portaudio, device, seconds, rates_hz), exit_code=0)
    except TimeoutError:
        reason = f"no answer within {DEADLINE_S + seconds:.0f} s"
    except UnicodeDecodeError:
        reason = "its name is not UTF-8"
    except portaudio.PortAudioError as error:
        reason = _reason(error)
    return Heard(
        device=device.identity,
        card=device.card or None,
        name=device.name,
        host_api=device.host_api,
        n_channels=device.n_channels,
        default_rate_hz=device.default_rate_hz,
        default=device.is_default,
        rates_hz=list(rates_hz),
        state=_state(peak, reason, rates_hz),
        peak_dbfs=round(20 * math.log10(peak), 1) if peak > 0 else None,
        reason=reason,
    )


def _reason(error: Exception) -> str:
    """What PortAudio says, in as few words as tell it; in ALSA's, where it has them."""
    match error.args:
        case (_, _, (_, _, str(alsa))):
            return printable(alsa)
        case (str(), -9985):  # paDeviceUnavailable, which is ALSA's EBUSY
            return "in use by another program"
        case (str(), -9993):  # paBadIODeviceCombination: PortAudio's name for whatever ALSA refused
            return "ALSA cannot open it"
        case (str(text), *_):
            return printable(text.removeprefix("Error opening InputStream: "))
    return first_line(error)


def _state(peak: float, reason: str | None, rates_hz: list[int]) -> State:
    if reason is not None:
        return "cannot be read" if rates_hz else "cannot be opened"
    return "signal" if peak > 0 else "digital silence"


def _peak(portaudio: "PortAudio", device: "Device", seconds: float, rates_hz: list[int]) -> float:
    """The largest sample; `rates_hz` is filled first. Channels that are made up are left out."""
    import numpy as np

    n_channels = device.n_channels if device.is_hardware else 1
    for rate_hz in RATES_HZ:
        with contextlib.suppress(portaudio.PortAudioError):
            portaudio.check_input_settings(device.index, n_channels, "float32", samplerate=rate_hz)
            rates_hz.append(rate_hz)
    rate_hz = SAMPLE_RATE_HZ if SAMPLE_RATE_HZ in rates_hz else device.default_rate_hz
    peak = 0.0
    with portaudio.InputStream(rate_hz, 0, device.index, n_channels, "float32") as stream:
        for _ in range(math.ceil(seconds / READ_S)):
            frames, _ = stream.read(round(rate_hz * READ_S))
            peak = max(peak, float(np.abs(frames).max()))
    return peak


def _table(heard: list[Heard]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("device", no_wrap=True)
    table.add_column("name")
    table.add_column("API")
    table.add_column("channels", justify="right")
    table.add_column("kHz")
    table.add_column("hears")
    for each in heard:
        table.add_row(
            Text(f"{each.device} *" if each.default else each.device),
            Text(", ".join(name for name in (each.name, each.card) if name and name != each.device)),
            Text(each.host_api),
            str(each.n_channels),
            " ".join(f"{rate_hz / 1000:g}" for rate_hz in each.rates_hz),
            Text(_hears(each), "" if each.state == "signal" else "yellow"),
        )
    return table


def _hears(heard: Heard) -> str:
    if heard.reason is not None:
        return f"{heard.state}: {heard.reason}"
    return heard.state if heard.peak_dbfs is None else f"{heard.state}, peak {heard.peak_dbfs:.1f} dBFS"


def _advice(heard: list[Heard]) -> str:
    """How to state one that can be read, quoted for YAML: most names hold a colon."""
    lines = ["", "* is heard where the configuration names none."] if any(d.default for d in heard) else [""]
    readable = sorted(
        (each for each in heard if each.reason is None), key=lambda each: each.state != "signal"
    )
    if readable:
        quoted = msgspec.json.encode(readable[0].device).decode()
        lines.append(f"In the configuration, for instance: audio: {{device: {quoted}}}")
    return "\n".join(lines)
