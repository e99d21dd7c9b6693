"""What eight bits cost: the int8 nets of a bundle beside the fp32 nets they were made from.

Both are asked as a sensor asks them, on the recordings of the split `validate`; a level that has no positive
label there is judged on scenes of held-out clips instead, or not at all.
"""

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.manifest import LevelParity, Parity, Variant
from edgetag_train.calibration import Calibration
from edgetag_train.evaluate import Scored
from edgetag_train.metrics import Level, Scores, evaluate
from edgetag_train.predictions import LEVELS

MAX_LOSS: Mapping[Level, float] = {"coarse": 0.005, "fine": 0.01}
"""Of micro AUPRC, by level."""
MAX_GOLDEN_DIFFERENCE = 0.1
"""Of any net's probability on the golden windows. Nets that were trained here differ by 0.01 at most."""


def measure(
    fp32: Mapping[str, Scored],
    int8: Mapping[str, Scored],
    golden_difference: float,
    float_layers: dict[str, list[str]],
    calibration: Calibration,
) -> Parity:
    """The report, with the limits that are exceeded.

    Args:
        fp32, int8: what the variants say, by what they were asked on; the first that can judge a level does.
        golden_difference: as of `golden_difference`.
        float_layers: by net, the layers that the int8 variant keeps in float.
        calibration: what the ranges were taken from.
    """
    levels: dict[Level, LevelParity] = {}
    for level in LEVELS:
        found = (_level(level, name, fp32[name], int8[name]) for name in fp32)
        if (judged := next((one for one in found if one), None)) is not None:
            levels[level] = judged
    return Parity(
        levels=levels,
        golden_difference=_rounded(golden_difference),
        float_layers=float_layers,
        calibration=calibration.counts,
        calibration_windows=len(calibration.rows),
        exceeded=_exceeded(levels, golden_difference),
    )


def golden_difference(expected: Mapping[str, NDArray[np.float32]], nets: Iterable[str]) -> float:
    """The largest difference between `<net>_fp32` and `<net>_int8` of any net's probability."""
    return max(float(np.abs(expected[f"{net}_int8"] - expected[f"{net}_fp32"]).max()) for net in nets)


def _level(level: Level, judged_on: str, fp32: Scored, int8: Scored) -> LevelParity | None:
    """None where nothing of the level is present in the truth."""
    asked: dict[Variant, Scored] = {"fp32": fp32, "int8": int8}
    scores = {
        v: evaluate(one.truth, one.scores, level, one.taxonomy, ties="threshold") for v, one in asked.items()
    }
    if not scores["fp32"].class_auprc:
        return None
    difference = np.abs(int8.scores - fp32.scores)[:, fp32.taxonomy.columns[level]]
    return LevelParity(
        judged_on=judged_on,
        windows=len(fp32.scores),
        max_difference=_rounded(difference.max()),
        mean_difference=_rounded(difference.mean()),
        micro_auprc={variant: _rounded(one.micro_auprc) for variant, one in scores.items()},
        class_auprc=_by_class(scores),
    )


def _by_class(scores: Mapping[Variant, Scores]) -> dict[str, dict[Variant, float]]:
    ids = scores["fp32"].class_auprc
    return {id: {variant: _rounded(one.class_auprc[id]) for variant, one in scores.items()} for id in ids}


def _exceeded(levels: Mapping[Level, LevelParity], golden: float) -> list[str]:
    exceeded = []
    for level, judged in levels.items():
        fp32, int8 = judged.micro_auprc["fp32"], judged.micro_auprc["int8"]
        if fp32 - int8 > MAX_LOSS[level]:
            exceeded.append(
                f"{level} micro AUPRC on {judged.judged_on} falls from {fp32:.4f} to {int8:.4f}, "
                f"by more than {MAX_LOSS[level]}"
            )
    if not golden <= MAX_GOLDEN_DIFFERENCE:
        exceeded.append(
            f"a probability of the golden windows differs by {golden:.4f}, more than {MAX_GOLDEN_DIFFERENCE}"
        )
    return exceeded


def _rounded(figure: float) -> float:
    return round(float(figure), 6)
