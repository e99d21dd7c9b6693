"""What one window costs, stage by stage: CPU milliseconds, one thread, and the process's peak memory.

Run by `make bench`. Figures differ from machine to machine; ratios between stages do so less.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import resource
import time
from collections.abc import Callable

import numpy as np

from edgetag import Tagger
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.demo.scene import street_scene
from edgetag.dsp.level import LevelMeter
from edgetag.dsp.logmel import LogMel

REPEATS = 30


def cpu_ms(stage: Callable[[], object]) -> float:
    """Median CPU time of a call, after one to warm up."""
    stage()
    times_s = []
    for _ in range(REPEATS):
        started_s = time.process_time()
        stage()
        times_s.append(time.process_time() - started_s)
    return float(np.median(times_s)) * 1e3


def main() -> None:
    """Print the table."""
    tagger = Tagger.load()
    samples = street_scene(seed=1).samples[20 * SAMPLE_RATE_HZ :][:WINDOW_SAMPLES]
    features = tagger.features(samples)
    logmel, level = LogMel(), LevelMeter()
    stages: dict[str, Callable[[], object]] = {
        "log-mel": lambda: logmel(samples),
        "level": lambda: level(samples),
        "root net": lambda: tagger.bundle.root(features),
        "one branch": lambda: next(iter(tagger.bundle.branches.values()))(features),
        "whole window": lambda: tagger.analyse(samples),
    }
    for name, stage in stages.items():
        print(f"{name:14} {cpu_ms(stage):6.1f} ms")  # noqa: T201
    print(f"{'peak memory':14} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:6.0f} MiB")  # noqa: T201


if __name__ == "__main__":
    main()
