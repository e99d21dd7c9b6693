"""What `edgetag bench` does not show: the whole process, from its start to events, and its memory by share.

    python tests/bench/window_cost.py [BUNDLE]

Figures differ from machine to machine; ratios between them do so less. Memory is what is
resident; each line says what came on top of the line before.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import sys
import time
from pathlib import Path

RATE_HZ = 48_000
MINUTES = 5


def resident_mb() -> float:
    """Of this process, without importing anything for it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def say(what: str, cpu_s: float, before_mb: float) -> float:
    """A line of the table; the memory it ends with."""
    now_mb = resident_mb()
    print(f"{what:34} {cpu_s:7.2f} s CPU {now_mb:6.0f} MB {now_mb - before_mb:+6.0f}")  # noqa: T201
    return now_mb


def main() -> None:
    """Print the table."""
    memory_mb = say("python", time.process_time(), 0.0)
    import numpy as np

    memory_mb = say("numpy", time.process_time(), memory_mb)
    import onnxruntime  # noqa: F401

    memory_mb = say("onnxruntime", time.process_time(), memory_mb)
    import scipy.fft  # noqa: F401

    memory_mb = say("scipy.fft", time.process_time(), memory_mb)
    import edgetag.cli  # noqa: F401
    from edgetag import Tagger
    from edgetag.capture.source import Block
    from edgetag.capture.windows import Windower
    from edgetag.contract.event import encode
    from edgetag.tagging.stream import EventStream
    from edgetag.tagging.tagger import DEFAULT_HOP_S, hop_samples

    memory_mb = say("edgetag and the rest", time.process_time(), memory_mb)
    tagger = Tagger.load(sys.argv[1] if len(sys.argv) > 1 else None)
    memory_mb = say(
        f"{tagger.bundle.model.partition('@')[0]}, self-test passed", time.process_time(), memory_mb
    )

    second = np.random.default_rng(0).normal(0, 0.05, (RATE_HZ, 1)).astype(np.float32)
    stream, windower = (
        EventStream(tagger, sensor="bench"),
        Windower(RATE_HZ, hop_samples=hop_samples(DEFAULT_HOP_S)),
    )
    started_s, n_branches = time.process_time(), 0
    for k in range(60 * MINUTES):
        for window in windower.feed(Block(k * RATE_HZ, second)):
            event = stream.event(window, start_utc_s=0.0)
            encode(event)
            n_branches += len(event.refined)
    cpu_s = time.process_time() - started_s
    memory_mb = say(f"{MINUTES} minutes at {RATE_HZ} Hz", cpu_s, memory_mb)
    window_ms, share = 1e3 * cpu_s / stream.n_events, cpu_s / (60 * MINUTES)
    cost = f"{window_ms:.1f} ms CPU, {n_branches / stream.n_events:.1f} branches"
    print(f"a window: {cost}; {share:.2%} of a core")  # noqa: T201


if __name__ == "__main__":
    main()
