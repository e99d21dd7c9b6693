"""Recipes: every number of a training run, in one YAML file. Unknown keys are refused."""

from pathlib import Path
from typing import Literal

import msgspec
import yaml

from edgetag.contract.errors import InputError
from edgetag.contract.manifest import Cascade
from edgetag_train.data.scenes import SceneSettings
from edgetag_train.models.cnn import CONV_DROPOUT, FC_DROPOUT, Fusion, Table

RECIPES = Path(__file__).parent / "recipes"


class Fit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one net is trained.

    Attributes:
        table: which table's convolutions.
        epochs: passes over the scenes; the rate falls to zero along a half cosine.
        rate: the optimiser's initial learning rate.
        smoothing: loss weight of a tag's positives = (negatives/positives) ** smoothing; 0 = off.
        averaging: decay per step of the running mean of the weights that is kept in the end.
        band_gain_db: standard deviation of a random gain over frequency: another microphone each time.
        mask_share: largest share of mel bands, and of frames, that is blanked out in training.
    """

    table: Table
    fusion: Fusion = "none"
    epochs: int
    batch: int = 32
    optimiser: Literal["adam", "rmsprop"] = "adam"
    rate: float = 1e-3
    smoothing: float = 0.1
    averaging: float = 0.998
    band_gain_db: float = 0.0
    mask_share: float = 0.1
    conv_dropout: float = CONV_DROPOUT
    fc_dropout: float = FC_DROPOUT


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole system: scenes, root net, branch nets, cascade."""

    name: str
    seed: int
    n_scenes: int
    scenes: SceneSettings
    root: Fit
    branch: Fit
    cascade: Cascade = msgspec.field(default_factory=Cascade)


def read_recipe(name: str) -> Recipe:
    """A recipe by name (those that ship) or by path.

    Raises:
        InputError: no such recipe, or a key or value that does not belong in one.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        recipe = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), Recipe)
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise InputError(f"no recipe {name!r}; those that ship: {known}, or give a .yaml file") from None
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise InputError(f"recipe {path}: {error}") from error
    if {recipe.root.fusion, recipe.branch.fusion} != {"none"}:
        raise InputError(f"recipe {path}: nets with an embedding cannot be fitted yet; set fusion to none")
    return recipe
