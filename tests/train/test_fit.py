"""One net's training: what is the same twice, what an interruption changes (nothing), what stops it."""

import math
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.features import Windows
from edgetag_train.fit.loop import (
    DivergedError,
    Examples,
    Fitting,
    Record,
    StateDict,
    augmented,
    masked_loss,
    positive_weight,
    split_batches,
)
from edgetag_train.fit.progress import LogWatcher
from edgetag_train.fit.stopping import Stop, Stopped
from edgetag_train.fit.system import judge_root
from edgetag_train.recipe import Constant, Cosine, Fit, Plateau, Restarts

NAN = np.nan
KEEP = {"coarse": "coarse_micro_auprc", "fine": "fine_micro_auprc"}
FAST = Fit(table=2, epochs=3, batch=4, schedule=Restarts(stagnation=1, reduce=0.1, minimum_rate=1e-4))


def windows(n: int = 11, *, embedding: bool = False) -> Windows:
    """Noise; engines are loud in the low bands, alert signals in the high ones."""
    rng = np.random.default_rng(0)
    logmel = rng.uniform(-80, -40, (n, 128, 862)).astype(np.float16)
    labels = np.zeros((n, 37), np.float32)
    for k in range(n):
        low = k % 2 == 0
        logmel[k, slice(0, 20) if low else slice(80, 100)] += 40
        labels[k, [0, 8] if low else [4, 22]] = 1
    made = rng.uniform(0, 255, (n, 10, 128)).astype(np.float32) if embedding else None
    return Windows(logmel, labels, made)


def fitting(settings: Fit = FAST, *, seed: int = 1, keep: dict[str, str] | None = None) -> Fitting:
    positive = positive_weight(windows().labels, settings.smoothing)
    device = torch.device("cpu")
    kept = KEEP if keep is None else keep
    return Fitting(settings, 37, fusion="none", positive=positive, keep=kept, seed=seed, device=device)


def run(
    one: Fitting, folder: Path, *, stop_after: int | None = None, made: Windows | None = None
) -> tuple[dict[str, StateDict], list[Record]]:
    """Fit to the end, or until `stop_after` steps are done."""
    made = windows() if made is None else made
    rows = np.arange(len(made))
    stop, records, steps = Stop(), [], [0]

    def on_step(done: int, of: int) -> None:
        steps[0] += 1
        stop.asked = 15 if steps[0] == stop_after else None

    kept = one.run(
        Examples(made, rows, made.labels),
        Examples(made, rows, made.labels),
        partial(judge_root, SONYC_UST),
        checkpoint=folder / "net.partial",
        stop=stop,
        on_step=on_step,
        on_epoch=records.append,
    )
    return kept, records


