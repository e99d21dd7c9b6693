"""From recordings to a bundle that a sensor loads, on a dataset small enough to train in seconds."""

import csv
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
import torch

from edgetag import Tagger
from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.dsp.logmel import LogMel
from edgetag_train.data.annotations import read_annotations
from edgetag_train.data.features import Windows, mix_scenes
from edgetag_train.data.scenes import SceneMixer
from edgetag_train.data.sounds import read_library, read_recordings
from edgetag_train.evaluate import report, score_bundle
from edgetag_train.export import export_run, prior_shift
from edgetag_train.fit.loop import fit, masked_loss, positive_weight
from edgetag_train.fit.system import examples, fit_system, load_net, outputs
from edgetag_train.recipe import Fit, Recipe, read_recipe

RATE_HZ = 44_100
NAN = np.nan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of a siren, an engine and a dog (tones), noise behind them, four annotated street recordings."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    clips = [
        ("5_alert-signal", "siren", 900),
        ("1_engine", "large-sounding-engine", 80),
        ("8_dog", "dog-barking-whining", 400),
    ]
    for coarse, fine, hz in clips:
        rows.append((f"{fine}.wav", coarse, fine, fine))
        _write(folder / "clips" / f"{fine}.wav", np.sin(2 * np.pi * hz * np.arange(2 * RATE_HZ) / RATE_HZ))
    rows.append(("hiss.wav", "background", "hiss", "hiss"))
    _write(folder / "clips" / "hiss.wav", rng.normal(0, 0.1, 3 * RATE_HZ))
    with (folder / "clips" / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "coarse", "fine", "recording_id", "licence", "source_repo"])
        writer.writerows([(*row, "CC0 1.0", "made here") for row in rows])
    _write_streets(folder / "sonyc", rng)
    return folder


def _write_streets(folder: Path, rng: np.random.Generator) -> None:
    labels = [f"{SONYC_UST.tags[id].label}_presence" for id in SONYC_UST.ids]
    (folder / "audio").mkdir(parents=True)
    with (folder / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "sensor_id", "audio_filename", "annotator_id", *labels])
        for k, split in enumerate(["train", "train", "validate", "validate"]):
            votes = [1 if id == ("1", "5")[k % 2] else 0 if "-" not in id else -1 for id in SONYC_UST.ids]
            writer.writerow([split, k, f"{k}.wav", 0, *votes])
            _write(folder / "audio" / f"{k}.wav", rng.normal(0, 0.05, 10 * RATE_HZ))


def _write(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), RATE_HZ)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    fast = {"table": 2, "epochs": 1, "batch": 8}
    stated = {"name": "tiny", "seed": 1, "n_scenes": 32, "scenes": {}, "root": fast, "branch": fast}
    return msgspec.convert(stated, Recipe)


@pytest.fixture(scope="module")
def run(data: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    fit_system(recipe, data, out)
    return out


def test_scene_k_is_drawn_from_seed_plus_k(data: Path, run: Path, recipe: Recipe) -> None:
    """However many processes mixed them: drawn alone, a scene is the same."""
    windows = mix_scenes(data, run / "scenes", recipe.scenes, n_scenes=32, seed=1)
    mixer = SceneMixer(read_library(data, "train"), recipe.scenes)
    for k in (0, 26, 31):
        samples, labels = mixer.scene(1 + k)
        np.testing.assert_array_equal(windows.logmel[k], LogMel()(samples).astype(np.float16))
        np.testing.assert_array_equal(windows.labels[k], labels)


def test_scenes_are_mixed_again_when_the_data_changes(data: Path, run: Path, recipe: Recipe) -> None:
    """Another table is other data; the same is not mixed twice."""
    kept = (run / "scenes" / "logmel.npy").stat().st_mtime_ns
    mix_scenes(data, run / "scenes", recipe.scenes, n_scenes=32, seed=1)
    assert (run / "scenes" / "logmel.npy").stat().st_mtime_ns == kept
    stamp = (run / "scenes" / "scenes.txt").read_text()
    table = data / "clips" / "manifest.csv"
    text = table.read_text()
    table.write_text(text + "hiss.wav,background,hiss,another,CC0 1.0,made here\n")
    mix_scenes(data, run / "scenes", recipe.scenes, n_scenes=32, seed=1)
    assert (run / "scenes" / "scenes.txt").read_text() != stamp
    table.write_text(text)
    mix_scenes(data, run / "scenes", recipe.scenes, n_scenes=32, seed=1)


def test_branches_without_an_example_are_left_out(run: Path) -> None:
    """Only engines and alert signals have a kind here; nobody trains a saw branch on nothing."""
    assert {path.name for path in run.glob("*.pt")} == {"root.pt", "branch-1.pt", "branch-5.pt"}


def test_a_run_exports_to_a_bundle_that_says_the_same(
    data: Path, run: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """fp32 nets equal torch's to 1e-4; int8 is near; the manifest states data, recipe and figures."""
    bundle = tmp_path / "bundle"
    export_run(run, data, bundle, ("fp32", "int8"), {"version": "1", "licence": "MIT", "summary": "tiny"})
    fp32, int8 = Tagger.load(bundle, "fp32"), Tagger.load(bundle, "int8")
    windows = mix_scenes(data, run / "scenes", recipe.scenes, n_scenes=32, seed=1)
    logmel = windows.logmel[:1].astype(np.float32)[None]
    street = np.array([sound.labels for sound in read_recordings(data / "sonyc", "train")])
    shift = torch.from_numpy(prior_shift(windows.labels, street, SONYC_UST.ids))
    with torch.inference_mode():
        expected = torch.sigmoid(load_net(run, "root", recipe.root)(torch.from_numpy(logmel)) + shift).numpy()
    np.testing.assert_allclose(fp32.bundle.root({"logmel": logmel}), expected, atol=1e-4)
    np.testing.assert_allclose(int8.bundle.root({"logmel": logmel}), expected, atol=0.1)
    manifest = fp32.bundle.manifest
    assert set(manifest.branches) == {"1", "5"}
    assert manifest.training["data"]["clip_licences"] == {"CC0 1.0": 4}
    assert manifest.metrics == score_bundle(int8, data, "validate") | {"held_out_clips": {}}


def test_a_run_of_another_recipe_is_not_overwritten(data: Path, run: Path, recipe: Recipe) -> None:
    """Two recipes never share a folder."""
    with pytest.raises(InputError, match="another recipe"):
        fit_system(msgspec.structs.replace(recipe, seed=2), data, run)


def test_a_finished_run_is_not_trained_again(data: Path, run: Path, recipe: Recipe) -> None:
    """An interrupted run goes on where it stopped; a finished one has nothing left to do."""
    before = (run / "root.pt").read_bytes()
    fit_system(recipe, data, run)
    assert (run / "root.pt").read_bytes() == before


def test_one_seed_gives_one_net(run: Path, data: Path, recipe: Recipe) -> None:
    """Two fits with one seed have bit-identical weights."""
    windows = mix_scenes(data, run / "scenes", recipe.scenes, n_scenes=32, seed=1)
    rows, columns = examples(windows, "root"), np.arange(37)
    nets = [fit(windows, rows, columns, recipe.root, seed=5, on_epoch=lambda *_: None) for _ in range(2)]
    for a, b in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_unknown_labels_add_nothing_to_the_loss() -> None:
    """The mean is over what is known; a wholly unknown batch costs nothing."""
    logits = torch.tensor([[2.0, -1.0]])
    weight = torch.ones(2)
    both = masked_loss(logits[:, :1], torch.tensor([[1.0]]), torch.ones(1))
    assert torch.equal(masked_loss(logits, torch.tensor([[1.0, NAN]]), weight), both)
    assert masked_loss(logits, torch.full((1, 2), NAN), weight) == 0


def test_positive_weights_are_the_smoothed_ratio() -> None:
    """(negatives/positives) ** smoothing; 1 where a tag has no positive, no negative, or smoothing is off."""
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, NAN, NAN]], np.float32)
    assert positive_weight(labels, 1.0).tolist() == [3.0, 1.0, 1.0]
    assert positive_weight(labels, 0.0).tolist() == [1.0, 1.0, 1.0]


