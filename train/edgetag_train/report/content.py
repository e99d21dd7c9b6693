"""What the report says: tables, drawings and their explanations, made from runs and published figures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.files import writing
from edgetag_train.metrics import Level, curves
from edgetag_train.paper import LevelFigures, Published, Table4, read_table4
from edgetag_train.predictions import LEVELS
from edgetag_train.report import plots
from edgetag_train.report.page import (
    NOTHING,
    Block,
    Cell,
    Facts,
    Gallery,
    Heading,
    Page,
    Picture,
    Table,
    Text,
    pictures,
    to_html,
    to_markdown,
)
from edgetag_train.report.runs import Run, read_run
from edgetag_train.report.systems import (
    PAPER_SYSTEMS,
    System,
    embedding_label,
    group_name,
    same_coarse,
    systems_on,
)
from edgetag_train.taxonomy import described

METRICS = {"micro_auprc": "micro AUPRC", "micro_f1": "micro F1", "macro_auprc": "macro AUPRC"}
PUBLISHED_SPLIT = "validate"
SCENES = "scenes"
SPLITS = {
    "validate": "real street recordings; no training recording comes from their sensors",
    SCENES: "scenes mixed from clips that were held out of training; labels are those of the clips",
}

NOT_PUBLISHED = (
    "The tags are those of the taxonomy {}. The paper's Table 4 is of SONYC-UST's, so nothing that was "
    "published stands beside these figures."
)
CURVE_CAPTION = (
    "Precision over recall, coarse level, from the same counts as the figures. As the challenge defines it, "
    "a curve begins at (0, 1) and ends at (1, 0), and the area under it is the class AUPRC, but for the "
    "order of ties: by threshold here, by the official evaluator's sort in the tables. Grey lines: equal F1. "
    "Dotted: the share of recordings with the class, which is the precision of guessing. In brackets: how "
    "many recordings have the class; one that none has gets no curve."
)
CONFUSION_CAPTION = (
    "Confusion between coarse classes, in percent, at a threshold of 0.5. A recording may hold several "
    "classes, so naming two is not wrong in itself. Diagonal, blue: of the recordings in which the "
    "row's class is present, how many were named with it (recall). Elsewhere, orange: of the "
    "recordings in which the row's class is present and the column's is not, how many were named with "
    "the column's all the same (false alarms). “none”: no recording has the class. Grey: no recording "
    "qualifies. Several runs are pooled and counted together."
)


def write_report(runs: Sequence[Path], out: Path) -> None:
    """Write a page on evaluated runs: Table 4 side by side, classes, curves, confusion, training, provenance.

    Runs on other tags than SONYC-UST's are set beside each other only.

    Args:
        runs: run directories of `edgetag train fit`, evaluated; those that differ in nothing but their seeds
            become one row with mean and range.
        out: a `.html` file, whole in itself, or a `.md` file with its pictures in `<stem>_files/` beside it.

    Raises:
        InputError: no run, another kind of file, a run that is damaged or was not evaluated, or runs of
            different taxonomies.
        OutputError: the report cannot be written.
    """
    if out.suffix not in (".html", ".md"):
        raise InputError(f"{out}: a report is a .html or a .md file")
    if not runs:
        raise InputError("a report needs at least one run")
    read = [read_run(path) for path in {path.resolve(): path for path in runs}.values()]
    for other in read:
        if other.taxonomy != read[0].taxonomy:
            raise InputError(
                f"{read[0].path} tells the tags of {described(read[0].taxonomy)}, {other.path} those of "
                f"{described(other.taxonomy)}; a report sets runs of one taxonomy side by side"
            )
    page = make_page(read, read_table4() if read[0].taxonomy == SONYC_UST else None)
    with writing(out):
        _write(page, out)


def _write(page: Page, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".html":
        out.write_text(to_html(page), encoding="utf-8")
        return
    folder = out.with_name(f"{out.stem}_files")
    folder.mkdir(exist_ok=True)
    for picture in pictures(page):
        (folder / f"{picture.name}.svg").write_bytes(picture.svg)
    out.write_text(to_markdown(page, folder.name), encoding="utf-8")


def make_page(runs: Sequence[Run], published: Table4 | None) -> Page:
    """The whole report, before it takes a form; `published` is None where nothing was, of such tags."""
    splits = sorted({found.split for run in runs for found in run.evaluations}, key=_split_order)
    blocks = [
        Text(
            "Figures are those of DCASE 2019 Task 5, in [0, 1], more is better: the area under precision "
            "over recall (AUPRC) and F1 at 0.5, over all tags (micro) or as the mean of categories (macro)."
        ),
        *([] if published else [Text(NOT_PUBLISHED.format(runs[0].taxonomy.name), "note")]),
        *_warnings(runs, published),
    ]
    for split in splits:
        compared = published if split == PUBLISHED_SPLIT else None
        blocks += _split_section(split, systems_on(runs, split), compared)
    if published is None:
        title = f"Urban sound tagging: runs on the tags of {runs[0].taxonomy.name}"
        return Page(title, [*blocks, *_run_section(runs)])
    return Page(
        "Urban sound tagging: runs and the paper's Table 4",
        [*blocks, *_sources(published), *_run_section(runs)],
    )


# -- what must be known before a figure is compared ---------------------------------------------------------


def _warnings(runs: Sequence[Run], published: Table4 | None) -> Iterator[Text]:
    if any(run.provenance.embedding and run.provenance.embedding.is_stand_in for run in runs):
        yield Text(
            "Rows marked “random stand-in” took their embedding from a net with random weights, not from "
            "VGGish. They show that the system works, not what VGGish would add.",
            "warning",
        )
    systems = published.systems.values() if published else ()
    expected = {system.recordings for system in systems if system.recordings}
    found = {len(item.filenames) for run in runs for item in run.evaluations if item.split == PUBLISHED_SPLIT}
    if found and expected and found != expected:
        yield Text(
            f"Published figures were measured on {_range(expected)} recordings, ours on {_range(found)}, and "
            "what each was trained on stands in the sources and the runs below: the columns show an order of "
            "magnitude, not a reproduction.",
            "warning",
        )
    if any(run.provenance.data.watched_recordings for run in runs):
        yield Text(
            "Checkpoints were chosen on recordings of the validate split, as in the paper, so the figures on "
            "that split flatter.",
            "warning",
        )
    if any(run.provenance.data.watched_scenes and _has_split(run, SCENES) for run in runs):
        yield Text(
            "Checkpoints were chosen on other scenes of the same held-out clips, so the figures on "
            f"“{SCENES}” flatter a little.",
            "warning",
        )


def _has_split(run: Run, split: str) -> bool:
    return any(evaluation.split == split for evaluation in run.evaluations)


# -- one split ----------------------------------------------------------------------------------------------


def _split_section(split: str, systems: Sequence[System], published: Table4 | None) -> Iterator[Block]:
    sizes = {len(evaluation.filenames) for system in systems for evaluation in system.evaluations}
    what = SPLITS.get(split, "recordings")
    yield Heading(f"Split “{split}”")
    yield Text(f"{_range(sizes)} recordings: {what}.")
    if len({frozenset(item.filenames) for system in systems for item in system.evaluations}) > 1:
        yield Text("The runs were not evaluated on the same recordings of this split.", "warning")
    yield _table_4(split, systems, published)
    yield Text(_reading(systems, published), "note")
    for level in LEVELS:
        if any(system.values(level, "micro_auprc") for system in systems):
            yield _class_table(level, systems)
    if drawn := [system for system in systems if system.has_coarse]:
        yield _curve_gallery(split, drawn)
        yield _confusion_gallery(split, drawn)


def _table_4(split: str, systems: Sequence[System], published: Table4 | None) -> Table:
    """Ours beside what was published of the split, if anything was."""
    best = {
        (level, metric): _best(system.values(level, metric) for system in systems)
        for level in LEVELS
        for metric in METRICS
    }
    rows = [_table_4_row(system, published, best) for system in systems]
    if published is not None:
        rows = _in_paper_order(systems, rows, published)
    kinds = [Cell("published"), Cell("ours")] if published is not None else [Cell("ours")]
    name = "Table 4" if systems[0].taxonomy == SONYC_UST else "Figures"
    return Table(
        caption=f"{name} on “{split}”: coarse and fine level",
        groups=[(f"{level} {name}", len(kinds)) for level in LEVELS for name in METRICS.values()],
        columns=[Cell("system"), *(kinds * (len(LEVELS) * len(METRICS)))],
        rows=rows,
    )


def _in_paper_order(
    systems: Sequence[System], rows: Sequence[list[Cell]], published: Table4
) -> list[list[Cell]]:
    """The paper's systems first, those without a run among them; then ours; then points of reference."""
    ours = list(zip([system.slug for system in systems], rows, strict=True))
    ordered = []
    for slug, title in PAPER_SYSTEMS.items():
        found = [row for other, row in ours if other == slug]
        ordered += found or [_published_row(Cell(title, "no run"), published.systems.get(slug))]
    ordered += [row for slug, row in ours if slug not in PAPER_SYSTEMS]
    return ordered + [_published_row(Cell(item.name, item.data), item) for item in published.references]


