"""What became of every second since the sensor began: heard, or lost and counted.

```
began        opened                  lost        opened
  |............|~~~~~~~~~~~~..~~~~~~~~~|............|~~~~~~~~
      lost         heard   lost  heard     lost        heard        heard_s + lost_s is what has passed
```
"""

from edgetag.capture.microphone import Lost, Opened, Piece
from edgetag.capture.source import Block
from edgetag.contract.event import AudioHealth

SETTLING_S = 10.0


class Ledger:
    """Keeps account of a microphone's pieces.

    Args:
        began_s: when the sensor began to want audio, by the monotonic clock.

    Attributes:
        heard_s, lost_s: seconds of audio until the end of the last block.
        overruns: losses while a device was open.
        opened: how often one was.
    """

    def __init__(self, began_s: float) -> None:
        self.heard_s = self.lost_s = 0.0
        self.overruns = self.opened = 0
        self._end_s = self._closed_s = began_s  # of what was heard last; before the device that is open
        self._outage_s = 0.0  # between the two
        self._device: Opened | None = None
        self._frame = 0

    def note(self, piece: Piece) -> None:
        """Take in what the microphone says next."""
        match piece:
            case Opened():
                self._device, self._frame, self._closed_s = piece, 0, self._end_s
                self.opened += 1
            case Block():
                self._hear(piece)
            case Lost():
                self._device = None

    def health(self, now_s: float) -> AudioHealth:
        """The account at `now_s`; without a device, what passes is being lost."""
        device = self._device
        outage_s = max(0.0, now_s - self._end_s) if device is None else 0.0
        return AudioHealth(
            device=device.name if device else "",
            rate_hz=device.rate_hz if device else 0,
            measured_hz=round((device and device.pace.measured_hz) or 0.0, 1),
            heard_s=round(self.heard_s, 3),
            lost_s=round(self.lost_s + outage_s, 3),
            overruns=self.overruns,
            opened=self.opened,
        )

    def _hear(self, block: Block) -> None:
        assert self._device is not None
        pace, rate_hz = self._device.pace, self._device.rate_hz
        if self._frame < SETTLING_S * rate_hz:  # when it began is known better with every block
            self.lost_s -= self._outage_s if self._frame else 0.0
            self._outage_s = max(0.0, pace.time_of(0) - self._closed_s)
            self.lost_s += self._outage_s
        if block.first_frame > self._frame:
            self.lost_s += (block.first_frame - self._frame) / rate_hz
            self.overruns += 1
        self.heard_s += len(block.frames) / rate_hz
        self._frame = block.first_frame + len(block.frames)
        self._end_s = pace.time_of(self._frame)
