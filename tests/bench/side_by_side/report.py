"""Results as tables, in Markdown: for a terminal, too."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from bench.side_by_side.goals import Goal, judged
from bench.side_by_side.results import Length, Middle, Results, Run

STAGES = (
    *(
        "resample",
        "windows",
        "level",
        "log-mel",
        "embedding",
        "root",
        "branches",
        "yamnet",
        "event",
        "outbox",
    ),
)


class Table(NamedTuple):
    """Rows of text under a heading, with a sentence or two on how to read them."""

    heading: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [_line(self.columns, widths), _line(ruler, widths)]
        lines += [_line(row, widths) for row in self.rows]
        return "\n".join([f"## {self.heading}", "", self.note, "", *lines])


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = widths
    aligned = [
        cells[0].ljust(first),
        *(cell.rjust(width) for cell, width in zip(cells[1:], others, strict=True)),
    ]
    return f"| {' | '.join(aligned)} |"


def markdown(results: Results) -> str:
    """The whole report."""
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    before, after = machine.load
    head = [
        "# edgetag beside what people run today",
        f"{machine.described}. {versions}. Measured {results.measured}; load average {before:.1f} before "
        f"it and {after:.1f} at its end; by itself it makes 1. Made by `make bench`.",
        *(f"Left out: {what}, since {why}." for what, why in results.left_out.items()),
    ]
    return "\n\n".join([*head, *map(str, tables(results))]) + "\n"


def tables(results: Results) -> Iterator[Table]:
    """One for each part that was measured; goals first."""
    if goals := [_goal(goal, found) for goal, found in judged(results) if found is not None]:
        columns = "", "to be reached", "aimed at", "found", "quartiles", ""
        note = (
            f"edgetag is its {results.variant} variant, which is the faster one here. Ratios of CPU time are "
            "medians of windows that were heard in the same turn; resampling is not counted on either side."
        )
        yield Table("Goals", note, columns, goals)
    if results.windows:
        yield _windows(results)
    if results.memory:
        yield _memory(results)
    if results.start:
        yield _start(results)
    if results.replay or results.replay_jobs:
        yield _replay(results)
    if results.live:
        yield _live(results)
    if results.hops or results.files or results.length:
        yield _growth(results)


def _goal(goal: Goal, found: float | Middle) -> list[str]:
    quartiles = f"{_number(found.low)} … {_number(found.high)}" if isinstance(found, Middle) else ""
    value = found.median if isinstance(found, Middle) else found
    bounds = [_bound(goal, bound) for bound in (goal.limit, goal.aim)]
    return [goal.what, *bounds, f"{_number(value)} {goal.unit}".strip(), quartiles, goal.verdict(found)]


def _bound(goal: Goal, bound: float | None) -> str:
    return "" if bound is None else f"{goal.sense} {_number(bound)} {goal.unit}".strip()


def _number(value: float) -> str:
    """Three digits."""
    if value == 0:
        return "0"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _windows(results: Results) -> Table:
    stages = [stage for stage in STAGES if any(stage in cost.stages for cost in results.windows.values())]
    rows = []
    for name, cost in results.windows.items():
        total, found = cost.total(), [cost.stage(stage) for stage in stages]
        cells = [f"{middle.median:.1f}" if middle else "" for middle in found]
        spread = f"{total.low:.1f} … {total.high:.1f}"
        rows.append([name, *cells, f"{total.median:.1f}", spread, f"{Middle.of(cost.wall_ms).median:.1f}"])
    n = len(next(iter(results.windows.values())).wall_ms)
    note = (
        f"Milliseconds of CPU, one thread, medians of {n} windows; a total is the median of sums. `windows` "
        "is from blocks of 0.1 s to a window, at 44.1 kHz or with resampling from 48 kHz; `embedding` and "
        "YAMNet's `resample` begin at 44.1 kHz; `outbox` is the disk's thread, too. `quiet`: no branch "
        "fires, `busy`: all six do."
    )
    return Table("CPU of one window", note, ["ms", *stages, "total", "quartiles", "wall"], rows)


def _memory(results: Results) -> Table:
    rows = [
        [name, *(f"{mb:.0f}" for mb in (m.peak_mb, m.steady_mb)), f"{m.heap_mb:.1f}", f"{m.n_faults:.0f}"]
        for name, m in results.memory.items()
    ]
    note = (
        "Of a process that hears busy windows: resident at most (loading included) and in the end; what "
        "Python and NumPy take for a window and give back; pages that the kernel has to give for one, to all "
        "libraries."
    )
    columns = "MB", "peak", "steady", "heap a window", "page faults a window"
    return Table("Memory", note, columns, rows)


def _start(results: Results) -> Table:
    rows = [
        [name, _seconds(start.imported_s), _seconds(start.ready_s), _seconds(start.heard_s)]
        for name, start in results.start.items()
    ]
    note = (
        "From a process's start, by the clock, files in the page cache; medians. Ready: a first window could "
        "be heard; edgetag's nets have passed their self-test by then."
    )
    return Table("Start", note, ("s", "imported", "ready", "first window heard"), rows)


def _seconds(middle: Middle | None) -> str:
    return "" if middle is None else f"{middle.median:.2f}"


def _replay(results: Results) -> Table:
    runs = results.replay | {f"{n} process{'es' * (n != '1')}": run for n, run in results.replay_jobs.items()}
    rows = [
        [
            *(name, f"{run.audio_s / 60:.0f}", f"{run.cpu_s.median:.1f}", f"{run.wall_s.median:.1f}"),
            *(f"{run.speed:.0f}", f"{run.hours_per_minute:.2f}", f"{run.peak_mb:.0f}"),
        ]
        for name, run in runs.items()
    ]
    note = "`edgetag replay`, from its start to its end; branches fire as they do in the synthetic street."
    columns = "", "audio, min", "CPU, s", "wall, s", "× real time a core", "hours a minute of CPU", "peak, MB"
    return Table("Replay", note, columns, rows)


def _live(results: Results) -> Table:
    rows = [
        [
            *(name, f"{live.hop_s:g}", f"{live.n_windows}"),
            *(f"{ms:.0f}" for ms in (live.p50_ms, live.p99_ms, live.max_ms)),
            *(f"{live.cpu_ms:.1f}", f"{live.steady_mb:.0f}", f"{live.peak_mb:.0f}"),
        ]
        for name, live in results.live.items()
    ]
    note = (
        "`edgetag run`, from PulseAudio to the subscriber of a Mosquitto: from the end of a window, as its "
        "event states it, to the event. Audio is read in blocks of 100 ms. CPU is the whole process's, "
        "capture and delivery included."
    )
    columns = (
        "",
        "hop, s",
        "windows",
        "p50, ms",
        "p99, ms",
        "max, ms",
        "CPU a window, ms",
        "steady, MB",
        "peak, MB",
    )
    return Table("Live", note, columns, rows)


def _growth(results: Results) -> Table:
    rows = [
        *_runs({f"hop {hop_s} s": run for hop_s, run in results.hops.items()}),
        *_runs({f"{n} file{'s' * (n != '1')}": run for n, run in results.files.items()}),
        *(_length(results.length) if results.length else ()),
    ]
    note = (
        "`edgetag replay`: by hop, by number of files that the same audio is cut into, and how one endless "
        "stream goes on."
    )
    columns = "", "audio, h", "windows", "CPU, s", "CPU s an hour of audio", "CPU a window, ms", "memory, MB"
    return Table("Growth", note, columns, rows)


def _runs(runs: Mapping[str, Run]) -> Iterator[list[str]]:
    for name, run in runs.items():
        hours, used_s = run.audio_s / 3600, run.cpu_s.median
        costs = f"{used_s:.1f}", f"{used_s / hours:.1f}", f"{1e3 * used_s / run.n_windows:.1f}"
        yield [name, f"{hours:.2f}", f"{run.n_windows}", *costs, f"{run.peak_mb:.0f}"]


def _length(length: Length) -> Iterator[list[str]]:
    """At an eighth, half and all of it."""
    for share in (1 / 8, 1 / 2, 1):
        at = max(1, round(share * len(length.hours))) - 1
        hours, used_s = length.hours[at], length.cpu_s[at]
        n_windows = round(hours * 720)
        costs = f"{used_s:.1f}", f"{used_s / hours:.1f}", f"{1e3 * used_s / n_windows:.1f}"
        yield ["so far of a stream", f"{hours:.2f}", f"{n_windows}", *costs, f"{length.resident_mb[at]:.1f}"]
