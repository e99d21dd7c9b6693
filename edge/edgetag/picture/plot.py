"""A recording as one picture, by Matplotlib: spectrogram, level, coarse tags, fine tags on one time axis."""

import math
import warnings
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import BinaryIO

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedFormatter, FixedLocator

from edgetag.contract.taxonomy import Category, Tag
from edgetag.delivery.table import UNTAGGED
from edgetag.picture.portrait import Portrait, time_words
from edgetag.picture.timeline import Heard

DPI = 100
WIDTH_INCHES = 14.0  # 1400 pixels
# Perceptually uniform, and told apart by people who do not see red or green.
SPECTROGRAM_COLOURS = "magma"
PROBABILITY_COLOURS = "viridis"
HATCHES = {"silent": "", "quiet": "////", "too_little_audio": "xxxx"}
GREY, PALE, LOST = "#5c5c5c", "#e4e4e4", "#bdbdbd"
INK, LEVEL, BAND = "#222222", "#0072B2", "#56B4E9"
TICKS_HZ = (100, 250, 500, 1000, 2000, 4000, 8000, 16_000)
STEPS_S = (0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400)
MAX_TICKS = 14
MAX_DOTTED = 150  # windows
HEAD_INCHES = 0.8  # for the title
MAX_NAME_CHARACTERS = 110
FULL_HEIGHT = 0.86
FAINT_HEIGHT = 0.3  # of a fine tag's bar that is below its threshold
STYLE = {
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "hatch.color": "#8a8a8a",
    "hatch.linewidth": 0.8,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "svg.hashsalt": "edgetag",  # element ids that are the same every time
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
}


def draw(portrait: Portrait, file: BinaryIO, format: str) -> None:
    """Write a recording's picture.

    Args:
        portrait: with at least one window.
        file: where to.
        format: png, svg or pdf.
    """
    fine = portrait.fine_tags
    heights = [3.0, 1.25, 0.22 * len(portrait.model.taxonomy.categories), 0.22 * max(len(fine), 1)]
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name may be in any script
        height_inches = sum(heights) + 1.1 + HEAD_INCHES
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), dpi=DPI)
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - HEAD_INCHES / height_inches))
        grid = figure.add_gridspec(
            4, 2, height_ratios=heights, width_ratios=[60, 1], hspace=0.04, wspace=0.01
        )
        panels = [figure.add_subplot(grid[0, 0])]
        panels += [figure.add_subplot(grid[row, 0], sharex=panels[0]) for row in (1, 2, 3)]
        spectrogram, level, coarse, kinds = panels
        _spectrogram(spectrogram, figure.add_subplot(grid[0, 1]), portrait)
        _level(level, portrait)
        _coarse(coarse, figure.add_subplot(grid[2:, 1]), portrait)
        _fine(kinds, portrait, fine)
        _time_axis(panels, portrait)
        _title(figure, portrait)
        figure.savefig(file, format=format, metadata={"Creator" if format == "pdf" else "Title": "edgetag"})


# -- panels --------------------------------------------------------------------------------------------------


def _spectrogram(axes: Axes, scale: Axes, portrait: Portrait) -> None:
    spectrogram = portrait.spectrogram
    low, high = spectrogram.range_db()
    axes.set_facecolor(LOST)
    image = axes.imshow(
        spectrogram.db,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(0, spectrogram.duration_s, -0.5, len(spectrogram.db) - 0.5),
        cmap=SPECTROGRAM_COLOURS,
        vmin=low,
        vmax=high,
    )
    ticks = [hz for hz in TICKS_HZ if 0 <= spectrogram.band_of(hz) <= len(spectrogram.db) - 1]
    axes.set_yticks([spectrogram.band_of(hz) for hz in ticks], [_hertz(hz) for hz in ticks])
    axes.set_ylabel("Hz, mel scale")
    scale.figure.colorbar(image, cax=scale, label="dB re full scale, a band")
    if not np.isfinite(spectrogram.db).all():
        axes.legend(
            handles=[Patch(facecolor=LOST, label="no audio")],
            loc="upper right",
            frameon=True,
            framealpha=0.9,
        )


def _level(axes: Axes, portrait: Portrait) -> None:
    """Each window's level as a step over where it is drawn."""
    edges, windows = _steps(portrait)
    laeq, lafmax, la90 = (
        [math.nan if w is None else getattr(w, name) for w in windows]
        for name in ("laeq_db", "lafmax_db", "la90_db")
    )
    axes.stairs(lafmax, edges, baseline=la90, fill=True, color=BAND, alpha=0.35, label="LA90 to LAFmax")
    axes.stairs(laeq, edges, baseline=None, color=LEVEL, linewidth=1.6, label="LAeq of each window")
    axes.set_ylabel(portrait.level_unit)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    low, high = min(w.la90_db for w in portrait.windows), max(w.lafmax_db for w in portrait.windows)
    room = max(1.0, 0.1 * (high - low))
    axes.set_ylim(low - room, high + 3 * room)  # above is the legend
    axes.legend(loc="upper right", ncols=2, handlelength=1.4, borderaxespad=0.1)


