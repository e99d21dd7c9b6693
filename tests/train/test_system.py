"""From recordings to a bundle that a sensor loads, on a dataset small enough to train in seconds."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from edgetag import Tagger
from edgetag.contract.errors import InputError, OutputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.features import Windows
from edgetag_train.data.training import TrainingData, hears_clips, prepare
from edgetag_train.deploy import prior_shift
from edgetag_train.embedding import export_embedding, read_embedding
from edgetag_train.evaluate import SCENES, bundle_scores, report, run_scores, score_bundle, systems
from edgetag_train.export import export_run
from edgetag_train.fit.begin import alone, check_start, git_commit
from edgetag_train.fit.run import chosen_root, load_net, outputs, read_run
from edgetag_train.fit.system import examples, fit_system
from edgetag_train.recipe import Recipe, read_recipe
from fakes_dataset import write_clips, write_streets

NAN = np.nan
SMALL = (
    "data={seed: 1, n_scenes: 24, n_validation_scenes: 0}",
    *("root.table=2", "root.precision=float32", "root.epochs=2", "root.batch=8"),
    *("branch.epochs=2", "branch.batch=8"),
)
ABOUT = {"version": "1", "licence": "MIT", "summary": "tiny"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of a siren, an engine and a dog (tones), noise behind them, four annotated street recordings."""
    folder = tmp_path_factory.mktemp("data")
    write_clips(folder / "clips")
    write_streets(folder / "sonyc")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return read_recipe("hierarchical2_cnn", SMALL)


@pytest.fixture(scope="module")
def prepared(data: Path, cache: Path, recipe: Recipe) -> TrainingData:
    return prepare(recipe.data, data, cache)


