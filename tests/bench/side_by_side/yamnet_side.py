"""YAMNet on LiteRT as a side: 521 scores of every 0.975 s, its front end being part of the net.

Kinds: `no overlap`, ten frames of a window (the last quarter of a second is not heard), and `half overlap`,
nineteen. The audio is resampled to 16 kHz by soxr, as edgetag does it, which is a stage of its own.

    python -m bench.side_by_side.yamnet_side MODEL STREET
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import soxr
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from bench.side_by_side.serving import Stages, serve
from bench.side_by_side.street import RATE_HZ, WINDOW_SAMPLES, Street

YAMNET_RATE_HZ = 16_000
FRAME_SAMPLES = 15_600
HOP_SAMPLES = {"no overlap": FRAME_SAMPLES, "half overlap": FRAME_SAMPLES // 2}


class YamnetSystem:
    def __init__(self, model: Path, street: Path, stages: Stages) -> None:
        self._net = Interpreter(str(model), num_threads=1)
        self._net.allocate_tensors()
        self._input = self._net.get_input_details()[0]["index"]
        self._output = self._net.get_output_details()[0]["index"]
        self._street, self._n_heard = Street(street), dict.fromkeys(HOP_SAMPLES, 0)
        self.logmel = None

    def hear(self, kind: str, stages: Stages) -> dict[str, list[float]]:
        """Scores are the frames' mean."""
        self.samples = self._street.read(self._n_heard[kind] * WINDOW_SAMPLES, WINDOW_SAMPLES)
        self._n_heard[kind] += 1
        with stages.of("resample"):
            samples = soxr.resample(self.samples, RATE_HZ, YAMNET_RATE_HZ, "HQ")
        with stages.of("yamnet"):
            scores = [self._frame(frame) for frame in frames(samples, HOP_SAMPLES[kind])]
            mean = np.mean(scores, axis=0)
        return {"yamnet": mean.tolist()}

    def _frame(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        self._net.set_tensor(self._input, samples)
        self._net.invoke()
        return self._net.get_tensor(self._output)[0]


def frames(samples: NDArray[np.float32], hop_samples: int) -> NDArray[np.float32]:
    """All that fit. Shape: [n] -> [m, 15600]"""
    return np.lib.stride_tricks.sliding_window_view(samples, FRAME_SAMPLES)[::hop_samples]


if __name__ == "__main__":
    model, street = map(Path, sys.argv[1:])
    serve(partial(YamnetSystem, model, street))