def _table_4_row(system: System, published: Table4 | None, best: dict[tuple[Level, str], str]) -> list[Cell]:
    cells = [Cell(system.title, system.note)]
    for (level, metric), top in best.items():
        if published is not None:
            cells.append(_published_cell(published.systems.get(system.slug), level, metric))
        cells.append(_mean(system.values(level, metric), top))
    return cells


def _published_row(name: Cell, published: Published | None) -> list[Cell]:
    pairs = ((_published_cell(published, level, metric), Cell("")) for level in LEVELS for metric in METRICS)
    return [name, *(cell for pair in pairs for cell in pair)]


def _published_cell(published: Published | None, level: Level, metric: str) -> Cell:
    value = getattr(getattr(published, level, LevelFigures()), metric)
    return Cell(NOTHING if value is None else f"{value:.3f}", quiet=True)


def _reading(systems: Sequence[System], published: Table4 | None) -> str:
    """The small print under Table 4."""
    reasons = {
        why for system in systems for item in system.evaluations for why in item.figures["reasons"].values()
    }
    lines = ["Best of ours in bold. Several runs: mean, and the range over seeds below it."]
    if published is not None:
        lines.append(f"Published: {published.note}")
        lines.append("A dash under “published”: no source at hand; paper_table4.yaml takes the figure.")
    lines += [f"A dash under “ours”: {why}." for why in sorted(reasons)]
    return " ".join(lines)


