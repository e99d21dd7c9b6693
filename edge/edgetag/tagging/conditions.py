"""What the place of a sensor adds to a bundle."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conditions:
    """How a sensor's windows are heard.

    Attributes:
        calibration_db: what turns dBFS(A) into dB(A) re 20 µPa; None if the microphone is not calibrated.
        min_laeq_db: the gate: of windows with a lower LAeq only the level is told; None for no gate.
    """

    calibration_db: float | None = None
    min_laeq_db: float | None = None


NO_CONDITIONS = Conditions()