def equal(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


SCHEDULES = {
    "restarts": (FAST, KEEP),
    "plateau": (
        msgspec.structs.replace(FAST, optimiser="rmsprop", schedule=Plateau(patience=1, gamma=0.5)),
        {"branch": "validation_loss"},
    ),
    "cosine": (msgspec.structs.replace(FAST, schedule=Cosine(), roll=True, band_gain_db=3.0), {}),
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_fit_ends_at_the_same_weights(kind: str, stop_after: int, tmp_path: Path) -> None:
    """To the bit: stopped after any step, the state is saved, restored and gone on with."""
    settings, keep = SCHEDULES[kind]
    whole, records = run(fitting(settings, keep=keep), tmp_path)
    with pytest.raises(Stopped):
        run(fitting(settings, keep=keep), tmp_path, stop_after=stop_after)
    resumed = fitting(settings, keep=keep, seed=99)
    resumed.restore(torch.load(tmp_path / "net.partial", weights_only=True))
    again, rest = run(resumed, tmp_path)
    assert whole.keys() == again.keys()
    assert all(equal(whole[name], again[name]) for name in whole)
    assert [_untimed(one) for one in records[-len(rest) :]] == [_untimed(one) for one in rest]


def _untimed(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "seconds"}


def test_one_seed_gives_one_net_and_another_another(tmp_path: Path) -> None:
    """Two fits with one seed have bit-identical weights."""
    first, second, other = (run(fitting(seed=seed), tmp_path)[0]["coarse"] for seed in (1, 1, 2))
    assert equal(first, second)
    assert not equal(first, other)


def test_table_1_in_bfloat16_is_reproducible(tmp_path: Path) -> None:
    """The net that takes the hours, one step of it, twice."""
    settings = Fit(table=1, epochs=1, batch=2, precision="bfloat16", schedule=Constant())
    first, second = (run(fitting(settings), tmp_path, made=windows(2))[0]["coarse"] for _ in range(2))
    assert equal(first, second)


def test_the_best_epoch_is_kept(tmp_path: Path) -> None:
    """What is returned scores what the history says was the best."""
    one = fitting(msgspec.structs.replace(FAST, epochs=4, rate=1e-2))
    kept, records = run(one, tmp_path)
    best = max(float(record["coarse_micro_auprc"]) for record in records)
    assert [r["epoch"] for r in records if "coarse" in str(r.get("best", "")).split("+")][-1] == next(
        r["epoch"] for r in records if r["coarse_micro_auprc"] == best
    )
    judged = fitting()
    judged.restore(one.state() | {"net": kept["coarse"]})
    made = windows()
    probabilities, _ = judged.evaluate(Examples(made, np.arange(len(made)), made.labels))
    assert judge_root(SONYC_UST, made.labels, probabilities)["coarse_micro_auprc"] == pytest.approx(best)


def test_training_learns(tmp_path: Path) -> None:
    """Ten epochs of two kinds of window: the loss falls by more than half."""
    settings = Fit(table=2, epochs=10, batch=4, rate=3e-3, conv_dropout=0.0, schedule=Constant())
    _, records = run(fitting(settings), tmp_path)
    assert float(records[-1]["loss"]) < float(records[0]["loss"]) / 2


def test_a_figure_that_is_no_number_keeps_the_last_epoch(tmp_path: Path) -> None:
    """Without fine labels no epoch is the best at the fine level; the net is kept all the same."""
    made = windows()
    made.labels[:, 8:] = NAN
    kept, records = run(fitting(), tmp_path, made=made)
    assert all(math.isnan(float(record["fine_micro_auprc"])) for record in records)
    assert set(kept) == {"coarse", "fine"}


def test_a_loss_that_is_no_number_stops_with_the_step(tmp_path: Path) -> None:
    """The epoch and step are named, and the checkpoint of the epoch before stays."""
    one = fitting(msgspec.structs.replace(FAST, epochs=1))
    run(one, tmp_path)
    good = (tmp_path / "net.partial").read_bytes()
    broken = windows()
    broken.logmel[...] = NAN
    later = fitting()
    later.restore(torch.load(tmp_path / "net.partial", weights_only=True))
    with pytest.raises(DivergedError, match="epoch 2, step 1"):
        run(later, tmp_path, made=broken)
    assert (tmp_path / "net.partial").read_bytes() == good


@pytest.mark.parametrize("validated", [True, False])
def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path, validated: bool) -> None:
    """The last step of an epoch spoils them, and no training loss is left to tell."""
    keep = {"branch": "validation_loss" if validated else "loss"}
    one = fitting(msgspec.structs.replace(FAST, epochs=1, rate=math.inf, batch=16), keep=keep)
    made = windows()
    examples = Examples(made, np.arange(len(made)), made.labels)
    with pytest.raises(DivergedError, match=r"weight .* epoch 1, step 1"):
        one.run(
            examples,
            examples if validated else None,
            lambda targets, probabilities: {},
            checkpoint=tmp_path / "net.partial",
            stop=Stop(),
            on_step=lambda done, of: None,
            on_epoch=lambda record: None,
        )
    assert not (tmp_path / "net.partial").exists()


def test_a_validation_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    """The training windows are sound, the validation windows are not."""
    broken, made = windows(), windows()
    broken.logmel[...] = NAN
    rows = np.arange(len(made))
    with pytest.raises(DivergedError, match=r"validation loss is nan after epoch 1"):
        fitting().run(
            Examples(made, rows, made.labels),
            Examples(broken, rows, made.labels),
            partial(judge_root, SONYC_UST),
            checkpoint=tmp_path / "net.partial",
            stop=Stop(),
            on_step=lambda done, of: None,
            on_epoch=lambda record: None,
        )


def test_embeddings_reach_the_net(tmp_path: Path) -> None:
    """A net with an embedding trains, and other embeddings give other weights."""
    settings = msgspec.structs.replace(FAST, epochs=1)
    nets = []
    for scale in (1.0, 0.5):
        made = windows(embedding=True)
        assert made.embedding is not None
        scaled = Windows(made.logmel, made.labels, np.asarray(made.embedding) * np.float32(scale))
        one = Fitting(
            settings,
            37,
            fusion="concat",
            positive=torch.ones(37),
            keep=KEEP,
            seed=1,
            device=torch.device("cpu"),
        )
        nets.append(run(one, tmp_path, made=scaled)[0]["coarse"])
    assert not equal(*nets)


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(9, 4, [4, 5]), (8, 4, [4, 4]), (10, 4, [4, 4, 2]), (3, 4, [3]), (5, 4, [5]), (1, 4, [1])],
)
def test_no_batch_of_one_is_left_over(n: int, size: int, expected: list[int]) -> None:
    """Batch norm cannot tell the spread of one; every example is in one batch, in ascending order."""
    order = np.random.default_rng(0).permutation(n)
    batches = split_batches(order, size)
    assert [len(batch) for batch in batches] == expected
    assert sorted(np.concatenate(batches).tolist()) == list(range(n))
    assert all((np.diff(batch) > 0).all() for batch in batches)