def test_the_prior_shift_is_bayes_rule() -> None:
    """From half the scenes to a tenth of a thousand streets: odds divided by nine, for its kinds as well."""
    scenes, street = np.zeros((4, 37), np.float32), np.zeros((1000, 37), np.float32)
    scenes[:2, :2] = street[:100, 0] = street[:500, 1] = 1
    shift = prior_shift(scenes, street, ("1", "1-2", "2"))
    np.testing.assert_allclose(np.exp(shift), [1 / 9, 1 / 9, 1], rtol=0.05)


def test_a_few_streets_move_the_prior_a_little() -> None:
    """A category no recording held is not ruled out: two recordings change the odds by two sevenths."""
    scenes = np.zeros((4, 37), np.float32)
    scenes[:2, 0] = 1
    shift = prior_shift(scenes, np.zeros((2, 37), np.float32), ("1",))
    np.testing.assert_allclose(np.exp(shift), [5 / 7], rtol=1e-3)


def test_a_loss_that_is_no_number_stops_with_the_step(recipe: Recipe) -> None:
    """Nothing is trained on NaN features."""
    windows = Windows(np.full((8, 128, 862), NAN, np.float16), np.ones((8, 37), np.float32))
    with pytest.raises(FloatingPointError, match="epoch 1, step 1"):
        fit(windows, np.arange(8), np.arange(37), recipe.root, seed=0, on_epoch=lambda *_: None)


def test_the_report_counts_what_was_named() -> None:
    """Two of three tags named; one of two recordings mostly named."""
    truth, scores = np.zeros((2, 37), np.float32), np.zeros((2, 37), np.float32)
    truth[:, 8:] = NAN
    truth[0, [0, 1]] = truth[1, 6] = 1
    scores[0, [0, 1]], scores[1, 6] = (0.9, 0.8), 0.4
    found = report(truth, scores)
    assert (found["named"], found["mostly_named"]) == (round(2 / 3, 4), 0.5)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: x\ncolour: red\n", "colour|required"),
        ("{", "recipe"),
        ("- 1\n", "recipe"),
        (None, "those that ship: starter"),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    """Unknown keys, broken YAML and missing files are one sentence each."""
    if text is not None:
        (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_recipe(str(tmp_path / "recipe.yaml"))


def test_recipes_that_ship_are_recipes() -> None:
    """`starter` reads; its root is Table 1, its branches Table 2."""
    recipe = read_recipe("starter")
    assert (recipe.root.table, recipe.branch.table) == (1, 2)
    assert isinstance(recipe.root, Fit)


def test_outputs_follow_the_taxonomy() -> None:
    """Root: every tag. Branch: its category's."""
    assert outputs("root") == SONYC_UST.ids
    assert outputs("branch-4") == ("4-1", "4-2", "4-3", "4-X")


def test_the_table_reads_back(data: Path) -> None:
    """The street recordings written above are what the reader finds."""
    assert read_annotations(data / "sonyc" / "annotations.csv").of_split("validate").filenames == (
        "2.wav",
        "3.wav",
    )
