"""A device as it is opened: which rate, which channels, and what becomes of PortAudio's errors."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetag.capture.microphone import DeviceError
from edgetag.capture.portaudio import BUFFER_S, Channel, opener

CARD, SERVER = "Quad Capture: Audio (hw:1,0)", "pulse"


class PaError(Exception):
    """As sounddevice's, with its code at the end."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text} [PaErrorCode -9999]")


class FakePortAudio:
    """One device behind `sounddevice`'s names; channel k hears k/10."""

    PortAudioError = PaError

    def __init__(
        self, name: str = CARD, n_channels: int = 4, *, rates_hz: tuple[int, ...] = (44_100,)
    ) -> None:
        self.names = [name]
        self.default = SimpleNamespace(hostapi=0)
        self.opened: dict[str, Any] = {}
        self.fails = ""  # at what
        self._n_channels, self._rates_hz = n_channels, rates_hz
        self._initialized = 1

    def _terminate(self) -> None:
        self._known = []

    def _initialize(self) -> None:
        self._known = list(self.names)

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "ALSA", "devices": range(len(self._known)), "default_input_device": 0}]

    def query_devices(self, index: int) -> dict[str, Any]:
        return {
            "name": self._known[index],
            "max_input_channels": self._n_channels,
            "default_samplerate": 48e3,
        }

    def check_input_settings(self, device: int, channels: int, dtype: str, *, samplerate: int) -> None:
        if samplerate not in self._rates_hz:
            raise PaError("Invalid sample rate")

    def InputStream(self, **asked: Any) -> "FakeStream":  # noqa: N802
        if self.fails == "open":
            raise PaError("Device unavailable")
        self.opened = asked
        return FakeStream(self, asked["channels"])


class FakeStream:
    def __init__(self, portaudio: FakePortAudio, n_channels: int) -> None:
        self._portaudio, self._n_channels = portaudio, n_channels

    def start(self) -> None:
        if self._portaudio.fails == "start":
            raise PaError("Wait timed out")

    def read(self, n_frames: int) -> tuple[NDArray[np.float32], bool]:
        if self._portaudio.fails == "read":
            raise PaError("Input/output error")
        return np.tile(
            np.float32(0.1) * np.arange(1, self._n_channels + 1, dtype=np.float32), (n_frames, 1)
        ), True

    @property
    def read_available(self) -> int:
        if self._portaudio.fails == "read":
            raise PaError("Stream is stopped")
        return 123

    def close(self, *, ignore_errors: bool) -> None:
        if self._portaudio.fails:
            raise PaError("Stream is stopped")


def open_device(
    portaudio: FakePortAudio,
    channel: Channel = "mix",
    rate_hz: int | None = None,
    *,
    device: str | None = None,
    hidden: Callable[[], str] = lambda: "",
) -> Any:
    return opener(portaudio, device=device, channel=channel, rate_hz=rate_hz, hidden=hidden)()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("offered", "asked", "opened"),
    [
        ((44_100, 48_000), None, 44_100),
        ((48_000, 96_000), None, 48_000),  # its own
        ((44_100, 48_000, 96_000), 96_000, 96_000),
    ],
)
def test_the_rate_is_the_one_asked_for_or_ours_or_its_own(
    offered: tuple[int, ...], asked: int | None, opened: int
) -> None:
    """What is opened is what is said."""
    portaudio = FakePortAudio(rates_hz=offered)
    assert open_device(portaudio, rate_hz=asked).rate_hz == opened
    assert portaudio.opened["samplerate"] == opened
    assert portaudio.opened["latency"] == BUFFER_S


@pytest.mark.parametrize(("asked", "said"), [(96_000, "96000 Hz"), (None, "48000 Hz")])
def test_no_other_rate_takes_its_place(asked: int | None, said: str) -> None:
    """A rate that was asked for is that or nothing."""
    with pytest.raises(DeviceError, match=rf"Quad.*cannot be opened at {said} \(Invalid sample rate\)$"):
        open_device(FakePortAudio(rates_hz=(16_000,)), rate_hz=asked)


