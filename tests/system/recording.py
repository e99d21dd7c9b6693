"""A recording that was played to a sensor, and where in it the sensor began to hear.

Nothing tells that place but what was heard: by the levels it is found to a hundredth of a second, by the
probabilities to a thousandth. Then one place must explain every window.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetag import Tagger
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.manifest import Variant
from edgetag.dsp.level import LevelMeter
from edgetag.tagging.tagger import Analysis

TOLERANCE = 0.02  # a millisecond's; 0.004 was measured. A tenth of a second makes 0.1 and more
LEVEL_TOLERANCE_DB = 0.1

Event = dict[str, Any]


class Recording:
    """What is played, again and again, as `edgetag` tags it without a microphone, at any place in it.

    Args:
        samples: shape [T], 44.1 kHz.
        variant: of the nets that the sensor runs.
    """

    def __init__(self, samples: NDArray[np.float32], variant: Variant) -> None:
        self._tagger = Tagger.load(variant=variant)
        self._level = LevelMeter()
        self._samples = samples

    def analysis(self, start_s: float) -> Analysis:
        """Of the window that begins there."""
        return self._tagger.analyse(self.window(start_s))

    def level(self, start_s: float) -> NDArray[np.float64]:
        """LAeq, LAFmax, LA10 and LA90 of the window that begins there."""
        level = self._level(self.window(start_s), ())
        return np.array([level.laeq_db, level.lafmax_db, level.la10_db, level.la90_db])

    def window(self, start_s: float, n_samples: int = WINDOW_SAMPLES) -> NDArray[np.float32]:
        """Shape: [n_samples]"""
        places = round(start_s * SAMPLE_RATE_HZ) + np.arange(n_samples)
        return self._samples.take(places, mode="wrap")

    def near(self, id: str, probability: float, tolerance: float) -> bool:
        """Whether a tag's decision hangs by less than the tolerance."""
        return abs(probability - self._tagger.thresholds[id]) < tolerance

    def duration_s(self) -> float:
        """Until it begins again."""
        return len(self._samples) / SAMPLE_RATE_HZ

    def where(self, events: Sequence[Event], hop_s: float, near_s: float, within_s: float = 0.5) -> float:
        """At which second the first of these windows begins, to a millisecond; not farther from `near_s` than
        `within_s`.
        """
        some = [(k * hop_s, events[k]) for k in range(0, len(events), max(1, len(events) // 4))]

        def level_error(start_s: float) -> float:
            errors = [np.abs(self.level(start_s + s) - heard_level(event)).sum() for s, event in some]
            return float(sum(errors))

        def tag_error(start_s: float) -> float:
            return max(difference(self.analysis(start_s + s), event) for s, event in some[:2])

        for step_s in (0.25, 0.01):
            if within_s > step_s:
                near_s = min(_grid(near_s, within_s, step_s), key=level_error)
                within_s = 2 * step_s
        return min(_grid(near_s, 0.025, 0.001), key=tag_error)


def _grid(near_s: float, within_s: float, step_s: float) -> list[float]:
    places: list[float] = np.arange(near_s - within_s, near_s + within_s, step_s).tolist()
    return places


def heard_level(event: Event) -> NDArray[np.float64]:
    """LAeq, LAFmax, LA10 and LA90, as they were published."""
    return np.array([event["level"][key] for key in ("laeq_db", "lafmax_db", "la10_db", "la90_db")])


def difference(found: Analysis, event: Event) -> float:
    """Largest between two sets of probabilities."""
    assert (found.coarse.keys(), found.fine.keys()) == (event["coarse"].keys(), event["fine"].keys())
    expected = found.coarse | found.fine
    return float(max(abs(expected[id] - p) for id, p in (event["coarse"] | event["fine"]).items()))
