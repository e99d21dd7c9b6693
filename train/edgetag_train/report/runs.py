"""What a run directory says of itself: recipe, provenance, history and evaluations.

```
RUN/recipe.json       the whole recipe        RUN/history.jsonl                   one object an epoch and net
RUN/taxonomy.yaml     whose tags
RUN/provenance.json   data, versions, device  RUN/evaluation/<split>/<system>.npz filenames, truth, scores
```
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.fit.run import EVALUATION, read_run_taxonomy
from edgetag_train.predictions import figures

T = TypeVar("T")


class EmbeddingOrigin(msgspec.Struct, frozen=True):
    """Which embedding a run's nets took, where its weights are from, and their hash."""

    kind: str
    source: str
    sha256: str | None = None

    @property
    def is_stand_in(self) -> bool:
        """Whether the weights are random: right in shape, without any knowledge of sound."""
        return "random" in f"{self.kind} {self.source}".lower()


class DataOrigin(msgspec.Struct, frozen=True):
    """What a run was trained on and watched with: counts by kind (recordings, scenes, windows), and words.

    Attributes:
        digest: of the training windows, which other seeds augment and mix otherwise.
        validation: says under `from` what the windows are made of.
    """

    digest: str
    train: dict[str, int | str] = {}
    validation: dict[str, int | str] = {}

    @property
    def watched_recordings(self) -> bool:
        """Whether the best epochs were chosen on recordings of the split `validate`."""
        return "validate" in str(self.validation.get("from"))

    @property
    def watched_scenes(self) -> bool:
        """Whether they were chosen on scenes of held-out clips."""
        return "scenes" in str(self.validation.get("from"))


class Provenance(msgspec.Struct, frozen=True):
    """Where a run comes from; None where it was not recorded."""

    edgetag: str
    torch: str
    device: str
    started: str
    data: DataOrigin
    git: str | None = None
    overrides: list[str] = []
    embedding: EmbeddingOrigin | None = None
    taxonomy: dict[str, str] | None = None


class Epoch(msgspec.Struct, frozen=True):
    """One pass of one net; None where nothing was measured. `rate` is the learning rate."""

    net: str
    epoch: int
    rate: float
    seconds: float
    loss: float | None = None
    validation_loss: float | None = None
    coarse_micro_auprc: float | None = None
    fine_micro_auprc: float | None = None
    event: str | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A system's scores on one split. Shapes: filenames n, truth and scores [n, tags] (NaN not labelled)."""

    split: str
    system: str
    filenames: tuple[str, ...]
    truth: np.ndarray
    scores: np.ndarray
    figures: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """A run directory, read."""

    path: Path
    recipe: dict[str, Any]
    taxonomy: Taxonomy
    provenance: Provenance
    history: tuple[Epoch, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def seconds(self) -> float:
        """How long all epochs of all nets took together."""
        return sum(epoch.seconds for epoch in self.history)

    @property
    def but_for_seeds(self) -> str:
        """What two runs have in common that differ in nothing but their seeds."""
        origin = self.provenance.embedding
        return json.dumps(
            [
                _without_seeds(self.recipe),
                origin and [origin.kind, origin.is_stand_in or origin.sha256],
                [self.provenance.data.train, self.provenance.data.validation],
            ],
            sort_keys=True,
        )


def read_run(path: Path) -> Run:
    """Read a run directory with its evaluations.

    Raises:
        InputError: a file is missing or damaged, or the run was never evaluated.
    """
    recipe = _decode(path / "recipe.json", dict[str, Any])
    if not isinstance(recipe.get("name"), str) or not isinstance(recipe.get("seed"), int):
        raise InputError(f"{path / 'recipe.json'}: a recipe has a name and a seed")
    files = sorted((path / EVALUATION).glob("*/*.npz"))
    if not files:
        raise InputError(f"{path}: the run was not evaluated; run `edgetag train evaluate {path}`")
    provenance = _decode(path / "provenance.json", Provenance)
    taxonomy = read_run_taxonomy(path, provenance.taxonomy)
    return Run(
        path=path,
        recipe=recipe,
        taxonomy=taxonomy,
        provenance=provenance,
        history=tuple(_decode(path / "history.jsonl", list[Epoch], lines=True)),
        evaluations=tuple(_evaluation(file, path, taxonomy) for file in files),
    )


def _decode(path: Path, kind: type[T], *, lines: bool = False) -> T:
    try:
        content = path.read_bytes()
        if lines:
            content = b"[" + b",".join(line for line in content.splitlines() if line.strip()) + b"]"
        return msgspec.json.decode(content, type=kind)
    except FileNotFoundError:
        raise InputError(f"{path} is missing; is {path.parent} a run of `edgetag train fit`?") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged: {error}") from error


def _evaluation(path: Path, run: Path, taxonomy: Taxonomy) -> Evaluation:
    split, system = path.parent.name, path.stem
    try:
        with np.load(path, allow_pickle=False) as file:
            filenames, truth, scores = file["filenames"].tolist(), file["truth"], file["scores"]
        found = figures(filenames, scores, filenames, truth, taxonomy, split=split)
    except (OSError, KeyError, ValueError, EOFError, IndexError, zipfile.BadZipFile, InputError) as error:
        raise InputError(f"{path}: damaged ({error}); run `edgetag train evaluate {run}` again") from error
    return Evaluation(split, system, tuple(filenames), truth, scores, found)


def _without_seeds(value: Any) -> Any:  # noqa: ANN401 – whatever JSON holds
    if isinstance(value, dict):
        return {key: _without_seeds(inner) for key, inner in value.items() if key not in ("seed", "name")}
    return value
