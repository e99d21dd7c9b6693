"""In which state a sensor is, and why: what `status` says."""

from edgetag.capture.microphone import Lost, Opened, Piece, Tick
from edgetag.capture.source import Block
from edgetag.contract.event import State

STALL_S = 4.0  # without a block; with a tick's half second it is told within five
ZEROS_S = 4.0  # of nothing but zeros
RECENT_S = 60.0  # a loss degrades the sensor for so long
STARTING = "starting"  # why there is nothing to hear with, until that is known


class Condition:
    """Follows a microphone's pieces; pure, but for the times it is given.

    Attributes:
        no_audio: why there is nothing to hear with; "" if there is.
    """

    def __init__(self, now_s: float) -> None:
        self.no_audio = STARTING
        self._device = ""
        self._block_s = self._sound_s = now_s
        self._frame = 0
        self._loss_s = float("-inf")

    def note(self, piece: Piece, now_s: float) -> None:
        """Take in what the microphone said at `now_s`, by the monotonic clock."""
        match piece:
            case Opened():
                self._device, self._frame = piece.name, 0
                self._block_s = self._sound_s = now_s
            case Block():
                self._hear(piece, now_s)
            case Lost():
                self._device, self.no_audio = "", piece.reason
            case Tick():
                pass
        if self._device and now_s - self._block_s > STALL_S:
            self.no_audio = f"{self._device}: no samples for {STALL_S:.0f} s"
        elif self._device and self._block_s - self._sound_s > ZEROS_S:
            self.no_audio = f"{self._device}: nothing but zeros for {ZEROS_S:.0f} s"

    def state(self, now_s: float, *others: str) -> tuple[State, str]:
        """The state at `now_s`, and why; `others` are reasons to be degraded, "" for none."""
        if self.no_audio:
            return "no_audio", self.no_audio
        loss = "audio was lost in the last minute" if now_s - self._loss_s < RECENT_S else ""
        reasons = [reason for reason in (loss, *others) if reason]
        return ("degraded", "; ".join(reasons)) if reasons else ("online", "hearing")

    def _hear(self, block: Block, now_s: float) -> None:
        self._block_s = now_s
        if block.first_frame > self._frame:
            self._loss_s = now_s
        self._frame = block.first_frame + len(block.frames)
        if block.frames.any():
            self._sound_s, self.no_audio = now_s, ""