@pytest.mark.parametrize(
    ("name", "channel", "n_opened", "heard"),
    [
        (CARD, "mix", 4, [0.1, 0.2, 0.3, 0.4]),
        (CARD, 3, 4, [0.3]),  # a card's channels are opened together
        (CARD, 1, 4, [0.1]),
        (SERVER, "mix", 1, [0.1]),  # a server mixes to as many as it is asked for
        (SERVER, 3, 3, [0.3]),
    ],
)
def test_all_channels_or_the_one(name: str, channel: Channel, n_opened: int, heard: list[float]) -> None:
    """Mixing is the windower's: it sees what clips before."""
    portaudio = FakePortAudio(name)
    device = open_device(portaudio, channel)
    frames, overflowed = device.read(5)
    assert portaudio.opened["channels"] == n_opened
    assert device.n_channels == len(heard)
    np.testing.assert_allclose(frames, [heard] * 5)
    assert overflowed
    assert device.pending() == 123


def test_a_channel_that_is_not_there_is_refused() -> None:
    """With both numbers."""
    with pytest.raises(DeviceError, match="has 4 channels, channel 5 is asked for"):
        open_device(FakePortAudio(), 5)


@pytest.mark.parametrize(
    ("at", "said"),
    [
        ("open", r"Quad Capture: Audio: cannot be opened \(Device unavailable\)"),
        ("start", r"Quad Capture: Audio: cannot be opened \(Wait timed out\)"),
    ],
)
def test_a_device_that_cannot_be_opened(at: str, said: str) -> None:
    """PortAudio's words, without its number."""
    portaudio = FakePortAudio()
    portaudio.fails = at
    with pytest.raises(DeviceError, match=f"^{said}$"):
        open_device(portaudio)


def test_a_device_that_goes_while_it_is_read() -> None:
    """It can still be asked, and closed, without another error."""
    portaudio = FakePortAudio()
    device = open_device(portaudio)
    portaudio.fails = "read"
    with pytest.raises(DeviceError, match=r"^Quad Capture: Audio: stopped \(Input/output error\)$"):
        device.read(5)
    assert device.pending() == 0
    device.close()


LOCKED = "/dev/snd/pcmC1D0c is there, and edgetag may not open it"


@pytest.mark.parametrize(
    ("portaudio", "device", "fails", "reason"),
    [
        (FakePortAudio(CARD), "usb:1-1.3", "", '"usb:1-1.3" is not there; there is "Quad Capture: Audio"; '),
        (FakePortAudio(SERVER), None, "open", r"pulse: cannot be opened \(Device unavailable\); "),
    ],
)
def test_a_card_that_is_hidden_is_why_another_is_not_there(
    portaudio: FakePortAudio, device: str | None, fails: str, reason: str
) -> None:
    """The wanted one is missing, or there is no hardware at all; this user may not see it."""
    portaudio.fails = fails
    with pytest.raises(DeviceError, match=f"{reason}{LOCKED}$"):
        open_device(portaudio, device=device, hidden=lambda: LOCKED)
    with pytest.raises(DeviceError, match=f"{reason[:-2]}$"):
        open_device(portaudio, device=device)


def test_a_hidden_card_is_not_why_a_card_that_is_seen_cannot_be_opened() -> None:
    portaudio = FakePortAudio(CARD)
    portaudio.fails = "open"
    with pytest.raises(DeviceError, match=r"cannot be opened \(Device unavailable\)$"):
        open_device(portaudio, hidden=lambda: LOCKED)


def test_it_is_looked_for_anew_every_time() -> None:
    """Plugged in again it has another number; while it is out, no other is opened."""
    portaudio = FakePortAudio()
    again = opener(portaudio, device="Quad", channel="mix", rate_hz=None)  # type: ignore[arg-type]
    again()
    portaudio.names = ["Webcam"]
    with pytest.raises(DeviceError, match='"Quad" is not there; there is "Webcam"'):
        again()
    portaudio.names = ["Webcam", "Quad Capture: Audio (hw:3,0)"]
    again()
    assert portaudio.opened["device"] == 1