def _class_table(level: Level, systems: Sequence[System]) -> Table:
    taxonomy, truth = systems[0].taxonomy, systems[0].evaluations[0].truth
    rows = []
    best = {
        coarse: _best(system.class_values(level, coarse) for system in systems)
        for coarse in taxonomy.coarse_ids
    }
    for system in systems:
        cells = (_mean(system.class_values(level, coarse), top) for coarse, top in best.items())
        rows.append([Cell(system.title, system.note), *cells])
    head = [
        Cell(name, _positives(truth, level, coarse, taxonomy))
        for name, coarse in zip(plots.coarse_names(taxonomy), taxonomy.coarse_ids, strict=True)
    ]
    caption = f"AUPRC by category, {level} level (below the name: recordings with it)"
    return Table(caption, [Cell("system"), *head], rows)


def _positives(truth: np.ndarray, level: Level, coarse_id: str, taxonomy: Taxonomy) -> str:
    ids = [tag.id for tag in taxonomy.category(coarse_id).fine] if level == "fine" else [coarse_id]
    present = truth[:, [taxonomy.index[tag_id] for tag_id in ids]] == 1
    return str(count) if (count := int(present.any(axis=1).sum())) else "no positives"


# -- drawings -----------------------------------------------------------------------------------------------


def _curve_gallery(split: str, systems: Sequence[System]) -> Gallery:
    taxonomy, groups = systems[0].taxonomy, same_coarse(systems)
    found = [
        [curves(item.truth, item.scores, "coarse", taxonomy) for item in group[0].evaluations]
        for group in groups
    ]
    truth = groups[0][0].evaluations[0].truth
    drawings = [
        Picture(
            f"{split}-curve-{coarse}",
            f"Precision over recall of {name} on {split}",
            plots.precision_recall(
                f"{name} ({_positives(truth, 'coarse', coarse, taxonomy)})",
                [[curve[coarse] for curve in run_curves if coarse in curve] for run_curves in found],
                _prevalence(groups[0][0], coarse),
            ),
        )
        for name, coarse in zip(plots.coarse_names(taxonomy), taxonomy.coarse_ids, strict=True)
    ]
    legend = [
        (Picture(f"{split}-line-{index}", "", plots.swatch(index)), group_name(group))
        for index, group in enumerate(groups)
    ]
    return Gallery(drawings, CURVE_CAPTION, legend)


def _confusion_gallery(split: str, systems: Sequence[System]) -> Gallery:
    taxonomy = systems[0].taxonomy
    drawings = [
        Picture(
            f"{split}-confusion-{index}",
            f"Confusion between coarse classes of {group_name(group)} on {split}",
            plots.confusion(
                group_name(group), *plots.confusion_shares(*group[0].pooled(), taxonomy), taxonomy
            ),
        )
        for index, group in enumerate(same_coarse(systems))
    ]
    return Gallery(drawings, CONFUSION_CAPTION, wide=True)


