"""What a bundle's nets cost on this machine, variant beside variant.

A process of its own measures, so that a sensor keeps its memory, and its life where there is too little of
it, and so that CPU time is the nets' whatever else the sensor does and however many threads they have:

    python -m edgetag.tagging.measure BUNDLE KEY THREADS SECONDS VARIANT…

The variants take turns, window by window, in alternating order: what slows the machine down for a while slows
down all of them. Of all windows the median counts.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgetag.contract.errors import BundleError, EdgetagError, first_line
from edgetag.contract.manifest import EMBEDDING_INPUT, LOGMEL_INPUT, LOGMEL_SHAPE, Variant
from edgetag.dsp.level import LevelMeter
from edgetag.dsp.logmel import LogMel
from edgetag.tagging.bundle import Bundle, load_bundle
from edgetag.tagging.embedding import Embedder
from edgetag.tagging.machine import resident_bytes
from edgetag.tagging.tagger import Tagger

MIN_WINDOWS = 5
BRANCH_SHARE = 1 / 3
"""How many of the branch nets fire: the starter's, in 152 street recordings of SONYC-UST, two of six."""
TIE = 0.03
"""A ratio of CPU times this near to 1 is none that a sensor notices or that the next measurement repeats."""
TIMEOUT_S = 300.0

_T = TypeVar("_T")


class Cost(msgspec.Struct, frozen=True):
    """Milliseconds of CPU, of all threads together, and by the clock on the wall."""

    cpu_ms: float
    wall_ms: float


Window = dict[str, Cost]
"""One window, step by step: `level`, `log-mel`, `embedding` if there is one, `root`, `branch-1`, …"""


class Measurement(msgspec.Struct, frozen=True):
    """What a measuring process found.

    Attributes:
        windows: by variant; the k-th of each were measured side by side.
        unfit: why a variant could not be measured: it is damaged, or does not run correctly here.
        resident_bytes: by how much the process grew, from its imports to its end.
    """

    windows: dict[Variant, list[Window]]
    unfit: dict[Variant, str]
    resident_bytes: int


class Measure(Protocol):
    """How variants are measured: see `measure`."""

    def __call__(
        self,
        bundle: Path,
        variants: Sequence[Variant],
        *,
        threads: int,
        public_key: Path | None,
        seconds: float,
    ) -> Measurement: ...


def measure(
    bundle: Path, variants: Sequence[Variant], *, threads: int, public_key: Path | None, seconds: float
) -> Measurement:
    """Measure a bundle's variants in a process of its own.

    Args:
        bundle: a folder or an archive.
        variants: which of its variants.
        threads: of one net.
        public_key: whose signature it must bear.
        seconds: how long to go on, though not for less than `MIN_WINDOWS` of each variant.

    Raises:
        EdgetagError: the process could not be started, was killed, or took too long.
    """
    options = [str(bundle), str(public_key or ""), str(threads), str(seconds), *variants]
    command = [sys.executable, "-P", "-m", "edgetag.tagging.measure", *options]
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ}  # else its threads spin, and count
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=TIMEOUT_S,
        )
        return msgspec.json.decode(done.stdout, type=Measurement)
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise EdgetagError(f"{bundle} could not be measured ({last or first_line(error)})") from error
    except (OSError, ValueError, subprocess.TimeoutExpired, msgspec.MsgspecError) as error:
        raise EdgetagError(f"{bundle} could not be measured ({first_line(error)})") from error


def faster(windows: Mapping[Variant, Sequence[Window]]) -> Variant:
    """The variant that costs less CPU time a window: its nets, a third of the branches.

    CPU time, because it is what a sensor pays: heat, power, and what its other processes do not get. By the
    clock a window only has to be done before the next one.

    It is a tie, and int8 wins as the smaller one, where the windows' median ratio lies within `TIE` of 1 or
    within the ratios' own spread (their median distance from the median).
    """
    if len(windows) == 1:
        return next(iter(windows))
    pairs = zip(windows["int8"], windows["fp32"], strict=True)
    ratios = [nets_cpu_ms(int8) / max(nets_cpu_ms(fp32), 1e-6) for int8, fp32 in pairs]
    ratio = statistics.median(ratios)
    spread = statistics.median(abs(r - ratio) for r in ratios)
    return "fp32" if ratio - 1 > max(TIE, spread) else "int8"