@pytest.fixture(scope="module")
def run(prepared: TrainingData, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    fit_system(recipe, prepared, out)
    return out


def test_a_run_directory_says_what_it_was_made_from(run: Path, recipe: Recipe) -> None:
    """Recipe, versions, data; each checkpoint holds them, too; the history has every epoch."""
    found = read_run(run)
    assert found.recipe == recipe
    assert found.provenance["data"]["train"] == {"recordings": 2, "scenes": 24, "windows": 26}
    assert found.provenance["data"]["validation"]["windows"] == 2
    stored = torch.load(found.net_path("root-coarse"), weights_only=True)
    assert stored["provenance"] == found.provenance
    assert msgspec.convert(stored["recipe"], Recipe) == recipe
    lines = [msgspec.json.decode(line) for line in (run / "history.jsonl").read_bytes().splitlines()]
    assert [(line["net"], line["epoch"]) for line in lines if line["net"] == "root"] == [
        ("root", 1),
        ("root", 2),
    ]
    assert not list(run.glob("*.partial"))


def test_branches_without_an_example_are_left_out(run: Path) -> None:
    """Only engines and alert signals have a kind here; nobody trains a saw branch on nothing."""
    names = {"root-coarse.pt", "root-fine.pt", "branch-1.pt", "branch-5.pt"}
    assert {path.name for path in run.glob("*.pt")} == names


def test_a_run_exports_to_a_bundle_that_says_the_same(
    data: Path, cache: Path, run: Path, prepared: TrainingData, tmp_path: Path
) -> None:
    """fp32 nets equal torch's to 1e-4; int8 is near; the manifest states data, recipe and figures.

    Forced: on two recordings a rank that changes by rounding costs a figure more than int8 may.
    """
    bundle = tmp_path / "bundle"
    export_run(run, data, bundle, ("fp32", "int8"), ABOUT, cache=cache, force=True)
    fp32, int8 = Tagger.load(bundle, "fp32"), Tagger.load(bundle, "int8")
    logmel = prepared.train.logmel[:1].astype(np.float32)[None]
    street = prepared.train.labels[:2]
    shift = torch.from_numpy(prior_shift(prepared.train.labels, street, SONYC_UST.ids, SONYC_UST))
    with torch.inference_mode():
        net = load_net(read_run(run), "root-coarse")
        expected = torch.sigmoid(net(torch.from_numpy(logmel)) + shift).numpy()
    np.testing.assert_allclose(fp32.bundle.root({"logmel": logmel}), expected, atol=1e-4)
    np.testing.assert_allclose(int8.bundle.root({"logmel": logmel}), expected, atol=0.1)
    manifest = fp32.bundle.manifest
    assert set(manifest.branches) == {"1", "5"}
    assert manifest.cascade.policy == "threshold"
    assert manifest.training["data"]["clip_licences"] == {"CC0 1.0": 4}
    assert manifest.metrics == score_bundle(int8, data, "validate")


def test_a_run_and_its_bundle_score_alike(data: Path, cache: Path, tmp_path: Path) -> None:
    """The same nets under the same cascade, once in torch on the cache, once as a sensor runs them."""
    recipe = read_recipe("hierarchical2_cnn", (*SMALL, "data.n_scenes=0"))
    fit_system(recipe, prepare(recipe.data, data, cache), tmp_path / "run")
    policy = recipe.cascade.policy
    export_run(tmp_path / "run", data, tmp_path / "bundle", ("fp32",), ABOUT, cache=cache, policy=policy)
    [scored] = run_scores(read_run(tmp_path / "run"), data, "validate", cache, None).values()
    published = bundle_scores(Tagger.load(tmp_path / "bundle"), data, "validate")
    assert published.filenames == scored.filenames
    np.testing.assert_array_equal(published.truth, scored.truth)
    np.testing.assert_allclose(published.scores, scored.scores, atol=2e-3)  # the cache holds 16 bits


def test_a_table_without_fine_labels_judges_no_fine_tag(data: Path, cache: Path, run: Path) -> None:
    """Kinds that follow from an absent category are known absent, but to score those alone would mislead."""
    [scored] = run_scores(read_run(run), data, "validate", cache, None).values()
    assert np.isnan(scored.truth[:, 8:]).all()
    assert not np.isnan(scored.truth[:, :8]).any()


def test_a_run_without_branches_is_two_systems(
    data: Path, cache: Path, prepared: TrainingData, tmp_path: Path
) -> None:
    """CNN+VGGish1 and 2: the best coarse and the best fine checkpoint of one run."""
    recipe = read_recipe("cnn", SMALL[:5])
    fit_system(recipe, prepared, tmp_path)
    run = read_run(tmp_path)
    assert systems(run) == {"cnn1": ("root-coarse", []), "cnn2": ("root-fine", [])}
    scored = run_scores(run, data, "validate", cache, None)
    assert scored["cnn1"].scores.shape == (2, 37)
    with pytest.raises(InputError, match="too few clips"):
        run_scores(run, data, SCENES, cache, None)


def test_another_runs_root_is_taken_if_it_is_the_same(
    prepared: TrainingData, run: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Byte for byte, history and all; not with another seed, not from other data."""
    third = msgspec.structs.replace(recipe, name="third", root_checkpoint="fine")
    fit_system(third, prepared, tmp_path / "third", root=run)
    assert (tmp_path / "third" / "root-fine.pt").read_bytes() == (run / "root-fine.pt").read_bytes()
    assert chosen_root(read_run(tmp_path / "third").recipe) == "root-fine"
    with pytest.raises(InputError, match="another seed"):
        fit_system(msgspec.structs.replace(third, seed=7), prepared, tmp_path / "seed", root=run)
    other = TrainingData(prepared.train, {"digest": "other"}, SONYC_UST)
    with pytest.raises(InputError, match="other data"):
        fit_system(third, other, tmp_path / "data", root=run)


def test_a_run_is_not_overwritten(prepared: TrainingData, run: Path, recipe: Recipe) -> None:
    """Not without --resume; not with another recipe, other data or another embedding."""
    with pytest.raises(InputError, match="--resume"):
        fit_system(recipe, prepared, run)
    with pytest.raises(InputError, match="another recipe"):
        fit_system(msgspec.structs.replace(recipe, seed=2), prepared, run, resume=True)
    other = replace(prepared, about=prepared.about | {"digest": "another"})
    with pytest.raises(InputError, match="other data"):
        fit_system(recipe, other, run, resume=True)


def test_a_finished_run_is_not_trained_again(prepared: TrainingData, run: Path, recipe: Recipe) -> None:
    """Gone on with, it has nothing left to do."""
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    fit_system(recipe, prepared, run, resume=True)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.system)])
def test_a_stopped_run_goes_on_to_the_same_weights(
    data: Path, cache: Path, run: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A real process, signalled in the middle: exit code 128 + signal, one sentence, and --resume ends with
    the weights and the history of a run that nobody stopped."""
    out = tmp_path / "run"
    process = subprocess.Popen(
        _fit(data, cache, out), stderr=subprocess.PIPE, text=True, **_default_signals()
    )
    _wait_for(out / "history.jsonl", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    if process.returncode != 0:  # else it was faster
        assert process.returncode == 128 + number
        assert "--resume" in said.splitlines()[-1]
        assert "Traceback" not in said
        assert list(out.glob("*.partial"))
    subprocess.run(_fit(data, cache, out, "--resume"), check=True, capture_output=True, timeout=240)
    for path in run.glob("*.pt"):
        weights = [torch.load(folder / path.name, weights_only=True)["weights"] for folder in (run, out)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    histories = [_untimed(folder / "history.jsonl") for folder in (run, out)]
    assert histories[0] == histories[1]


def _fit(data: Path, cache: Path, out: Path, *options: str) -> list[str]:
    overrides = [part for override in SMALL for part in ("--set", override)]
    command = [sys.executable, "-c", "from edgetag.cli import main; main()", "train", "fit"]
    where = ["--data", str(data), "--cache", str(cache), "--out", str(out), "--device", "cpu"]
    return [*command, "hierarchical2_cnn", *where, *overrides, *options]


def _default_signals() -> dict[str, object]:
    """A test that runs in the background ignores SIGINT, and so would its children."""
    return {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _untimed(history: Path) -> list[dict[str, object]]:
    lines = [msgspec.json.decode(line) for line in history.read_bytes().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def test_a_run_that_is_not_finished_is_not_used(
    data: Path, cache: Path, prepared: TrainingData, run: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Killed before a branch's first save, it looks whole but for one file; gone on with, it is, and what was
    scored before is forgotten."""
    out = copied(run, tmp_path / "run")
    (out / "finished.json").unlink()
    (out / "branch-5.pt").unlink()
    (out / "evaluation").mkdir()
    with pytest.raises(InputError, match=r"not finished.*--resume"):
        run_scores(read_run(out), data, "validate", cache, None)
    with pytest.raises(InputError, match="not finished"):
        export_run(out, data, tmp_path / "bundle", ("int8",), ABOUT, cache=cache)
    assert not (tmp_path / "bundle").exists()
    fit_system(recipe, prepared, out, resume=True)
    assert not (out / "evaluation").exists()
    assert run_scores(read_run(out), data, "validate", cache, None)


def test_two_processes_do_not_fit_in_one_folder(prepared: TrainingData, run: Path, recipe: Recipe) -> None:
    """The second one is told; the first is not disturbed."""
    with alone(run), pytest.raises(InputError, match="another process"):
        fit_system(recipe, prepared, run, resume=True)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04"])
def test_a_damaged_net_is_one_sentence(run: Path, tmp_path: Path, content: bytes) -> None:
    """Which file, and how to get it back; a net of another shape is no better."""
    found = read_run(copied(run, tmp_path / "run"))
    found.net_path("root-coarse").write_bytes(content)
    with pytest.raises(InputError, match=r"root-coarse\.pt is damaged .* --resume"):
        load_net(found, "root-coarse")
    found.net_path("root-coarse").write_bytes(found.net_path("branch-1").read_bytes())
    with pytest.raises(InputError, match=r"root-coarse\.pt is damaged"):
        load_net(found, "root-coarse")


@pytest.mark.parametrize("state", ["nonsense", "another net's"])
def test_a_damaged_state_is_one_sentence(
    prepared: TrainingData, run: Path, recipe: Recipe, tmp_path: Path, state: str
) -> None:
    """What a power cut left of it, or a file that was mistaken for it."""
    out = copied(run, tmp_path / "run")
    net = (out / "branch-5.pt").read_bytes()
    (out / "branch-5.pt").unlink()
    (out / "branch-5.partial").write_bytes(net if state == "another net's" else state.encode())
    with pytest.raises(InputError, match=r"branch-5\.partial is damaged"):
        fit_system(recipe, prepared, out, resume=True)


def test_a_torn_history_is_mended(prepared: TrainingData, run: Path, recipe: Recipe, tmp_path: Path) -> None:
    """The power went while a line was written: resumed, the history is that of a run without a cut."""
    out = copied(run, tmp_path / "run")
    (out / "branch-5.pt").unlink()
    with (out / "history.jsonl").open("ab") as history:
        history.write(b'{"net":"branch-5","epo')
    fit_system(recipe, prepared, out, resume=True)
    assert _untimed(out / "history.jsonl") == _untimed(run / "history.jsonl")
    (out / "branch-5.pt").unlink()
    (out / "history.jsonl").write_bytes(b"{}\n")
    with pytest.raises(InputError, match=r"history\.jsonl is damaged"):
        fit_system(recipe, prepared, out, resume=True)


@pytest.mark.parametrize("stated", ["{}", '{"data": 1, "embedding": null}', '{"data": {"digest": ""}}'])
def test_provenance_that_says_nothing_is_refused(run: Path, tmp_path: Path, stated: str) -> None:
    """What the nets were trained with must be known to go on, or to score them."""
    out = copied(run, tmp_path / "run")
    (out / "provenance.json").write_text(stated)
    with pytest.raises(InputError, match=r"no run directory .*(data|embedding)"):
        read_run(out)


def test_what_a_fit_would_refuse_is_refused_before_it(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Features take hours; whose folder it is can be told at once."""
    with pytest.raises(InputError, match="--resume"):
        check_start(recipe, SONYC_UST, run, root=None, resume=False)
    with pytest.raises(InputError, match="another recipe"):
        check_start(msgspec.structs.replace(recipe, seed=2), SONYC_UST, run, root=None, resume=True)
    with pytest.raises(InputError, match="another seed"):
        check_start(msgspec.structs.replace(recipe, seed=2), SONYC_UST, tmp_path, root=run, resume=False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        check_start(recipe, SONYC_UST, tmp_path / "file" / "run", root=None, resume=False)


def test_a_root_without_windows_is_no_run(prepared: TrainingData, recipe: Recipe, tmp_path: Path) -> None:
    """A branch may be left out, the root may not."""
    one = Windows(prepared.train.logmel[:1], prepared.train.labels[:1])
    with pytest.raises(InputError, match="1 windows"):
        fit_system(recipe, TrainingData(one, prepared.about, SONYC_UST), tmp_path)


def test_a_commit_is_that_of_the_trainers_own_checkout(tmp_path: Path) -> None:
    """An installation that lies in another project's checkout has none; a changed file is said to be."""
    source = tmp_path / "system.py"
    source.touch()
    assert git_commit(source) is None
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    assert git_commit(source) is None
    git("add", "system.py")
    git("commit", "-m", "ours")
    commit = git_commit(source)
    assert commit is not None
    assert len(commit) == 40
    source.write_text("changed")
    assert git_commit(source) == f"{commit}-dirty"


def test_every_recording_is_looked_for_before_any_is_heard(tmp_path: Path, cache: Path) -> None:
    """Those of the validation split, too, and the clips; nothing is computed yet."""
    write_streets(tmp_path)
    (tmp_path / "audio" / "3.wav").unlink()
    mine = tmp_path / "cache"
    settings = read_recipe("cnn", ("data.augmentation.variants=0",)).data
    with pytest.raises(InputError, match=r"3\.wav \(missing\)"):
        prepare(settings, tmp_path, mine)
    scenes = read_recipe("cnn", ("data.augmentation.variants=0", "data.n_validation_scenes=4")).data
    with pytest.raises(InputError, match=r"manifest\.csv"):
        prepare(scenes, tmp_path, mine)
    assert not mine.exists()


def test_bad_recordings_are_left_out_of_scenes_and_scores(tmp_path: Path) -> None:
    """What a run was fitted without, it can be scored and exported without."""
    write_clips(tmp_path / "clips")
    write_streets(tmp_path / "sonyc", ("train",) * 3 + ("validate",) * 3)
    for name in ("0.wav", "5.wav"):
        (tmp_path / "sonyc" / "audio" / name).unlink()
    recipe = read_recipe("cnn", (*SMALL[:5], "data.n_scenes=3"))
    made = prepare(recipe.data, tmp_path, tmp_path / "cache", skip_bad=True)
    assert (len(made.train), len(made.validation or ())) == (5, 2)
    fit_system(recipe, made, tmp_path / "run")
    where = (tmp_path, "validate", tmp_path / "cache", None)
    with pytest.raises(InputError, match="--skip-bad"):
        run_scores(read_run(tmp_path / "run"), *where)
    scored = run_scores(read_run(tmp_path / "run"), *where, skip_bad=True)
    assert scored["cnn1"].filenames == ("3.wav", "4.wav")
    bundle, options = tmp_path / "bundle", {"cache": tmp_path / "cache", "skip_bad": True}
    export_run(tmp_path / "run", tmp_path, bundle, ("int8",), ABOUT, **options)
    assert Tagger.load(bundle).bundle.manifest.metrics["recordings"] == 2


def test_a_bundle_that_could_not_be_scored_is_not_written(
    data: Path, cache: Path, run: Path, tmp_path: Path
) -> None:
    """Without recordings to judge it by, an older bundle stays as it is."""
    write_clips(tmp_path / "clips")
    write_streets(tmp_path / "sonyc", ("train", "train"))
    with pytest.raises(InputError, match="'validate'"):
        export_run(run, tmp_path, tmp_path / "bundle", ("int8",), ABOUT, cache=cache)
    assert not (tmp_path / "bundle").exists()


def test_clips_are_named_where_they_were_heard(data: Path, tmp_path: Path) -> None:
    """In scenes, or as the noise of augmentation: a manifest owes them their licences."""
    noise, quiet = "data.augmentation.noise_share=0.5", "data.augmentation.noise_share=0"
    plain = "data.augmentation.variants=0"
    heard = {override: read_recipe("cnn", (override,)).data for override in (noise, quiet, plain)}
    assert [hears_clips(settings, data) for settings in heard.values()] == [True, False, False]
    assert not hears_clips(heard[noise], tmp_path)
    assert hears_clips(read_recipe("starter").data, data)


def test_a_branch_learns_from_its_own_category(prepared: TrainingData) -> None:
    """Or, with the dummy output, from every window whose kind is known: those of other categories are "not
    this category" and none of its kinds."""
    own = examples(prepared.train, "branch-5", SONYC_UST)
    everything = examples(prepared.train, "branch-5", SONYC_UST, dummy=True)
    assert own.targets.shape == (len(own), 5)
    assert everything.targets.shape == (len(everything), 6)
    assert len(everything) > len(own) > 0
    others = everything.targets[:, -1] == 1
    assert others.sum() == len(everything) - len(own)
    assert not everything.targets[others, :-1].any()
    np.testing.assert_array_equal(everything.targets[~others, :-1], own.targets)


def test_the_dummy_output_is_dropped(
    prepared: TrainingData, recipe: Recipe, run: Path, tmp_path: Path
) -> None:
    """A branch trained with it says as much as one trained without."""
    dummy = msgspec.structs.replace(recipe, branch_negatives="dummy")
    fit_system(dummy, prepared, tmp_path, root=run)
    stored = torch.load(tmp_path / "branch-5.pt", weights_only=True)["weights"]
    net = load_net(read_run(tmp_path), "branch-5")
    assert stored["classifier.7.bias"].shape == (6,)
    assert net.classifier[-1].bias.shape == (5,)
    assert torch.equal(net.classifier[-1].weight, stored["classifier.7.weight"][:5])


def test_soft_labels_are_the_share_of_votes(tmp_path: Path, cache: Path) -> None:
    """Two of three annotators: 0.67 for training, 1 for an agreement of a half, 0 for three quarters."""
    write_streets(tmp_path, splits=("train", "train", "validate"))
    table = tmp_path / "annotations.csv"
    header, first, *rest = table.read_text().splitlines()
    split, sensor, name, _, *votes = first.split(",")
    voters = [",".join([split, sensor, name, str(who), *votes]) for who in (1, 2)]
    voters.append(",".join([split, sensor, name, "3", *["0"] * len(votes)]))
    table.write_text("\n".join([header, *voters, *rest]) + "\n")
    engine = []
    for override in ("data.soft=true", "data.agreement=0.5", "data.agreement=0.75"):
        settings = read_recipe("cnn", ("data.augmentation.variants=0", override)).data
        engine.append(float(prepare(settings, tmp_path, cache).train.labels[0, 0]))
    assert engine == [pytest.approx(2 / 3), 1.0, 0.0]


def test_an_empty_split_is_one_sentence(tmp_path: Path, cache: Path) -> None:
    """No validation recordings: named, with the splits there are."""
    write_streets(tmp_path, splits=("train", "train"))
    with pytest.raises(InputError, match=r"validate.*train"):
        prepare(read_recipe("cnn").data, tmp_path, cache)


@pytest.fixture(scope="module")
def small_embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net with VGGish's contract that takes the mean of every band: fast to make."""

    class Means(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(64, 128)

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            return (self.mix(patches.mean(dim=1)) * 10 + 128).clamp(0, 255)

    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("embedding")
    calibration = np.random.default_rng(0).normal(-2, 2, (4, 10, 96, 64)).astype(np.float32)
    export_embedding(Means(), out, kind="means", source="made here", calibration=calibration)
    return out


def test_a_system_with_an_embedding_goes_all_the_way(
    data: Path, cache: Path, small_embedding: Path, tmp_path: Path
) -> None:
    """Fitted, scored, exported, and asked as a sensor asks it: the embedding travels in the bundle."""
    recipe = read_recipe("hierarchical2", SMALL)
    embedding = read_embedding(small_embedding)
    made = prepare(recipe.data, data, cache, embedding=embedding.paths["fp32"])
    fit_system(recipe, made, tmp_path / "run", embedding=embedding)
    run = read_run(tmp_path / "run")
    assert run.provenance["embedding"]["kind"] == "means"
    [scored] = run_scores(run, data, "validate", cache, embedding.paths["fp32"]).values()
    assert np.isfinite(scored.scores).all()
    bundle = tmp_path / "bundle"
    export_run(run.path, data, bundle, ("fp32", "int8"), ABOUT, cache=cache, embedding=embedding)
    for variant in ("fp32", "int8"):
        tagger = Tagger.load(bundle, variant)
        assert tagger.bundle.manifest.fusion == "concat"
        assert tagger.bundle.embedding is not None
    with pytest.raises(InputError, match="--embedding"):
        export_run(run.path, data, tmp_path / "other", ("int8",), ABOUT, cache=cache)


def test_the_prior_shift_is_bayes_rule() -> None:
    """From half the scenes to a tenth of a thousand streets: odds divided by nine, for its kinds as well."""
    scenes, street = np.zeros((4, 37), np.float32), np.zeros((1000, 37), np.float32)
    scenes[:2, :2] = street[:100, 0] = street[:500, 1] = 1
    shift = prior_shift(scenes, street, ("1", "1-2", "2"), SONYC_UST)
    np.testing.assert_allclose(np.exp(shift), [1 / 9, 1 / 9, 1], rtol=0.05)


def test_a_few_streets_move_the_prior_a_little() -> None:
    """A category no recording held is not ruled out: two recordings change the odds by two sevenths."""
    scenes = np.zeros((4, 37), np.float32)
    scenes[:2, 0] = 1
    shift = prior_shift(scenes, np.zeros((2, 37), np.float32), ("1",), SONYC_UST)
    np.testing.assert_allclose(np.exp(shift), [5 / 7], rtol=1e-3)


def test_the_report_counts_what_was_named() -> None:
    """Two of three tags named; one of two recordings mostly named."""
    truth, scores = np.zeros((2, 37), np.float32), np.zeros((2, 37), np.float32)
    truth[:, 8:] = NAN
    truth[0, [0, 1]] = truth[1, 6] = 1
    scores[0, [0, 1]], scores[1, 6] = (0.9, 0.8), 0.4
    found = report(truth, scores, SONYC_UST)
    assert (found["named"], found["mostly_named"]) == (round(2 / 3, 4), 0.5)


def test_nothing_to_name_has_no_figure() -> None:
    """A street on which nothing was heard: no figures, and no NaN in a manifest."""
    truth = np.zeros((2, 37), np.float32)
    found = report(truth, truth, SONYC_UST)
    assert found["coarse_micro_auprc"] is None
    assert (found["named"], found["mostly_named"]) == (None, None)


def test_unlabelled_kinds_have_no_say_in_the_prior() -> None:
    """A kind that no scene knows is no warning, either."""
    scenes = np.zeros((4, 37), np.float32)
    scenes[:2, 0], scenes[:, 8:] = 1, NAN
    np.testing.assert_allclose(prior_shift(scenes, scenes, ("1", "1-2"), SONYC_UST), [0, 0], atol=1e-6)


def test_a_run_of_before_taxonomies_were_noted_is_sonycs(
    run: Path, recipe: Recipe, prepared: TrainingData, tmp_path: Path
) -> None:
    """It is read, gone on with, and its root taken over, as it was."""
    old = copied(run, tmp_path / "old")
    (old / "taxonomy.yaml").unlink()
    provenance = json.loads((old / "provenance.json").read_text())
    del provenance["taxonomy"]
    (old / "provenance.json").write_text(json.dumps(provenance))
    for file in old.glob("*.pt"):
        state = torch.load(file, weights_only=True)
        del state["provenance"]["taxonomy"]
        torch.save(state, file)
    assert read_run(old).taxonomy == SONYC_UST
    assert load_net(read_run(old), "root-coarse")
    fit_system(recipe, prepared, old, resume=True)
    fit_system(recipe, prepared, tmp_path / "new", root=old)
    assert load_net(read_run(tmp_path / "new"), "root-coarse")


def test_outputs_follow_the_taxonomy() -> None:
    """Root: every tag. Branch: its category's."""
    assert outputs("root", SONYC_UST) == SONYC_UST.ids
    assert outputs("branch-4", SONYC_UST) == ("4-1", "4-2", "4-3", "4-X")