def _prevalence(system: System, coarse_id: str) -> float:
    truth = system.evaluations[0].truth[:, system.taxonomy.index[coarse_id]]
    labelled = truth[~np.isnan(truth)]
    return float(labelled.mean()) if labelled.size else 0.0


# -- sources and runs ---------------------------------------------------------------------------------------


def _sources(published: Table4) -> Iterator[Block]:
    yield Heading("Published figures: data and sources")
    yield Text(f"What is called published here: {published.note}")
    known = [(PAPER_SYSTEMS.get(slug, slug), item) for slug, item in published.systems.items()]
    known += [(item.name, item) for item in published.references]
    yield Facts([(name, f"{item.data}. Source: {item.source}.") for name, item in known])
    if missing := [title for slug, title in PAPER_SYSTEMS.items() if slug not in published.systems]:
        yield Text(f"No source at hand: {', '.join(missing)}.", "note")


def _run_section(runs: Sequence[Run]) -> Iterator[Block]:
    yield Heading("Runs")
    yield Text(
        "Each net's training: loss and, where it was watched, validation loss; micro AUPRC on the validation "
        "windows; learning rate. A vertical line marks a restart, a dotted one a reduced rate."
    )
    for number, run in enumerate(runs, start=1):
        yield Heading(run.path.name, 3)
        yield Facts(_facts(run))
        nets = dict.fromkeys(epoch.net for epoch in run.history)
        yield Gallery(
            [
                Picture(
                    f"run-{number}-net-{index}",
                    f"Training of {net} in {run.path.name}",
                    plots.training(net, [epoch for epoch in run.history if epoch.net == net]),
                )
                for index, net in enumerate(nets, start=1)
            ]
        )


def _facts(run: Run) -> list[tuple[str, str]]:
    recipe, origin = run.recipe, run.provenance
    branch = recipe.get("branch")
    nets = f"root {_net(recipe['root'])}" if isinstance(recipe.get("root"), dict) else "root"
    return [
        ("Recipe", f"{recipe['name']}, seed {recipe['seed']}"),
        ("Overrides", ", ".join(origin.overrides) or "none"),
        ("Tags", described(run.taxonomy)),
        ("Nets", nets + (f"; branches {_net(branch)}" if isinstance(branch, dict) else "; no branches")),
        ("Embedding", _embedding_origin(run)),
        ("Trained on", _counts(origin.data.train)),
        ("Validated on", _counts(origin.data.validation)),
        ("Data digest", origin.data.digest),
        ("Took", f"{_duration(run.seconds)} on {origin.device}, begun {origin.started}"),
        ("Versions", f"edgetag {origin.edgetag}, torch {origin.torch}, git {origin.git or 'not known'}"),
    ]


def _net(fit: dict[str, Any]) -> str:
    parts = [f"Table {fit.get('table', '?')}"]
    parts += [str(fit[key]) for key in ("fusion", "optimiser") if key in fit]
    return ", ".join(parts)


def _embedding_origin(run: Run) -> str:
    origin = run.provenance.embedding
    if origin is None:
        return "none"
    fusion = f", {run.recipe['fusion']}" if "fusion" in run.recipe else ""
    digest = f", sha256 {origin.sha256}" if origin.sha256 else ""
    return f"{embedding_label(run)}{fusion}: {origin.source}{digest}"


# -- words and figures --------------------------------------------------------------------------------------


def _split_order(split: str) -> tuple[int, str]:
    return (list(SPLITS).index(split) if split in SPLITS else len(SPLITS), split)


def _mean(values: Sequence[float], top: str) -> Cell:
    if not values:
        return Cell()
    text = f"{np.mean(values):.3f}"
    note = f"{min(values):.3f}–{max(values):.3f}" if len(values) > 1 else ""
    return Cell(text, note, best=text == top)


def _best(found: Iterable[Sequence[float]]) -> str:
    """The highest mean as it is printed; nothing is best where there is nothing to compare."""
    means = [float(np.mean(values)) for values in found if values]
    return f"{max(means):.3f}" if len(means) > 1 else ""


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


def _counts(counts: dict[str, int | str]) -> str:
    """`89 recordings, 1,200 scenes`; words as they are."""
    parts = [
        f"{value:,} {kind}" if isinstance(value, int) else f"{kind} {value}" for kind, value in counts.items()
    ]
    return ", ".join(parts) or "nothing"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
