"""The report's drawings, as SVG. Colours are told apart without red and green (Okabe and Ito, 2008)."""

import io
import re
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.metrics import F1_THRESHOLD, Curve
from edgetag_train.report.runs import Epoch

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("", "5 2", "1.5 1.5", "7 2 1.5 2")  # once the colours are used up
HITS = LinearSegmentedColormap.from_list("hits", ["#ffffff", "#0072B2"])
FALSE_ALARMS = LinearSegmentedColormap.from_list("false alarms", ["#ffffff", "#D55E00"])
GREY, PALE, EMPTY = "#6b6b6b", "#d9d9d9", "#f0f0f0"
ISO_F1 = (0.2, 0.4, 0.6, 0.8)
TITLE_WIDTH = 72  # characters
DARK = 0.6  # shares above it need white numerals

CURVE_TITLE_WIDTH, NAME_WIDTH = 34, 30
CELL_INCHES, CHARACTER_INCHES, MIN_INCHES = 0.44, 0.075, 3.0  # of a confusion
LONG_ID = 3  # characters; longer ones stand upright below a confusion

STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#333333",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "edgetag",  # element ids that are the same every time
    "xtick.color": GREY,
    "ytick.color": GREY,
}
styled = matplotlib.rc_context(STYLE)


def coarse_names(taxonomy: Taxonomy) -> tuple[str, ...]:
    """The categories as drawings and tables call them, e.g. `5 alert signal`."""
    return tuple(f"{category.id} {category.name.replace('-', ' ')}" for category in taxonomy.categories)


