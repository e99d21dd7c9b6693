"""What a run has found: written as `results.json`, and all that tables, goals and the plot are made from."""

import statistics
from collections.abc import Sequence
from typing import Self

import msgspec

FORMAT = "edgetag.side-by-side/1"


class Middle(msgspec.Struct, frozen=True):
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        if len(values) == 1:
            return cls(*3 * [round(values[0], 4)])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(round(median, 4), round(low, 4), round(high, 4))


class Windows(msgspec.Struct, frozen=True):
    """What windows of one kind cost a side. The k-th windows of all were heard in the same turn.

    Attributes:
        stages: by stage, each window's milliseconds of CPU.
        wall_ms: of each window, by the clock.
        n_faults: pages that the system had to give, a window.
    """

    stages: dict[str, list[float]]
    wall_ms: list[float]
    n_faults: float

    def totals(self, *, without: Sequence[str] = ()) -> list[float]:
        """Each window's milliseconds of CPU."""
        counted = [ms for stage, ms in self.stages.items() if stage not in without]
        return [sum(window) for window in zip(*counted, strict=True)]

    def total(self, *, without: Sequence[str] = ()) -> Middle:
        return Middle.of(self.totals(without=without))

    def stage(self, name: str) -> Middle | None:
        return Middle.of(self.stages[name]) if name in self.stages else None


class Memory(msgspec.Struct, frozen=True):
    """Of a process that hears busy windows, in 10^6 bytes.

    Attributes:
        peak_mb, steady_mb: resident, at most (loading included) and after the last window.
        heap_mb: what Python and NumPy took for one window at most, and gave back.
        n_faults: pages that the system had to give for one window.
    """

    peak_mb: float
    steady_mb: float
    heap_mb: float
    n_faults: float


class Start(msgspec.Struct, frozen=True):
    """Seconds from a process's start to where it has come; files are in the page cache.

    Attributes:
        imported_s: everything that it needs.
        ready_s: nets loaded (edgetag's have passed their self-test): a first window could be heard.
        heard_s: a first window has been; None for the daemon, which then waits for ten seconds of audio.
    """

    imported_s: Middle
    ready_s: Middle
    heard_s: Middle | None = None


class Run(msgspec.Struct, frozen=True):
    """One or more runs of `edgetag replay`: of all their files together, start and decoding included.

    Attributes:
        audio_s: what they held.
        cpu_s: of all its processes.
        wall_s: by the clock.
        n_windows: that were tagged.
        peak_mb: resident, of the largest process.
    """

    audio_s: float
    cpu_s: Middle
    wall_s: Middle
    n_windows: int
    peak_mb: float

    @property
    def speed(self) -> float:
        """How many times as fast as real time one core is."""
        return self.audio_s / self.cpu_s.median

    @property
    def hours_per_minute(self) -> float:
        """Hours of audio by a minute of CPU."""
        return self.speed / 60


class Live(msgspec.Struct, frozen=True):
    """A daemon that hears a sound server and publishes through Mosquitto.

    Attributes:
        hop_s, n_windows: how it heard.
        p50_ms, p99_ms, max_ms: from the end of a window to its event at a subscriber.
        cpu_ms: of the whole process, capture and delivery included, a window.
        peak_mb, steady_mb: as of `Memory`.
    """

    hop_s: float
    n_windows: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_ms: float
    peak_mb: float
    steady_mb: float


class Length(msgspec.Struct, frozen=True):
    """How memory and cost go on in one endless recording: after so many hours, MB and CPU seconds."""

    hours: list[float]
    resident_mb: list[float]
    cpu_s: list[float]


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured.

    Attributes:
        described: processor, cores, memory, system.
        versions: of what ran.
        load: averages of a minute, before and after; this measurement is part of the latter.
    """

    described: str
    versions: dict[str, str]
    load: tuple[float, float]


class Results(msgspec.Struct, kw_only=True):
    """Everything. Windows are named `side, kind`; the rest by side or by what was replayed.

    Attributes:
        variant: of edgetag, that is faster on this machine: goals, replays and daemons are of it.
        left_out: what was not measured, and why.
        logmel_difference_db: of edgetag's log-mel from librosa's, at most, in the street's windows.
        replay_jobs: by number of processes.
        hops, files: by hop in seconds, and by number of files of the same audio.
    """

    format: str = FORMAT
    measured: str
    variant: str
    machine: Machine
    windows: dict[str, Windows] = {}
    logmel_difference_db: float | None = None
    memory: dict[str, Memory] = {}
    start: dict[str, Start] = {}
    replay: dict[str, Run] = {}
    replay_jobs: dict[str, Run] = {}
    live: dict[str, Live] = {}
    hops: dict[str, Run] = {}
    files: dict[str, Run] = {}
    length: Length | None = None
    left_out: dict[str, str] = {}


def ratio(of: Windows, to: Windows, *, without: Sequence[str] = ()) -> Middle:
    """Of what windows cost that were heard in the same turn."""
    pairs = zip(of.totals(without=without), to.totals(without=without), strict=True)
    return Middle.of([a / b for a, b in pairs])
