"""Devices as PortAudio opens them, by blocking reads. Everything here is called from one thread."""

import contextlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgetag.capture.devices import Device, NoDeviceError, find, input_devices, locked_out, rescan
from edgetag.capture.microphone import DeviceError, OpenDevice
from edgetag.capture.stderr import stderr_silenced
from edgetag.contract.errors import first_line
from edgetag.contract.frontend import SAMPLE_RATE_HZ

BUFFER_S = 0.5  # asked of the device: so late may the thread be without a loss
Channel = int | Literal["mix"]


def opener(
    portaudio: ModuleType,
    *,
    device: str | None,
    channel: Channel,
    rate_hz: int | None,
    hidden: Callable[[], str] = locked_out,
) -> Callable[[], OpenDevice]:
    """A function that looks for the device among those there are now, and opens it.

    One that is not there may be one that this user may not open: the error says so.

    Args:
        portaudio: the `sounddevice` module.
        device: name, `usb:` path or `card:` id, as `edgetag devices` prints; None for the system's default.
        channel: the one to take, from 1 on; or `mix`, the mean of all.
        rate_hz: the one to ask for; None for 44.1 kHz where the device has it, else its own.
        hidden: why sound cards are not seen that are there; "" if none is known.
    """

    def open_device() -> OpenDevice:
        devices: list[Device] = []
        try:
            rescan(portaudio)
            devices = input_devices(portaudio)
            return PortAudioDevice(portaudio, find(devices, device), channel, rate_hz)
        except (NoDeviceError, DeviceError) as error:
            is_missing = isinstance(error, NoDeviceError) or not any(each.is_hardware for each in devices)
            reasons = str(error), hidden() if is_missing else ""
            raise DeviceError("; ".join(filter(None, reasons))) from error
        except UnicodeDecodeError as error:  # sounddevice's, for names it cannot read
            raise DeviceError(
                "a device has a name that is not UTF-8; choose another by its usb: path or card: id"
            ) from error

    return open_device


class PortAudioDevice:
    """An open input device. Raises `DeviceError` when it cannot be opened as asked."""

    def __init__(self, portaudio: ModuleType, device: Device, channel: Channel, rate_hz: int | None) -> None:
        self.name = device.name
        self._portaudio = portaudio
        n_open, self._taken = _channels(device, channel)
        self.n_channels = len(range(n_open)[self._taken])
        self.rate_hz = _rate(portaudio, device, n_open, rate_hz)
        try:
            self._stream: Any = portaudio.InputStream(
                device=device.index,
                channels=n_open,
                samplerate=self.rate_hz,
                dtype="float32",
                latency=BUFFER_S,
            )
            self._stream.start()
        except portaudio.PortAudioError as error:
            raise DeviceError(f"{self.name}: cannot be opened ({_reason(error)})") from error

    def read(self, n_frames: int) -> tuple[NDArray[np.float32], bool]:
        """Wait for frames; whether some were dropped before them. Shape: -> [n_frames, n_channels]"""
        try:
            frames, overflowed = self._stream.read(n_frames)
        except self._portaudio.PortAudioError as error:
            raise DeviceError(f"{self.name}: stopped ({_reason(error)})") from error
        return frames[:, self._taken], overflowed

    def pending(self) -> int:
        """Frames that can be read without waiting."""
        try:
            return int(self._stream.read_available)
        except self._portaudio.PortAudioError:
            return 0

    def close(self) -> None:
        """Let go of it, in whatever state it is."""
        with stderr_silenced(), contextlib.suppress(self._portaudio.PortAudioError):
            self._stream.close(ignore_errors=False)


def _channels(device: Device, channel: Channel) -> tuple[int, slice]:
    """How many to open, and which of them to take.

    A sound server offers more than there are, and mixes to one itself when asked for one.
    """
    if channel == "mix":
        return (device.n_channels if device.is_hardware else 1), slice(None)
    if channel > device.n_channels:
        raise DeviceError(f"{device.name}: has {device.n_channels} channels, channel {channel} is asked for")
    return (device.n_channels if device.is_hardware else channel), slice(channel - 1, channel)


def _rate(portaudio: ModuleType, device: Device, n_channels: int, asked_hz: int | None) -> int:
    """The rate to open with: the one asked for, else 44.1 kHz if the device has it, else its own."""
    for rate_hz in [asked_hz] if asked_hz else [SAMPLE_RATE_HZ, device.default_rate_hz]:
        try:
            portaudio.check_input_settings(device.index, n_channels, "float32", samplerate=rate_hz)
        except portaudio.PortAudioError as error:
            reason = _reason(error)
        else:
            return rate_hz
    raise DeviceError(f"{device.name}: cannot be opened at {rate_hz} Hz ({reason})")


def _reason(error: Exception) -> str:
    """PortAudio's words, without the number of its error."""
    return first_line(error).partition(" [PaErrorCode")[0]
