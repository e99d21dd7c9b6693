"""Recipes: what ships, what is refused, what may be replaced."""

from pathlib import Path

import pytest

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag_train.recipe import RECIPES, Cosine, Plateau, Restarts, read_recipe

SYSTEMS = ("hierarchical1", "hierarchical2", "hierarchical3")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_that_ship_are_recipes(path: Path) -> None:
    """Each reads, and is named as its file."""
    assert read_recipe(path.stem).name == path.stem


def test_the_papers_systems_are_as_the_paper_has_them() -> None:
    """Section 1 of the design: tables, optimisers, rates, patience, which root."""
    roots = [read_recipe(name).root for name in ("cnn_vggish", *SYSTEMS)]
    assert all(root == roots[0] for root in roots)
    assert (roots[0].table, roots[0].optimiser, roots[0].rate) == (1, "adam", 1e-3)
    assert isinstance(roots[0].schedule, Restarts)
    first, second, third = (read_recipe(name) for name in SYSTEMS)
    assert [r.root_checkpoint for r in (first, second, third)] == ["coarse", "coarse", "fine"]
    assert first.branch is not None
    assert second.branch is not None
    assert (first.branch.table, first.branch.optimiser, first.branch.rate) == (1, "adam", 1e-3)
    assert (second.branch.table, second.branch.optimiser, second.branch.rate) == (2, "rmsprop", 1e-2)
    assert first.branch.schedule == Plateau(patience=5, gamma=0.1)
    assert second.branch.schedule == Plateau(patience=6, gamma=0.2)
    assert third.branch == second.branch
    assert first.cascade.policy == "threshold_or_max"


@pytest.mark.parametrize("name", ["cnn_vggish", *SYSTEMS])
def test_each_system_comes_without_an_embedding(name: str) -> None:
    """The same numbers, but for the fusion."""
    twin = "cnn" if name == "cnn_vggish" else f"{name}_cnn"
    overrides = (f"name={twin}", "fusion=none")
    assert read_recipe(name).fusion == "concat"
    assert read_recipe(twin) == read_recipe(name, overrides)


def test_a_number_may_have_an_exponent_alone(tmp_path: Path) -> None:
    """`1e-3` is what everybody writes, and what YAML 1.1 takes for a word."""
    assert read_recipe("cnn", ["root.rate=1e-3"]).root.rate == 1e-3
    (tmp_path / "mine.yaml").write_text("base: cnn\nroot: {rate: 5E-4}\n")
    assert read_recipe(str(tmp_path / "mine.yaml")).root.rate == 5e-4


def test_a_base_lies_beside_its_recipe(tmp_path: Path) -> None:
    """Wherever the command is run."""
    (tmp_path / "base.yaml").write_text("base: cnn\nname: base\nseed: 9\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nname: mine\n")
    found = read_recipe(str(tmp_path / "mine.yaml"))
    assert (found.name, found.seed) == ("mine", 9)


@pytest.mark.parametrize(
    "override",
    [
        "speed=[0, 0]",
        "speed=[1.1, 0.9]",
        "snr_db=[.nan, 3]",
        "repeats=[5, 1]",
        "clip_events=[]",
        "street_events=[0]",
        "clip_events=[-1, 2]",
        "street_share=7",
        "reverberation=-0.1",
    ],
)
def test_scenes_that_cannot_be_drawn_are_refused(override: str) -> None:
    """Before a process of many finds out."""
    with pytest.raises(InputError, match=override.partition("=")[0]):
        read_recipe("starter", [f"data.scenes.{override}"])


def test_a_seed_is_one_that_every_library_takes() -> None:
    """64 bits, with room for a net's number."""
    assert read_recipe("cnn", [f"seed={2**63 - 1}"]).seed == 2**63 - 1
    with pytest.raises(InputError, match="seed"):
        read_recipe("cnn", [f"seed={2**64}"])


def test_validation_is_for_whichever_net_chooses_an_epoch() -> None:
    """The starter's nets do not; a branch with a plateau does, whatever its root does."""
    assert not read_recipe("starter").validates
    assert read_recipe("starter", ["branch.schedule={type: plateau, patience: 1, gamma: 0.1}"]).validates
    assert read_recipe("cnn").validates


def test_a_recipe_that_states_ids_says_whose() -> None:
    """Or it would be taken for another city's, whose ids may be the same."""
    for path in RECIPES.glob("*.yaml"):
        recipe = read_recipe(path.stem)
        ids = {*recipe.without_branches, *recipe.thresholds} - {"coarse", "fine"}
        assert (recipe.ids_of is not None) == bool(ids), path.stem
        recipe.check(SONYC_UST)
    lookalike = Taxonomy("lookalike", SONYC_UST.categories)
    with pytest.raises(InputError, match="is for the tags of sonyc-ust-v1, the data's are lookalike's"):
        read_recipe("starter").check(lookalike)


def test_the_starter_keeps_a_running_mean() -> None:
    """It looks at no validation window."""
    starter = read_recipe("starter")
    assert isinstance(starter.root.schedule, Cosine)
    assert not starter.keeps_two


def test_values_are_replaced_by_name() -> None:
    """Dots lead down, values are YAML."""
    recipe = read_recipe("hierarchical2", ["root.epochs=3", "data.augmentation.variants=0", "branch=null"])
    assert (recipe.root.epochs, recipe.data.augmentation.variants, recipe.branch) == (3, 0, None)
    assert read_recipe("cnn", ["root.schedule={type: constant}"]).root.schedule != recipe.root.schedule


@pytest.mark.parametrize(
    "override",
    ["root.epochs", "=3", "root.epochs.x=3", "root.epochs=many", "colour=red", "root.epochs=0",
     "root.batch=1", "root.epochs=[", "root.schedule.patience=3", "root.schedule={type: unknown}",
     "name='Röt'", "seed=-1",
     "data.agreement=1", "data.recordings=false", "data.augmentation={variants: 2, pitch_semitones: 0}",
     "branch.precision=bfloat16"],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused(override: str) -> None:
    """One sentence that names the key, or what was given."""
    with pytest.raises(InputError):
        read_recipe("hierarchical2", ["data.augmentation.volume_db=0", "data.augmentation.noise_share=0",
                                      override])  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: x\ncolour: red\n", "colour|required"),
        ("{", "recipe"),
        ("- 1\n", "expected keys and values"),
        ("base: recipe.yaml\n", "its own base"),
        ("base: unheard-of\n", "no recipe 'unheard-of'"),
        (None, "those that ship: cnn, cnn_vggish"),
    ],
)
def test_a_recipe_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, sentence: str
) -> None:
    """Unknown keys, broken YAML, circles and missing files are one sentence each."""
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_recipe("recipe.yaml")


def test_a_recipe_may_stand_on_another(tmp_path: Path) -> None:
    """It states what differs; a schedule is replaced as a whole."""
    path = tmp_path / "mine.yaml"
    path.write_text("base: cnn\nname: mine\nroot: {epochs: 7, schedule: {type: cosine, averaging: 0.9}}\n")
    recipe = read_recipe(str(path))
    assert recipe.root.schedule == Cosine(averaging=0.9)
    assert (recipe.root.epochs, recipe.root.rate) == (7, read_recipe("cnn").root.rate)
