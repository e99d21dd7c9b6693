"""The rows of the report: runs that differ in nothing but their seeds are one system."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.metrics import Level
from edgetag_train.report.runs import Evaluation, Run

PAPER_SYSTEMS = {
    "cnn_vggish1": "CNN+VGGish1",
    "cnn_vggish2": "CNN+VGGish2",
    "hierarchical1": "Hierarchical1",
    "hierarchical2": "Hierarchical2",
    "hierarchical3": "Hierarchical3",
}
TITLES = PAPER_SYSTEMS | {"cnn1": "CNN1", "cnn2": "CNN2"}
WITHOUT_EMBEDDING = ("_no_embedding", "_cnn")  # how the slugs of such variants end
EMBEDDINGS = {"vggish": "VGGish"}


@dataclass(frozen=True, eq=False)
class System:
    """One row of the tables: the evaluations on one split of runs that differ in nothing but their seeds."""

    slug: str
    title: str
    note: str
    runs: tuple[Run, ...]
    evaluations: tuple[Evaluation, ...]

    def values(self, level: Level, metric: str) -> list[float]:
        """The metric of every run that has it."""
        found = [evaluation.figures[level] for evaluation in self.evaluations]
        return [figures[metric] for figures in found if figures and figures[metric] is not None]

    def class_values(self, level: Level, coarse_id: str) -> list[float]:
        """The class AUPRC of every run that has it."""
        found = [evaluation.figures[level] for evaluation in self.evaluations]
        return [
            figures["class_auprc"][coarse_id]
            for figures in found
            if figures and coarse_id in figures["class_auprc"]
        ]

    def pooled(self) -> tuple[np.ndarray, np.ndarray]:
        """Truth and scores of all runs below one another."""
        truth = np.concatenate([evaluation.truth for evaluation in self.evaluations])
        return truth, np.concatenate([evaluation.scores for evaluation in self.evaluations])

    @property
    def taxonomy(self) -> Taxonomy:
        """Whose tags it tells: the same in all its runs."""
        return self.runs[0].taxonomy

    @property
    def has_coarse(self) -> bool:
        """Whether curves and confusion of the coarse level can be drawn."""
        return all(evaluation.figures["coarse"] for evaluation in self.evaluations)


def systems_on(runs: Sequence[Run], split: str) -> list[System]:
    """The systems evaluated on a split, in the paper's order, then by name."""
    seeds: dict[tuple[str, str], list[tuple[Run, Evaluation]]] = defaultdict(list)
    for run in runs:
        for evaluation in run.evaluations:
            if evaluation.split == split:
                seeds[evaluation.system, run.but_for_seeds].append((run, evaluation))
    slugs = [slug for slug, _ in seeds]
    systems = [_system(slug, pairs, alone=slugs.count(slug) == 1) for (slug, _), pairs in seeds.items()]
    return sorted(systems, key=lambda system: (_system_order(system.slug), system.title, system.note))


def _system(slug: str, pairs: Sequence[tuple[Run, Evaluation]], *, alone: bool) -> System:
    runs, evaluations = zip(*pairs, strict=True)
    notes = [embedding_label(runs[0])]
    if len(runs) > 1:
        notes.append(f"{len(runs)} runs")
    if not alone:
        notes.append(", ".join(run.path.name for run in runs))
    return System(slug, _title(slug), " · ".join(notes), runs, evaluations)


def same_coarse(systems: Sequence[System]) -> list[list[System]]:
    """Systems by their coarse scores: those on one root net say the same there, and are drawn once."""
    groups: dict[bytes, list[System]] = defaultdict(list)
    for system in systems:
        truth, scores = system.pooled()
        columns = system.taxonomy.columns["coarse"]
        groups[truth[:, columns].tobytes() + scores[:, columns].tobytes()].append(system)
    return list(groups.values())


def group_name(group: Sequence[System]) -> str:
    """What one drawing of several systems is called."""
    return f"{' = '.join(system.title for system in group)} ({group[0].note})"


def embedding_label(run: Run) -> str:
    """The embedding in a word or two: a stand-in is never called by the name of what it stands in for."""
    origin = run.provenance.embedding
    if origin is None:
        return "no embedding"
    kind = origin.kind.removesuffix("-random")
    kind = EMBEDDINGS.get(kind, kind)
    return f"random stand-in for {kind}" if origin.is_stand_in else kind


def _title(slug: str) -> str:
    base = slug
    for ending in WITHOUT_EMBEDDING:
        base = base.removesuffix(ending)
    return TITLES.get(slug) or TITLES.get(base, slug)


def _system_order(slug: str) -> int:
    return list(TITLES).index(slug) if slug in TITLES else len(TITLES)