def _coarse(axes: Axes, scale: Axes, portrait: Portrait) -> None:
    """A row a category, its probability by colour; a dot where the tag is active."""
    categories = portrait.model.taxonomy.categories
    edges, windows = _steps(portrait)
    table = [
        [math.nan if w is None else w.probability.get(c.id, math.nan) for w in windows] for c in categories
    ]
    image = axes.pcolormesh(
        edges,
        np.arange(len(categories) + 1) - 0.5,
        np.ma.masked_invalid(np.array(table, float)),
        cmap=PROBABILITY_COLOURS,
        norm=Normalize(0, 1),
        rasterized=len(windows) > 400,
    )
    _rows(axes, categories, [c.name for c in categories])
    _mark_untagged(axes, portrait, len(categories))
    _explain_untagged(axes, portrait)
    _mark_active(axes, portrait, categories)
    bar = scale.figure.colorbar(image, cax=scale, label="probability")
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1])


def _mark_active(axes: Axes, portrait: Portrait, categories: tuple[Category, ...]) -> None:
    """Dark dots on what is bright, and white on what is not."""
    if not _has_dots(portrait):
        return
    dots = [
        ((start + end) / 2, row, "k" if window.probability[category.id] > 0.6 else "w")
        for window, (start, end) in zip(portrait.windows, portrait.cells, strict=True)
        for row, category in enumerate(categories)
        if category.id in window.active
    ]
    if dots:
        times, rows, colours = zip(*dots, strict=True)
        axes.scatter(times, rows, s=7, c=colours, linewidths=0)


def _has_dots(portrait: Portrait) -> bool:
    """Where windows are narrow, dots would only hide them."""
    is_active = any(
        not window.active.isdisjoint(portrait.model.taxonomy.coarse_ids) for window in portrait.windows
    )
    return is_active and len(portrait.windows) <= MAX_DOTTED


def _fine(axes: Axes, portrait: Portrait, tags: list[Tag]) -> None:
    """A row a tag, a bar where it is active, a thin one where its branch was asked and it is not."""
    for row, tag in enumerate(tags):
        for height in (FULL_HEIGHT, FAINT_HEIGHT):
            _bars(axes, portrait, tag, row, height)
    _rows(axes, tags, [tag.name for tag in tags])
    if tags:
        axes.grid(axis="y", color="#eeeeee", linewidth=0.6)
        axes.set_axisbelow(True)
    else:
        axes.text(
            0.5, 0.5, "no kind was told apart", transform=axes.transAxes, ha="center", va="center", color=GREY
        )
    _mark_untagged(axes, portrait, max(len(tags), 1))


def _bars(axes: Axes, portrait: Portrait, tag: Tag, row: int, height: float) -> None:
    """One tag's bars of one height, as one artist: thousands would be slow."""
    bars = [
        ((start, end - start), window.probability[tag.id])
        for window, (start, end) in zip(portrait.windows, portrait.cells, strict=True)
        if _bar_height(window, tag) == height
    ]
    if bars:
        spans, probabilities = zip(*bars, strict=True)
        colours = colormaps[PROBABILITY_COLOURS](probabilities)
        axes.broken_barh(spans, (row - height / 2, height), facecolors=colours, linewidth=0)


def _bar_height(window: Heard, tag: Tag) -> float:
    if tag.id not in window.probability:
        return 0.0
    if tag.id in window.active:
        return FULL_HEIGHT
    return FAINT_HEIGHT if tag.id.partition("-")[0] in window.refined else 0.0


def _mark_untagged(axes: Axes, portrait: Portrait, n_rows: int) -> None:
    """Windows that no net was asked about, over all rows; those that touch are one patch."""
    told = zip(portrait.windows, portrait.cells, strict=True)
    for verdict, run in groupby(told, key=lambda each: each[0].verdict):
        spans = [span for _, span in run]
        if verdict in UNTAGGED:
            for start, end in _joined(spans):
                axes.add_patch(
                    Rectangle(
                        (start, -0.5),
                        end - start,
                        n_rows,
                        facecolor=PALE,
                        edgecolor="#8a8a8a",
                        hatch=HATCHES[verdict],
                        linewidth=0,
                    )
                )


