"""A side's end of the pipe: requests come in on stdin, answers go out on stdout, a line of JSON each.

Nothing but the standard library is imported here: what a side imports is its own.
"""

import hashlib
import json
import os
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")


class Stages:
    """What one window costs, stage by stage: of all threads of the process, and of nothing that is not timed.

    Attributes:
        cpu_ms: by stage; what is timed inside another stage counts there alone.
        wall_ms: of all of them.
        n_faults: pages that the system had to give.
        peak_bytes: the most that Python and NumPy held at once beyond what they held at a stage's begin;
            only where memory is traced, which makes everything slow.
    """

    def __init__(self, cpu_s: Callable[[], float] = time.process_time) -> None:
        self._cpu_s = cpu_s
        self._inside_s: float | None = None
        self.clear()

    def clear(self) -> None:
        """Another window."""
        self.cpu_ms: dict[str, float] = {}
        self.wall_ms = 0.0
        self.n_faults = self.peak_bytes = 0

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Time what is done within."""
        if self._inside_s is None:
            with self._outermost(), self._timed(stage):
                yield
        else:
            with self._timed(stage):
                yield

    def timed(self, stage: str, call: Callable[..., _T]) -> Callable[..., _T]:
        """The same, timed."""

        def run(*arguments: object, **options: object) -> _T:
            with self.of(stage):
                return call(*arguments, **options)

        return run

    @contextmanager
    def _outermost(self) -> Iterator[None]:
        self._inside_s = 0.0
        tracemalloc.reset_peak()
        held_bytes, _ = tracemalloc.get_traced_memory()
        n_faults, began_s = _n_faults(), time.perf_counter()
        try:
            yield
        finally:
            self.wall_ms += 1e3 * (time.perf_counter() - began_s)
            self.n_faults += _n_faults() - n_faults
            self.peak_bytes = max(self.peak_bytes, tracemalloc.get_traced_memory()[1] - held_bytes)
            self._inside_s = None

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        outside_s, self._inside_s = self._inside_s, 0.0
        began_s = self._cpu_s()
        yield
        took_s = self._cpu_s() - began_s
        self.cpu_ms[stage] = self.cpu_ms.get(stage, 0.0) + 1e3 * (took_s - self._inside_s)
        self._inside_s = outside_s + took_s


def _n_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


class System(Protocol):
    """What is measured. It hears one endless street; a side's own `kind` says how.

    Attributes:
        samples, logmel: of the last window; no log-mel where there is none.
    """

    samples: "NDArray[np.float32]"
    logmel: "NDArray[np.float32] | None"

    def hear(self, kind: str, stages: Stages) -> dict[str, list[float]]:
        """Hear the next window of a kind, timed; probabilities by net."""
        ...


def serve(make: Callable[[Stages], System]) -> None:
    """Say that everything is imported, and when it can hear; then answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print, too

    def say(answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")

    say("imported")
    stages = Stages()
    served = _Served(make(stages), stages)
    say("ready")
    for line in sys.stdin:
        request = json.loads(line)
        say(getattr(served, request.pop("do"))(**request))


class _Served:
    """What can be asked for."""

    def __init__(self, system: System, stages: Stages) -> None:
        self._system, self._stages = system, stages

    def windows(self, kind: str, n: int) -> list[dict[str, Any]]:
        """What each of `n` windows costs."""
        return [self._cost(kind) for _ in range(n)]

    def traced(self, kind: str, n: int) -> list[dict[str, Any]]:
        """The same with memory traced: times are not to be believed then."""
        tracemalloc.start()
        costs = self.windows(kind, n)
        tracemalloc.stop()
        return costs

    def say(self, kind: str) -> dict[str, Any]:
        """What it says of a window, and a mark of what it has heard."""
        self._stages.clear()
        said = self._system.hear(kind, self._stages)
        return {"said": said, "heard": hashlib.sha256(self._system.samples.tobytes()).hexdigest()}

    def logmel(self) -> list[list[float]]:
        """Of the last window. Shape: [128, 862]"""
        assert self._system.logmel is not None
        return self._system.logmel.tolist()

    def _cost(self, kind: str) -> dict[str, Any]:
        stages = self._stages
        stages.clear()
        self._system.hear(kind, stages)
        return {
            "stages": stages.cpu_ms,
            "wall_ms": stages.wall_ms,
            "n_faults": stages.n_faults,
            "peak_bytes": stages.peak_bytes,
        }
