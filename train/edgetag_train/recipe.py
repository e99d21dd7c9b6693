"""Recipes: every number of a training run, in one YAML file. Unknown keys are refused."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from edgetag.contract.errors import InputError
from edgetag.contract.manifest import Cascade
from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.data.augment import Augmentation
from edgetag_train.data.scenes import SceneSettings
from edgetag_train.models.cnn import CONV_DROPOUT, FC_DROPOUT, Fusion, Table

RECIPES = Path(__file__).parent / "recipes"

Positive = Annotated[int, msgspec.Meta(ge=1)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Rate = Annotated[float, msgspec.Meta(gt=0)]
RootCheckpoint = Literal["coarse", "fine"]


class Restarts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="restarts"):
    """The paper's modified warm restarts: stagnation lowers the rate, and too low a rate starts again.

    Attributes:
        stagnation: epochs without a better coarse micro AUPRC on the validation windows after which …
        reduce: … the rate is multiplied by this.
        milder: what each restart adds to `reduce`, which stays below 1.
        minimum_rate: below it the rate returns to the initial one.
    """

    stagnation: Positive = 10
    reduce: Share = 0.1
    milder: Share = 0.1
    minimum_rate: Rate = 1e-6


class Plateau(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="plateau"):
    """The rate is multiplied by `gamma` when the validation loss has not fallen for `patience` epochs.

    Training ends when the rate is below `minimum_rate`.
    """

    patience: Positive
    gamma: Share
    minimum_rate: Rate = 1e-6


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="constant"):
    """The initial rate, in every epoch."""


class Cosine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="cosine"):
    """The rate falls to zero along half a cosine, and the weights' running mean is kept.

    Looks at no validation window, so spends none.

    Attributes:
        averaging: decay per step of the running mean.
        part: how much of the half cosine is trained; with 0.2 one epoch is the first of five.
    """

    averaging: Share = 0.998
    part: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


Schedule = Restarts | Plateau | Constant | Cosine


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one net is trained.

    Attributes:
        table: which table's convolutions.
        epochs: passes over the training windows, at most.
        batch: windows a step. One window left over joins the batch before it (batch norm needs two).
        rate: the optimiser's initial learning rate.
        smoothing: loss weight of a tag's positives = (negatives/positives) ** smoothing; 0 = off.
        precision: of the convolutions and matrix products; `bfloat16` takes half the time for Table 1.
        roll: whether windows are rolled in time by a random number of frames.
        band_gain_db: standard deviation of a random gain over frequency: another microphone each time.
        mask_share: largest share of mel bands, and of frames, that is blanked out in training.
        shuffle: whether an embedding's patches come in random order: when a sound is heard says nothing.
    """

    table: Table
    schedule: Schedule
    epochs: Positive
    batch: Annotated[int, msgspec.Meta(ge=2)] = 32
    optimiser: Literal["adam", "rmsprop"] = "adam"
    rate: Rate = 1e-3
    smoothing: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    conv_dropout: Share = CONV_DROPOUT
    fc_dropout: Share = FC_DROPOUT
    roll: bool = False
    band_gain_db: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    mask_share: Share = 0.0
    shuffle: bool = False

    def __post_init__(self) -> None:
        if self.table == 2 and self.precision == "bfloat16":
            # torch 2.13 on the CPU: the bfloat16 weight gradient of row 6 differs from call to call.
            raise ValueError("Table 2 trains in float32 only (its bfloat16 gradients are not reproducible)")


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained on and what is looked at while training.

    The validation windows are `n_validation_scenes` scenes of clips held out of training, or without
    scenes the recordings of the split `validate` (the paper's way).

    Attributes:
        agreement: a tag is present when more than this share of those who voted say so.
        soft: train on that share itself instead.
        recordings: train on the recordings of the split `train`.
        n_scenes: scenes mixed from the recordings and clips that training gets besides.
        seed: of scenes and augmentation.
        teacher_share: what a root net is taught of a coarse tag is by this share what a pretrained tagger
            makes of the window (`teaching.verdict`), and the label by the rest.
    """

    seed: Seed = 0
    teacher_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    agreement: Share = 0.5
    soft: bool = False
    recordings: bool = True
    augmentation: Augmentation = Augmentation()
    n_scenes: NotNegative = 0
    n_validation_scenes: NotNegative = 0
    scenes: SceneSettings = SceneSettings()

    def __post_init__(self) -> None:
        if not self.recordings and not self.n_scenes:
            raise ValueError("nothing to train on: recordings is false and n_scenes is 0")


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole system: data, root net, branch nets, cascade.

    Attributes:
        fusion: how the nets take the embedding; `none` = they take none.
        root_checkpoint: which of the root's two best checkpoints the system stands on.
        branch: how each branch net is trained; without it the root speaks for the fine tags, and either
            checkpoint is a system of its own (the paper's CNN+VGGish1 and CNN+VGGish2).
        ids_of: name of the taxonomy whose tags' ids it states; a recipe without is for any.
        without_branches: categories that get none, for want of recordings: the root speaks for their kinds.
        thresholds: above which a tag counts as active on a sensor; by tag id, or for all of a level
            (`coarse`, `fine`); 0.5 where none is stated.
        branch_negatives: `none` = a branch learns from its own category's windows only; `dummy` = from
            all of them, with one more output "not this category" that is dropped at export.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9_-]{1,40}$")]
    seed: Seed
    ids_of: str | None = None
    data: Data = Data()
    fusion: Fusion = "none"
    root: Fit
    root_checkpoint: RootCheckpoint = "coarse"
    branch: Fit | None = None
    without_branches: tuple[str, ...] = ()
    thresholds: dict[str, Annotated[float, msgspec.Meta(ge=0, le=1)]] = {}
    branch_negatives: Literal["none", "dummy"] = "none"
    cascade: Cascade = msgspec.field(default_factory=Cascade)

    def check(self, taxonomy: Taxonomy) -> None:
        """Whether the ids that the recipe states are those of the data's tags.

        Raises:
            InputError: it is for another taxonomy, or names a tag or a branch that there is not.
        """
        if self.ids_of not in (None, taxonomy.name):
            raise InputError(
                f"recipe {self.name} is for the tags of {self.ids_of}, the data's are {taxonomy.name}'s; "
                "take another, or write one that states ids_of, thresholds and without_branches anew"
            )
        if unknown := set(self.without_branches) - set(taxonomy.branch_ids):
            raise InputError(
                f"recipe {self.name}: without_branches names {min(unknown)!r}, which has no branch in "
                f"{taxonomy.name}; there are {', '.join(taxonomy.branch_ids) or 'none'}"
            )
        if unknown := set(self.thresholds) - {"coarse", "fine", *taxonomy.ids}:
            raise InputError(
                f"recipe {self.name}: thresholds name {min(unknown)!r}, which is no tag of {taxonomy.name}; "
                f"there are coarse, fine and {', '.join(taxonomy.ids)}"
            )

    def thresholds_of(self, taxonomy: Taxonomy) -> dict[str, float]:
        """Every tag's threshold by id."""
        levels = {"coarse": taxonomy.coarse_ids, "fine": taxonomy.fine_ids}
        of_level = {id: self.thresholds.get(name, 0.5) for name, ids in levels.items() for id in ids}
        return {id: self.thresholds.get(id, of_level[id]) for id in taxonomy.ids}

    @property
    def keeps_two(self) -> bool:
        """Whether the root keeps its best coarse and its best fine checkpoint, not one running mean."""
        return not isinstance(self.root.schedule, Cosine)

    @property
    def validates(self) -> bool:
        """Whether the best epoch of any net is chosen on validation windows."""
        fits = [self.root] if self.branch is None else [self.root, self.branch]
        return not all(isinstance(fit.schedule, Cosine) for fit in fits)


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name (those that ship) or by path, with some of its values replaced.

    A recipe may begin with `base: NAME`, another recipe whose values it takes where it states none; a file's
    path is relative to the recipe's own folder.

    Args:
        name: `hierarchical1`, or a file that ends in .yaml.
        overrides: `key=value` with dots between levels, such as `root.epochs=20`; values are YAML.

    Raises:
        InputError: no such recipe, or a key or value that does not belong in one.
    """
    path = _recipe_path(name)
    stated = _read(path)
    for override in overrides:
        _replace(stated, override)
    try:
        return msgspec.convert(stated, Recipe)
    except msgspec.ValidationError as error:
        raise InputError(f"recipe {path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """`1e-3` is a number, as in YAML 1.2; 1.1 wants 1.0e-3."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _yaml(text: str) -> Any:  # noqa: ANN401  any YAML value
    return yaml.load(text, _Loader)  # noqa: S506  it is a safe one


def _recipe_path(name: str, beside: Path = Path()) -> Path:
    """Of a recipe that ships, or of a file, seen from the folder `beside`."""
    return beside / name if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe as written, over the recipe that its `base` names."""
    try:
        stated = _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise InputError(f"no recipe {path.stem!r}; those that ship: {known}, or give a .yaml file") from None
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path}: {error}") from error
    if not isinstance(stated, dict):
        raise InputError(f"recipe {path}: expected keys and values, found {type(stated).__name__}")
    base = stated.pop("base", None)
    if base is None:
        return stated
    if path in above:
        raise InputError(f"recipe {path} is its own base")
    return _over(_read(_recipe_path(str(base), path.parent), (*above, path)), stated)


def _over(base: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `stated`, level by level; a schedule is replaced as a whole."""
    merged = dict(base)
    for key, value in stated.items():
        below = merged.get(key)
        nested = isinstance(below, dict) and isinstance(value, dict) and "type" not in value
        merged[key] = _over(below, value) if nested else value
    return merged


def _replace(stated: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *levels, last = key.split(".")
    try:
        for level in levels:
            stated = stated.setdefault(level, {})
        if not equals or not last:
            raise TypeError
        stated[last] = _yaml(value)
    except (AttributeError, TypeError, yaml.YAMLError):
        raise InputError(f"{override!r} replaces nothing; give key=value such as root.epochs=20") from None