def test_unknown_labels_add_nothing_to_the_loss() -> None:
    """The mean is over what is known; a wholly unknown batch costs nothing."""
    logits = torch.tensor([[2.0, -1.0]])
    both = masked_loss(logits[:, :1], torch.tensor([[1.0]]), torch.ones(1))
    assert torch.equal(masked_loss(logits, torch.tensor([[1.0, NAN]]), torch.ones(2)), both)
    assert masked_loss(logits, torch.full((1, 2), NAN), torch.ones(2)) == 0


def test_positive_weights_are_the_smoothed_ratio() -> None:
    """(negatives/positives) ** smoothing; 1 where a tag has no positive, no negative, or smoothing is off."""
    labels: NDArray[np.float32] = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, NAN, NAN]], np.float32)
    assert positive_weight(labels, 1.0).tolist() == [3.0, 1.0, 1.0]
    assert positive_weight(labels, 0.0).tolist() == [1.0, 1.0, 1.0]
    assert positive_weight(np.float32([[0.25], [0.25]]), 1.0).tolist() == [3.0]


def test_without_augmentation_a_window_is_what_it_was() -> None:
    """And with it, it is still a window relative to its own maximum, above the floor."""
    rng = np.random.default_rng(0)
    made = windows(2)
    untouched = augmented(rng, np.asarray(made.logmel), FAST).numpy()
    np.testing.assert_array_equal(untouched[:, 0], np.asarray(made.logmel, np.float32))
    settings = msgspec.structs.replace(FAST, roll=True, band_gain_db=3.0, mask_share=0.2)
    varied = augmented(rng, np.asarray(made.logmel), settings).numpy()
    assert varied.max() <= 0
    assert varied.min() == -80


def test_every_kind_of_epoch_can_be_logged(capsys: pytest.CaptureFixture[str]) -> None:
    """With the schedule's event, with figures that are no numbers, with neither."""
    watcher = LogWatcher()
    watcher.on_epoch("root", {"epoch": 1, "loss": 0.25, "rate": 1e-3, "best": "coarse", "event": "restarted"})
    watcher.on_epoch("root", {"epoch": 2, "loss": 0.25, "fine_micro_auprc": math.nan})
    logged = capsys.readouterr().out
    assert "restarted" in logged
    assert "nan" in logged