def nets_cpu_ms(window: Window) -> float:
    """CPU time of a window's nets if a third of the branches fire."""
    cost = {step: cost.cpu_ms for step, cost in window.items()}
    branches = sum(ms for step, ms in cost.items() if step.startswith("branch-"))
    return cost.get("embedding", 0.0) + cost["root"] + BRANCH_SHARE * branches


def summary(windows: Sequence[Window]) -> dict[str, Cost]:
    """Medians: each step, a branch (the mean of all), a quiet window (none fires) and a busy one (all do)."""
    steps = [step for step in windows[0] if not step.startswith("branch-")]
    branches = [step for step in windows[0] if step.startswith("branch-")]
    rows = {step: _median(windows, [step]) for step in steps}
    if branches:
        rows["branch"] = _median(windows, branches, 1 / len(branches))
    rows["quiet window"] = _median(windows, steps)
    rows["busy window"] = _median(windows, [*steps, *branches])
    return rows


def _median(windows: Sequence[Window], steps: Sequence[str], factor: float = 1.0) -> Cost:
    cpu = statistics.median(factor * sum(window[step].cpu_ms for step in steps) for window in windows)
    wall = statistics.median(factor * sum(window[step].wall_ms for step in steps) for window in windows)
    return Cost(round(cpu, 3), round(wall, 3))


# -- the measuring process -----------------------------------------------------------------------------------


class _Probe:
    """One variant's window, step by step, on the first golden window."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._samples = bundle.golden.pcm[0].astype(np.float32) * np.float32(1 / 32768)
        self._level, self._logmel = LevelMeter(), LogMel()
        self._embedder = Embedder(bundle.embedding) if bundle.embedding else None
        self._inputs: dict[str, NDArray[np.float32]] = {LOGMEL_INPUT: np.empty(LOGMEL_SHAPE, np.float32)}

    def window(self) -> Window:
        samples, inputs, costs = self._samples, self._inputs, Window()
        _timed(costs, "level", lambda: self._level(samples))
        _timed(costs, "log-mel", lambda: self._logmel(samples, out=inputs[LOGMEL_INPUT][0, 0]))
        if (embedder := self._embedder) is not None:
            inputs[EMBEDDING_INPUT] = _timed(costs, "embedding", lambda: embedder(samples))
        for name, net in self._bundle.nets.items():
            _timed(costs, name, partial(net, inputs))
        return costs


def _timed(costs: Window, step: str, call: Callable[[], _T]) -> _T:
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = call()
    cpu_ms, wall_ms = (time.process_time() - cpu_s) * 1e3, (time.perf_counter() - wall_s) * 1e3
    costs[step] = Cost(cpu_ms, wall_ms)
    return result


def _measure(
    path: Path, variants: Sequence[Variant], threads: int, public_key: Path | None, seconds: float
) -> Measurement:
    before_bytes = resident_bytes()
    probes: dict[Variant, _Probe] = {}
    unfit: dict[Variant, str] = {}
    for variant in variants:
        try:
            bundle = load_bundle(path, variant, threads=threads, public_key=public_key)
            Tagger(bundle)  # its self-test
        except BundleError as error:
            unfit[variant] = str(error)
        else:
            probes[variant] = _Probe(bundle)
    windows = _take_turns(probes, seconds)
    return Measurement(windows, unfit, resident_bytes() - before_bytes)


def _take_turns(probes: Mapping[Variant, _Probe], seconds: float) -> dict[Variant, list[Window]]:
    windows: dict[Variant, list[Window]] = {variant: [] for variant in probes}
    for probe in probes.values():
        probe.window()  # the first one is slower
    order, n, end_s = list(probes), 0, time.monotonic() + seconds
    while order and (n < MIN_WINDOWS or time.monotonic() < end_s):
        for variant in order:
            windows[variant].append(probes[variant].window())
        order.reverse()
        n += 1
    return windows


def _main(bundle: str, public_key: str, threads: str, seconds: str, *variants: str) -> None:
    with contextlib.suppress(OSError):  # if memory runs out, this process ends and not the sensor
        Path("/proc/self/oom_score_adj").write_text("1000")
    found = _measure(
        Path(bundle),
        msgspec.convert(variants, list[Variant]),
        int(threads),
        Path(public_key) if public_key else None,
        float(seconds),
    )
    sys.stdout.buffer.write(msgspec.json.encode(found))


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except EdgetagError as error:
        sys.exit(str(error))
