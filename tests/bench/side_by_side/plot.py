"""Results as one picture: what a window costs, stage by stage; beside it memory and start."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.side_by_side.goals import BEFOREHAND
from bench.side_by_side.report import STAGES
from bench.side_by_side.results import Results, Windows
from bench.side_by_side.sides import YAMNET
from edgetag_train.report.plots import STYLE

# Okabe and Ito's colours, for what takes time; greys for what is there before and after.
COLOURS = {
    "resample": "#bdbdbd",
    "windows": "#8c8c8c",
    "level": "#F0E442",
    "log-mel": "#56B4E9",
    "embedding": "#CC79A7",
    "root": "#0072B2",
    "branches": "#009E73",
    "yamnet": "#D55E00",
    "event": "#E69F00",
    "outbox": "#5c4a1f",
}
assert set(COLOURS) == set(STAGES)
REFERENCE = f"{YAMNET}, no overlap"
SIZE_INCHES = (11.5, 8.2)


def draw(results: Results, file: Path) -> None:
    """Write the picture as a PNG; panels of what was not measured are left out."""
    with rc_context(STYLE):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=[1.75, 1])
        _cost(left, results)
        _memory_and_start(right, results)
        figure.suptitle(f"edgetag beside what people run today: {_short(results)}", x=0.01, ha="left")
        figure.savefig(file, dpi=130)


def _short(results: Results) -> str:
    """The processor's name and the day."""
    return f"{results.machine.described.partition(',')[0]}, one thread, {results.measured[:10]}"


def _cost(figure: Figure, results: Results) -> None:
    """Two panels, since an embedding costs ten times as much as all the rest; YAMNet is in both."""
    large = {name: cost for name, cost in results.windows.items() if "VGGish" in name}
    small = {name: cost for name, cost in results.windows.items() if name not in large}
    panels = {"CPU of a ten-second window, ms": small, "the same with VGGish, ms": large}
    panels = {title: costs for title, costs in panels.items() if costs}
    if not panels:
        return
    axes = figure.subplots(
        len(panels), 1, height_ratios=[len(costs) for costs in panels.values()], squeeze=False
    )
    for axis, (title, costs) in zip(axes[:, 0], panels.items(), strict=True):
        _stacked(axis, title, costs, results.windows.get(REFERENCE))
    drawn = [stage for stage in STAGES if any(stage in cost.stages for cost in results.windows.values())]
    handles = [axes[0, 0].barh([0], [0], color=COLOURS[stage]) for stage in drawn]
    figure.legend(handles, drawn, loc="outside lower left", ncols=len(drawn), columnspacing=1, handlelength=1)


def _stacked(axes: Axes, title: str, costs: Mapping[str, Windows], reference: Windows | None) -> None:
    names = list(costs)
    widest = max(cost.total().median for cost in costs.values())
    for row, name in enumerate(names):
        at_ms = 0.0
        for stage in STAGES:
            if (middle := costs[name].stage(stage)) is not None:
                axes.barh(row, middle.median, left=at_ms, color=COLOURS[stage], height=0.72)
                at_ms += middle.median
        axes.text(at_ms + 0.008 * widest, row, f"{costs[name].total().median:.1f}", va="center", fontsize=8)
    if reference is not None:
        at_ms, colour = reference.total(without=BEFOREHAND).median, COLOURS["yamnet"]
        axes.axvline(at_ms, color=colour, linewidth=1, linestyle=(0, (4, 2)), zorder=0)
        axes.text(
            at_ms, -0.75, f" {REFERENCE}, resampled beforehand", color=colour, fontsize=7.5, va="center"
        )
    axes.set_yticks(range(len(names)), names, color="black")
    axes.set(xlim=(0, 1.08 * widest), ylim=(len(names) - 0.5, -1.1), title=title)
    axes.tick_params("y", length=0)


def _memory_and_start(figure: Figure, results: Results) -> None:
    live_mb = {f"{name}, daemon": [live.steady_mb, live.peak_mb] for name, live in results.live.items()}
    memory_mb = {name: [memory.steady_mb, memory.peak_mb] for name, memory in results.memory.items()}
    reached_s = {
        name.replace("`", ""): [m.median for m in (start.imported_s, start.ready_s, start.heard_s) if m]
        for name, start in results.start.items()
    }
    panels = [
        ("resident memory, MB", live_mb | memory_mb, {"steady": "#0072B2", "peak": "#9ecae1"}),
        (
            "seconds from a process's start",
            reached_s,
            {"imported": "#8c8c8c", "ready": "#0072B2", "a window heard": "#9ecae1"},
        ),
    ]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return
    heights = [len(rows) for _, rows, _ in panels]
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _nested(axis, *panel)


def _nested(axes: Axes, title: str, rows: Mapping[str, Sequence[float]], colours: Mapping[str, str]) -> None:
    """Bars of values that rise, each ending where the next one begins."""
    widest = max(values[-1] for values in rows.values())
    for row, values in enumerate(rows.values()):
        for before, value, colour in zip([0.0, *values], values, colours.values(), strict=False):
            axes.barh(row, value - before, left=before, color=colour, height=0.72)
        shown = f"{values[-1]:.0f}" if widest > 20 else f"{values[-1]:.1f}"
        axes.text(values[-1] + 0.015 * widest, row, shown, va="center", fontsize=8)
    handles = [axes.barh([0], [0], color=colour) for colour in colours.values()]
    axes.legend(handles, list(colours), loc="upper right", handlelength=1, borderaxespad=0)
    axes.set_yticks(range(len(rows)), list(rows), color="black")
    axes.set(xlim=(0, 1.2 * widest), ylim=(len(rows) - 0.5, -0.6))
    axes.set_title(title, loc="right")
    axes.tick_params("y", length=0)