def _joined(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same with those that touch made one.

    >>> _joined([(0, 5), (5, 7), (9, 10)])
    [(0, 7), (9, 10)]
    """
    joined: list[tuple[float, float]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], end
        else:
            joined.append((start, end))
    return joined


def _explain_untagged(axes: Axes, portrait: Portrait) -> None:
    verdicts = [verdict for verdict, words in UNTAGGED.items() if words in portrait.untagged]
    if verdicts:
        patches = [
            Patch(
                facecolor=PALE,
                edgecolor="#8a8a8a",
                hatch=HATCHES[verdict],
                lw=0,
                label=f"not tagged: {UNTAGGED[verdict]}",
            )
            for verdict in verdicts
        ]
        axes.legend(
            handles=patches,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=len(patches),
            borderaxespad=0.1,
        )


def _rows(axes: Axes, tags: "tuple[Category, ...] | list[Tag]", names: list[str]) -> None:
    axes.set_yticks(range(len(tags)), names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max(len(tags), 1) - 0.5, -0.5)


# -- time and words ------------------------------------------------------------------------------------------


def _time_axis(panels: list[Axes], portrait: Portrait) -> None:
    """Places in the recording, or UTC where it is known when it began; labels below the last panel only."""
    for axes in panels[:-1]:
        axes.tick_params(axis="x", labelbottom=False)
    times, words = ticks(portrait.duration_s, portrait.start_utc_s)
    axes = panels[-1]
    axes.set_xlim(0, portrait.duration_s)
    axes.xaxis.set_major_locator(FixedLocator(times))
    axes.xaxis.set_major_formatter(FixedFormatter(words))
    began_s = portrait.start_utc_s
    axes.set_xlabel("time in the recording" if began_s is None else f"UTC, {_utc(began_s):%Y-%m-%d}")


def ticks(duration_s: float, start_utc_s: float | None) -> tuple[list[float], list[str]]:
    """Where to write times, and which: at most some fourteen round ones.

    >>> ticks(60, None)[1]
    ['0', '5 s', '10 s', '15 s', '20 s', '25 s', '30 s', '35 s', '40 s', '45 s', '50 s', '55 s', '60 s']
    >>> ticks(150, 1_795_341_600.0 - 45)[1][:3]
    ['09:59:15', '09:59:30', '09:59:45']
    """
    fitting = (step for step in STEPS_S if duration_s / step <= MAX_TICKS)
    step_s = next(fitting, 86_400 * math.ceil(duration_s / 86_400 / MAX_TICKS))
    first_s = 0.0 if start_utc_s is None else -start_utc_s % step_s
    times = [first_s + k * step_s for k in range(int((duration_s - first_s) // step_s) + 1)]
    return times, [_tick(time_s, step_s, start_utc_s) for time_s in times]


def _tick(time_s: float, step_s: float, start_utc_s: float | None) -> str:
    if start_utc_s is not None:
        at = _utc(start_utc_s + time_s)
        return f"{at:%H:%M:%S}" if step_s % 60 else f"{at:%H:%M}"
    if step_s >= 60 or time_s >= 120:
        return time_words(time_s).removesuffix(".0")
    return f"{time_s:g} s" if time_s else "0"


def _utc(utc_s: float) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=utc_s)


def _title(figure: Figure, portrait: Portrait) -> None:
    """The recording's name, what it was heard with, and what marks mean; whatever a name holds is text."""
    height_inches = figure.get_figheight()
    name = portrait.name
    if len(name) > MAX_NAME_CHARACTERS:
        name = f"…{name[-MAX_NAME_CHARACTERS:]}"
    for from_top_inches, words, style in (
        (0.08, name, {"fontsize": 12.5, "fontweight": "bold", "color": INK}),
        (0.36, _facts(portrait), {"color": GREY}),
        (0.57, _marks(portrait), {"color": GREY}),
    ):
        y = 1 - from_top_inches / height_inches
        figure.text(0.006, y, words, va="top", parse_math=False, **style)


def _facts(portrait: Portrait) -> str:
    info, manifest = portrait.model.info, portrait.model.manifest
    whole = "" if portrait.is_whole else ", not heard to its end"
    merged = f", {portrait.n_each} drawn as one" if portrait.n_each > 1 else ""
    return "   ·   ".join(
        (
            f"{time_words(portrait.duration_s)}{whole} at {portrait.rate_hz:,} Hz",
            ", then ".join([f"{manifest.name} {manifest.version}, {info.variant}", *portrait.others]),
            f"windows of {info.window_s:g} s every {info.hop_s:g} s{merged}, each drawn where it is nearest",
            f"edgetag {info.edgetag}",
        )
    )


def _marks(portrait: Portrait) -> str:
    """What there is to explain; patterns of untagged windows have a legend of their own."""
    marks = ["dot: the tag reached its threshold"] if _has_dots(portrait) else []
    if portrait.fine_tags:
        marks.append("kinds: a full bar reached its threshold, a thin one was asked for and did not")
    return "   ·   ".join(marks)


# -- shared --------------------------------------------------------------------------------------------------


def _steps(portrait: Portrait) -> tuple[list[float], list[Heard | None]]:
    """Edges of all cells from the recording's start on, and what is between two; None where nothing is."""
    edges, windows = [0.0], list[Heard | None]()
    for window, (start, end) in zip(portrait.windows, portrait.cells, strict=True):
        if start > edges[-1]:
            edges.append(start)
            windows.append(None)
        edges.append(end)
        windows.append(window)
    return edges, windows


def _hertz(hz: int) -> str:
    return f"{hz // 1000}k" if hz >= 1000 else str(hz)