def stroke(index: int) -> tuple[str, str]:
    """Colour and dashes (SVG notation, "" for a solid line) of the line with this index."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def swatch(index: int) -> bytes:
    """A short piece of the line with this index, for a legend."""
    colour, dashes = stroke(index)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="28" height="10">'
        f'<path d="M0 5H28" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/></svg>'
    ).encode()


@styled
def precision_recall(title: str, lines: Sequence[Sequence[Curve]], prevalence: float) -> bytes:
    """One class: a colour per system, a line per run, over lines of equal F1 and the share of positives."""
    figure = Figure(figsize=(2.9, 2.55), layout="constrained")
    title = textwrap.fill(_plain(title), CURVE_TITLE_WIDTH)
    axes = figure.add_subplot(title=title, xlabel="recall", ylabel="precision")
    _iso_f1(axes)
    axes.axhline(prevalence, color=GREY, linewidth=0.8, linestyle=(0, (2, 2)))
    for index, curves in enumerate(lines):
        colour, dashes = stroke(index)
        pattern = (0, [float(length) for length in dashes.split()]) if dashes else "solid"
        for curve in curves:
            axes.plot(*curve, color=colour, linestyle=pattern, linewidth=1.4, alpha=1 / len(curves) ** 0.4)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    return _svg(figure)


def _iso_f1(axes: Axes) -> None:
    for f1 in ISO_F1:
        recall = np.linspace(f1 / (2 - f1), 1, 60)
        axes.plot(recall, f1 * recall / (2 * recall - f1), color=PALE, linewidth=0.7, zorder=0)
        axes.text(1.025, f1 / (2 - f1), f"{f1:g}", color="#808080", fontsize=6.5, va="center")


@styled
def training(net: str, epochs: Sequence[Epoch]) -> bytes:
    """One net over its epochs: losses, validation micro AUPRC (where measured) and learning rate."""
    judged = any(epoch.coarse_micro_auprc is not None for epoch in epochs)
    ratios = (3, 2, 1.2) if judged else (3, 1.2)
    figure = Figure(figsize=(3.4, 4.3 if judged else 3.2), layout="constrained")
    panels = figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    _series(panels[0], epochs, (("training", "loss"), ("validation", "validation_loss")), "loss")
    if judged:
        levels = (("coarse", "coarse_micro_auprc"), ("fine", "fine_micro_auprc"))
        _series(panels[1], epochs, levels, "micro AUPRC")
    panels[-1].step(
        [epoch.epoch for epoch in epochs], [epoch.rate for epoch in epochs], color=GREY, where="mid"
    )
    scale = "log" if any(epoch.rate > 0 for epoch in epochs) else "linear"
    panels[-1].set(yscale=scale, ylabel="rate", xlabel="epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_title(_plain(net))
    _marks(panels, epochs)
    return _svg(figure)


def _series(axes: Axes, epochs: Sequence[Epoch], fields: Sequence[tuple[str, str]], label: str) -> None:
    for (name, field), colour in zip(fields, COLOURS, strict=False):
        points = [(epoch.epoch, value) for epoch in epochs if (value := getattr(epoch, field)) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), color=colour, linewidth=1.4, marker=".", markersize=4, label=name
            )
    axes.set_ylabel(label)
    axes.legend(loc="best", handlelength=1.4)


def _marks(panels: Sequence[Axes], epochs: Sequence[Epoch]) -> None:
    """Vertical lines where the schedule acted: a restart is drawn through, a reduction dotted."""
    for epoch in epochs:
        for axes in panels:
            if epoch.event == "restarted":
                axes.axvline(epoch.epoch, color=COLOURS[3], linewidth=1.1, zorder=0)
            elif epoch.event == "reduced":
                axes.axvline(epoch.epoch, color="#b0b0b0", linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)


def confusion_shares(
    truth: np.ndarray, scores: np.ndarray, taxonomy: Taxonomy
) -> tuple[np.ndarray, np.ndarray]:
    """Which coarse class is taken for present in the presence of which other.

    On the diagonal the recall: of the recordings in which class i is present, the share in which it scores
    at least 0.5. Elsewhere false alarms: of those in which i is present *and j is not*, the share in which
    j scores at least 0.5. So several true classes in one recording are no confusion.

    Args:
        truth: (n, tags), 1 present, 0 absent, NaN not labelled (counted nowhere).
        scores: (n, tags).

    Returns:
        (c, c) shares in [0, 1], NaN where no recording qualifies, and (c,) recordings with each of c classes.
    """
    columns = taxonomy.columns["coarse"]
    truth, named = truth[:, columns], scores[:, columns] >= F1_THRESHOLD
    present, absent = (truth == 1).astype(float), (truth == 0).astype(float)
    hits, counted = present.T @ (absent * named), present.T @ absent
    np.fill_diagonal(hits, (present * named).sum(axis=0))
    np.fill_diagonal(counted, present.sum(axis=0))
    shares = np.divide(hits, counted, out=np.full_like(hits, np.nan), where=counted > 0)
    return shares, present.sum(axis=0).astype(int)


@styled
def confusion(title: str, shares: np.ndarray, n_present: np.ndarray, taxonomy: Taxonomy) -> bytes:
    """`confusion_shares` in percent: recalls in blue on the diagonal, false alarms in orange beside it."""
    n = len(n_present)
    names = [f"{name} ({count})" for name, count in zip(coarse_names(taxonomy), n_present, strict=True)]
    labels = [textwrap.fill(_plain(name), NAME_WIDTH) for name in names]
    id_characters = max(map(len, taxonomy.coarse_ids))
    upright = id_characters > LONG_ID
    figure, axes = _square(title, n, labels, id_characters if upright else 1)
    for row, column in np.ndindex(shares.shape):
        _share(axes, row, column, shares[row, column], n_present[row])
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), xlabel="named", ylabel="present (recordings)")
    axes.set_xticks(range(n), taxonomy.coarse_ids, rotation="vertical" if upright else "horizontal")
    axes.set_yticks(range(n), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure)


def _square(title: str, n: int, labels: Sequence[str], id_characters: int) -> tuple[Figure, Axes]:
    """Axes of n by n cells, with as much room around them as names, ids and title take."""
    cells, beside = n * CELL_INCHES, 0.4 + CHARACTER_INCHES * max(map(len, "\n".join(labels).split("\n")))
    width = max(MIN_INCHES, beside + cells + 0.1)
    lines = textwrap.wrap(title, min(TITLE_WIDTH, int(width / CHARACTER_INCHES) - 2))
    below, above = 0.4 + CHARACTER_INCHES * id_characters, 0.15 + 0.17 * len(lines) + 0.2 * max(0, 3 - n)
    height = below + cells + above
    figure = Figure(figsize=(width, height))
    figure.suptitle(_plain("\n".join(lines)), x=0.01, y=1 - 0.05 / height, ha="left", va="top", size=9.5)
    return figure, figure.add_axes((beside / width, below / height, cells / width, cells / height))


def _share(axes: Axes, row: int, column: int, share: float, n_present: int) -> None:
    colours = HITS if row == column else FALSE_ALARMS
    empty = np.isnan(share)
    axes.add_patch(
        Rectangle(
            (column - 0.5, row - 0.5), 1, 1, facecolor=EMPTY if empty else colours(share), edgecolor="white"
        )
    )
    if not empty:
        colour = "white" if share > DARK else "#222222"
        weight = "bold" if row == column else "normal"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, weight=weight)
    elif row == column:
        axes.text(column, row, "–" if n_present else "none", ha="center", va="center", color=GREY, fontsize=7)


def _plain(text: str) -> str:
    """Text without mathematics: names come from files."""
    return text.replace("$", r"\$")


def _svg(figure: Figure) -> bytes:
    """The drawing alone: no prolog, no metadata, so that the same figures give the same bytes."""
    file = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(
        file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = file.getvalue().decode()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL).encode()
