"""What is to be reached, as the project has set it to itself: one table that figures are held against."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.side_by_side.results import Middle, Results, ratio
from bench.side_by_side.sides import (
    EDGETAG,
    EDGETAG_CNN,
    EDGETAG_VGGISH,
    PAPER,
    PAPER_VGGISH,
    YAMNET,
)

Found = float | Middle | None
BEFOREHAND = ("resample",)
"""Not counted against YAMNet: its audio is resampled beforehand, as edgetag's comes at the right rate."""
AROUND = (*BEFOREHAND, "windows", "level", "event", "outbox")
"""What only edgetag does."""


@dataclass(frozen=True)
class Goal:
    """One figure that is to be reached, or just to be known.

    Attributes:
        what: in words.
        find: the figure, by the results; None where it was not measured.
        limit, aim: what is asked for, and what is hoped for; None for nothing.
        sense: whether less or more is better.
        unit: of all three.
    """

    what: str
    find: Callable[[Results], Found]
    limit: float | None = None
    aim: float | None = None
    sense: Literal["≤", "≥"] = "≤"
    unit: str = ""

    def verdict(self, found: float | Middle) -> str:
        """What its median comes to; "" where nothing is asked for."""
        if self.aim is not None and self._is_within(found, self.aim):
            return "aim reached"
        if self.limit is None:
            return ""
        return "reached" if self._is_within(found, self.limit) else "not reached"

    def _is_within(self, found: float | Middle, bound: float) -> bool:
        value = found.median if isinstance(found, Middle) else found
        return value <= bound if self.sense == "≤" else value >= bound


def _ratio(of: str, to: str, *, without: Sequence[str] = BEFOREHAND) -> Callable[[Results], Found]:
    """Of CPU time of a window; `{}` is the variant."""

    def find(results: Results) -> Found:
        a, b = (results.windows.get(name.format(results.variant)) for name in (of, to))
        return ratio(a, b, without=without) if a and b else None

    return find


def _stage(side: str, stage: str) -> Callable[[Results], Found]:
    def find(results: Results) -> Found:
        windows = results.windows.get(side.format(results.variant))
        return windows.stage(stage) if windows else None

    return find


def _peak_ratio(of: str, to: str) -> Callable[[Results], Found]:
    def find(results: Results) -> Found:
        a, b = (results.memory.get(name.format(results.variant)) for name in (of, to))
        return a.peak_mb / b.peak_mb if a and b else None

    return find


def _live_mb(side: str) -> Callable[[Results], Found]:
    return lambda results: (live := results.live.get(side)) and live.steady_mb


def _start(milestone: Literal["imported_s", "ready_s"]) -> Callable[[Results], Found]:
    def find(results: Results) -> Found:
        start = results.start.get(f"`edgetag run`, {results.variant}")
        return getattr(start, milestone) if start else None

    return find


def _speed(results: Results) -> Found:
    return run.speed if (run := results.replay.get("FLAC, 44.1 kHz")) else None


def _jobs(results: Results) -> Found:
    if not results.replay_jobs:
        return None
    return results.replay_jobs["1"].wall_s.median / results.replay_jobs["2"].wall_s.median


def _growth(results: Results) -> Found:
    """MB by which the second half of an endless recording is above the first."""
    if results.length is None:
        return None
    resident_mb = results.length.resident_mb
    half = len(resident_mb) // 2
    return max(resident_mb[half:]) - max(resident_mb[:half])


GOALS = (
    Goal(
        "quiet window / YAMNet without overlap",
        _ratio(f"{EDGETAG}, {{}}, quiet", f"{YAMNET}, no overlap"),
        0.8,
        0.5,
    ),
    Goal(
        "its front ends, embedding and root net alone / YAMNet without overlap",
        _ratio(f"{EDGETAG}, {{}}, quiet", f"{YAMNET}, no overlap", without=AROUND),
    ),
    Goal(
        "from 48 kHz / YAMNet without overlap from 44.1 kHz",
        _ratio(f"{EDGETAG}, {{}}, 48 kHz", f"{YAMNET}, no overlap", without=()),
    ),
    Goal(
        "busy window / YAMNet without overlap",
        _ratio(f"{EDGETAG}, {{}}, busy", f"{YAMNET}, no overlap"),
        0.9,
    ),
    Goal(
        "half of the embedding reused, quiet window / YAMNet without overlap",
        _ratio(f"{EDGETAG}, {{}}, reuse", f"{YAMNET}, no overlap"),
    ),
    Goal(
        "without embedding, busy window / the paper's stack",
        _ratio(f"{EDGETAG_CNN}, {{}}, busy", f"{PAPER}, busy"),
        1 / 5,
        1 / 10,
    ),
    Goal(
        "with VGGish, busy window / the paper's stack",
        _ratio(f"{EDGETAG_VGGISH}, {{}}, busy", f"{PAPER_VGGISH}, busy"),
        1 / 6,
        1 / 10,
    ),
    Goal(
        "with VGGish and reuse, quiet window / YAMNet without overlap",
        _ratio(f"{EDGETAG_VGGISH}, {{}}, reuse", f"{YAMNET}, no overlap"),
        1.5,
    ),
    Goal(
        "without embedding, peak memory / the paper's stack",
        _peak_ratio(f"{EDGETAG_CNN}, {{}}", PAPER),
        1 / 4,
    ),
    Goal(
        "with VGGish, peak memory / the paper's stack",
        _peak_ratio(f"{EDGETAG_VGGISH}, {{}}", PAPER_VGGISH),
        1 / 4,
    ),
    Goal("the daemon's memory", _live_mb(EDGETAG), 120, 90, unit="MB"),
    Goal("with VGGish, the daemon's memory", _live_mb(EDGETAG_VGGISH), 220, unit="MB"),
    Goal("log-mel", _stage(f"{EDGETAG}, {{}}, quiet", "log-mel"), 4.5, unit="ms"),
    Goal(
        "log-mel's difference from librosa's", lambda results: results.logmel_difference_db, 1e-3, unit="dB"
    ),
    Goal("imports of the daemon", _start("imported_s"), 0.6, unit="s"),
    Goal("first window possible", _start("ready_s"), 1.0, unit="s"),
    Goal("replay of FLAC, one core / real time", _speed, 400, sense="≥"),
    Goal("replay by two processes / by one", _jobs, 1.7, sense="≥"),
    Goal("memory's growth in an endless recording", _growth, 2.0, unit="MB"),
)


def judged(results: Results) -> Iterator[tuple[Goal, Found]]:
    """Every goal with its figure."""
    return ((goal, goal.find(results)) for goal in GOALS)
