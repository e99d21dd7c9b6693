"""A run directory: what it was begun with, and the nets it holds.

It holds

- `recipe.json`, the whole recipe, `taxonomy.yaml`, whose tags it tells, and `provenance.json`, what it was
  run on and with;
- `root-coarse.pt` and `root-fine.pt`, the root's best checkpoints (`root.pt`, where the recipe keeps the
  running mean), and `branch-<id>.pt`; each with its recipe and provenance;
- `history.jsonl`, a line per epoch;
- `<net>.partial`, the whole state of the net that was being fitted when the run stopped;
- `finished.json`, once all nets are fitted: those left out, for want of examples;
- `evaluation/<split>/<system>.npz`, truth and scores, once it has been evaluated.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.embedding import Embedding
from edgetag_train.fit import checkpoint as states
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.recipe import Fit, Recipe
from edgetag_train.taxonomy import FILE, described, identity, read_taxonomy

ROOT = "root"
FINISHED = "finished.json"
EVALUATION = "evaluation"
_BRANCH = "branch-"
_LAST_LAYER = "classifier.7"


@dataclass(frozen=True)
class Run:
    """A run directory and what it was begun with."""

    path: Path
    recipe: Recipe
    taxonomy: Taxonomy
    provenance: dict[str, Any]

    def outputs(self, net: str) -> tuple[str, ...]:
        """Tag ids of one of its nets' outputs."""
        return outputs(net, self.taxonomy)

    def net_path(self, name: str) -> Path:
        return self.path / f"{name}.pt"


class _StatedData(msgspec.Struct):
    digest: str


class _StatedEmbedding(msgspec.Struct):
    kind: str
    source: str
    sha256: str


class _Stated(msgspec.Struct):
    """What a run's provenance must say for it to be gone on with, scored or exported."""

    data: _StatedData
    embedding: _StatedEmbedding | None
    taxonomy: dict[str, str] | None = None
    """Absent in runs of before there were others than SONYC-UST."""


def read_run(path: Path) -> Run:
    """
    Raises:
        InputError: `path` is no run directory, or its taxonomy is not the one it was begun with.
    """
    try:
        recipe = msgspec.json.decode((path / "recipe.json").read_bytes(), type=Recipe)
        provenance = msgspec.json.decode((path / "provenance.json").read_bytes(), type=dict)
        stated = msgspec.convert(provenance, _Stated)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path} is no run directory ({error}); make one with: edgetag train fit") from error
    return Run(path, recipe, read_run_taxonomy(path, stated.taxonomy), provenance)


def read_run_taxonomy(path: Path, stated: dict[str, str] | None) -> Taxonomy:
    """Whose tags a run tells.

    Args:
        path: the run.
        stated: the taxonomy's `identity` as its provenance has it, None in a run of before it was noted.

    Raises:
        InputError: the run's `taxonomy.yaml` is not that one.
    """
    if stated is None:
        return SONYC_UST
    taxonomy = read_taxonomy(path / FILE)
    if identity(taxonomy) != stated:
        raise InputError(f"{path / FILE} is not the taxonomy that {path} was begun with; restore it")
    return taxonomy


def settings_of(recipe: Recipe, net: str) -> Fit:
    """How a net (`root`, `root-coarse`, `branch-1`) is trained; branches only where the recipe has them."""
    settings = recipe.root if net.startswith(ROOT) else recipe.branch
    assert settings is not None
    return settings


def coarse_id(branch: str) -> str:
    """The category of a branch: `branch-1` refines `1`."""
    return branch.removeprefix(_BRANCH)


def outputs(net: str, taxonomy: Taxonomy) -> tuple[str, ...]:
    """Tag ids of a net's outputs: every tag for `root`, a category's fine tags for `branch-<id>`."""
    if net.startswith(ROOT):
        return taxonomy.ids
    return tuple(tag.id for tag in taxonomy.category(coarse_id(net)).fine)


def net_names(recipe: Recipe, taxonomy: Taxonomy) -> tuple[str, ...]:
    """`root`, then the branches in taxonomy order, if the recipe has any."""
    if recipe.branch is None:
        return (ROOT,)
    ids = (id for id in taxonomy.branch_ids if id not in recipe.without_branches)
    return (ROOT, *(f"{_BRANCH}{id}" for id in ids))


def checkpoints(recipe: Recipe, net: str) -> tuple[str, ...]:
    """Names of the files (less `.pt`) that a fitted net leaves."""
    if net != ROOT:
        return (net,)
    return ("root-coarse", "root-fine") if recipe.keeps_two else (ROOT,)


def chosen_root(recipe: Recipe) -> str:
    """The root checkpoint that the system stands on."""
    return f"root-{recipe.root_checkpoint}" if recipe.keeps_two else ROOT


def load_net(run: Run, name: str) -> TaggingNet:
    """A trained net of a run (`root-coarse`, `branch-1`), ready for inference, its dummy output dropped.

    Raises:
        InputError: the run has no such net, or its file is damaged.
    """
    n = len(run.outputs(name))
    net = TaggingNet(settings_of(run.recipe, name).table, n, fusion=run.recipe.fusion)
    try:
        state = states.load(run.net_path(name))
        if (state["provenance"].get("taxonomy") or identity(SONYC_UST)) != identity(run.taxonomy):
            raise InputError(f"{run.net_path(name)} tells other tags than its run; restore it")
        weights = state["weights"]
        for part in ("weight", "bias"):
            weights[f"{_LAST_LAYER}.{part}"] = weights[f"{_LAST_LAYER}.{part}"][:n]
        net.load_state_dict(weights)
    except FileNotFoundError:
        raise InputError(f"{run.path} holds no {name}.pt; go on with: edgetag train fit … --resume") from None
    except (KeyError, RuntimeError, TypeError) as error:  # a state, but not this net's
        raise states.damaged(run.net_path(name), error) from error
    return net.eval()


def branches_of(run: Run) -> list[str]:
    """Names of the branch nets that the run holds.

    Raises:
        InputError: it is not finished.
    """
    if not (run.path / FINISHED).exists():
        raise InputError(f"{run.path} is not finished; go on with: edgetag train fit … --resume")
    return [
        name for name in net_names(run.recipe, run.taxonomy) if name != ROOT and run.net_path(name).exists()
    ]


def check_taxonomy(run: Run, taxonomy: Taxonomy) -> None:
    """
    Raises:
        InputError: the run tells other tags than the data's.
    """
    if run.taxonomy != taxonomy:
        raise InputError(
            f"{run.path} tells the tags of {described(run.taxonomy)}, the data has those of "
            f"{described(taxonomy)}; take the data that it was fitted on, or fit another run"
        )


def check_embedding(run: Run, embedding: Embedding | None) -> None:
    """
    Raises:
        InputError: the run was fitted with another embedding, or with none, or with one.
    """
    stated = run.provenance["embedding"]
    if stated is None and embedding is not None:
        raise InputError(f"the nets of {run.path} take no embedding")
    if stated is not None and (embedding is None or embedding.sha256["fp32"] != stated["sha256"]):
        raise InputError(
            f"{run.path} was fitted with the embedding {stated['kind']} ({stated['source']}, sha256 "
            f"{stated['sha256'][:12]}…); give its folder with --embedding"
        )
