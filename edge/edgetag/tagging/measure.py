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
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgetag.capture.microphone import BLOCK_S
from edgetag.capture.source import Block
from edgetag.capture.windows import Window as AudioWindow
from edgetag.capture.windows import Windower
from edgetag.contract.errors import BundleError, EdgetagError, first_line
from edgetag.contract.event import encode
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.manifest import Cascade, Variant
from edgetag.tagging.bundle import Bundle, load_bundle
from edgetag.tagging.machine import resident_bytes
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import Tagger

MIN_WINDOWS = 5
BRANCH_SHARE = 1 / 3
"""How many of the branch nets fire: the starter's, in 152 street recordings of SONYC-UST, two of six."""
TIE = 0.03
"""A ratio of CPU times this near to 1 is none that a sensor notices or that the next measurement repeats."""
TIMEOUT_S = 300.0

_BLOCK_SAMPLES = round(BLOCK_S * SAMPLE_RATE_HZ)
_T = TypeVar("_T")
_CallT = TypeVar("_CallT", bound=Callable[..., Any])


class Cost(msgspec.Struct, frozen=True):
    """Milliseconds of CPU, of all threads together, and by the clock on the wall."""

    cpu_ms: float
    wall_ms: float


Window = dict[str, Cost]
"""One window, step by step: `windows` (from blocks of audio to a window), `level`, `log-mel`, `embedding` if
there is one, `root`, `branch-1`, …, `event` (the rest, up to its JSON)."""


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


class TimedTagger(Tagger):
    """The sensor's own tagger, of whose windows all steps are timed where they are computed.

    Args:
        bundle: every branch of it fires above `threshold`.
        timed: makes a call a timed one, by its step: `level`, `log-mel`, `embedding`, `root`, `branch-1`, …
    """

    def __init__(self, bundle: Bundle, timed: "Timed", threshold: float = 0.0) -> None:
        manifest = msgspec.structs.replace(bundle.manifest, cascade=Cascade("threshold", threshold))
        branches = {id: timed(f"branch-{id}", net) for id, net in bundle.branches.items()}
        super().__init__(
            replace(bundle, manifest=manifest, root=timed("root", bundle.root), branches=branches)
        )
        self._level, self._logmel = timed("level", self._level), timed("log-mel", self._logmel)
        if self._embedder is not None:
            self._embedder = timed("embedding", self._embedder)


class Timed(Protocol):
    """Makes a call a timed one."""

    def __call__(self, step: str, call: _CallT, /) -> _CallT: ...


class _Probe:
    """One variant's windows, step by step, from blocks of audio to the event's JSON; all branches fire."""

    def __init__(self, bundle: Bundle) -> None:
        self._costs: Window = {}
        self._stream = EventStream(TimedTagger(bundle, self._timed), sensor="bench")  # its self-test
        self._windower = Windower(SAMPLE_RATE_HZ, hop_samples=WINDOW_SAMPLES)
        self._frames = _audible(bundle.golden.pcm[0])[:, np.newaxis]
        self._n_windows = 0

    def window(self) -> Window:
        costs = self._costs = {}
        window = _timed(costs, "windows", self._next_window)
        whole = Window()
        _timed(whole, "event", lambda: encode(self._stream.event(window, start_utc_s=0.0)))
        inside = [cost for step, cost in costs.items() if step != "windows"]
        costs["event"] = Cost(
            whole["event"].cpu_ms - sum(cost.cpu_ms for cost in inside),
            whole["event"].wall_ms - sum(cost.wall_ms for cost in inside),
        )
        return costs

    def _next_window(self) -> AudioWindow:
        first_frame = self._n_windows * WINDOW_SAMPLES
        for start in range(0, WINDOW_SAMPLES, _BLOCK_SAMPLES):
            block = Block(first_frame + start, self._frames[start : start + _BLOCK_SAMPLES])
            windows = self._windower.feed(block)
        self._n_windows += 1
        return windows[0]

    def _timed(self, step: str, call: _CallT) -> _CallT:
        def run(*arguments: object, **options: object) -> object:
            return _timed(self._costs, step, lambda: call(*arguments, **options))

        return cast("_CallT", run)


def _audible(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    """A golden window with a hiss, since nets are not asked about digital silence."""
    hiss = np.random.default_rng(0).normal(0, 1, len(pcm))
    return ((pcm + hiss) / 32768).astype(np.float32)


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
            probes[variant] = _Probe(bundle)
        except BundleError as error:
            unfit[variant] = str(error)
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
