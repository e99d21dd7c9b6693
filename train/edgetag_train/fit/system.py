"""Fit a whole system: the root net, then a branch net for each category with more than one fine tag."""

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import Taxonomy
from edgetag_train.data.features import Windows
from edgetag_train.data.training import TrainingData
from edgetag_train.embedding import Embedding
from edgetag_train.files import writing
from edgetag_train.fit import checkpoint as states
from edgetag_train.fit.begin import alone, claim, forget_epochs_after, note_epoch, provenance, take_root
from edgetag_train.fit.loop import LAST, Examples, Fitting, Record, positive_weight
from edgetag_train.fit.progress import watch
from edgetag_train.fit.run import (
    EVALUATION,
    FINISHED,
    ROOT,
    Run,
    checkpoints,
    coarse_id,
    net_names,
    outputs,
    settings_of,
)
from edgetag_train.fit.stopping import Stop, stop_on_signals
from edgetag_train.metrics import evaluate
from edgetag_train.recipe import Cosine, Recipe

log = structlog.get_logger("edgetag.train")


def fit_system(
    recipe: Recipe,
    data: TrainingData,
    out: Path,
    *,
    embedding: Embedding | None = None,
    root: Path | None = None,
    resume: bool = False,
    device: torch.device | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Train every net of `recipe` on `data` into the run directory `out`.

    Args:
        root: a finished run whose root net is taken over instead of training one: its seed, data, fusion
            and root section must be the same.
        resume: go on with the run in `out`, to the bit as if it had not been interrupted (on one machine's
            CPU).

    Raises:
        InputError: `out` holds another run, or one while `resume` is false, or another process is fitting in
            it; the recipe is for other tags than the data's; nothing to train on.
        DivergedError: a loss is no number.
        OutputError: `out` cannot be written.
        Stopped: a signal asked for an end; what was done is kept.
    """
    with writing(out), alone(out), stop_on_signals() as stop:
        stated = provenance(data, embedding, device, overrides)
        run = claim(out, recipe, data.taxonomy, stated, resume=resume)
        if root is not None:
            take_root(run, root)
        (out / FINISHED).unlink(missing_ok=True)
        names = net_names(recipe, data.taxonomy)
        for number, name in enumerate(names):
            if not _is_fitted(run, name):
                _fit_net(run, data, name, recipe.seed + number, device or torch.device("cpu"), stop)
        left_out = [name for name in names if not _is_fitted(run, name)]
        (out / FINISHED).write_bytes(msgspec.json.encode({"left_out": left_out}))


def _is_fitted(run: Run, name: str) -> bool:
    return all(run.net_path(file).exists() for file in checkpoints(run.recipe, name))


def _fit_net(
    run: Run,
    data: TrainingData,
    name: str,
    seed: int,
    device: torch.device,
    stop: Stop,
) -> None:
    recipe = run.recipe
    settings = settings_of(recipe, name)
    dummy = recipe.branch_negatives == "dummy"
    train = examples(data.train, name, run.taxonomy, dummy=dummy)
    if name == ROOT and len(train) < 2:
        raise InputError(f"{len(train)} windows to train on; batch norm needs two at the least")
    if len(train) < 2 or (name != ROOT and not (train.targets[:, : len(run.outputs(name))] > 0).any()):
        category = run.taxonomy.category(coarse_id(name)).label
        log.warning("net left out: too few examples", net=name, category=category, examples=len(train))
        return
    validation = examples(data.validation, name, run.taxonomy, dummy=dummy) if data.validation else None
    if validation is not None and not len(validation):
        validation = None
    keep = _keep(recipe, name, validation is not None)
    if validation is None and keep:
        log.warning("no validation example: the best epoch is told by the training loss", net=name)
    fitting = Fitting(
        settings,
        train.targets.shape[1],
        fusion=recipe.fusion,
        positive=positive_weight(train.targets, settings.smoothing),
        keep=keep,
        seed=seed,
        device=device,
    )
    shutil.rmtree(run.path / EVALUATION, ignore_errors=True)  # of nets that are replaced now
    partial_state = run.path / f"{name}.partial"
    if partial_state.exists():
        _restore(fitting, partial_state)
    history = run.path / "history.jsonl"
    forget_epochs_after(history, name, fitting.epoch)
    log.info("fitting", net=name, table=settings.table, examples=len(train), from_epoch=fitting.epoch + 1)

    with watch() as watcher:

        def on_epoch(record: Record) -> None:
            note_epoch(history, name, record)
            watcher.on_epoch(name, record)

        kept = fitting.run(
            train,
            validation,
            partial(judge_root, run.taxonomy) if name == ROOT else lambda targets, probabilities: {},
            checkpoint=partial_state,
            stop=stop,
            on_step=watcher.on_step,
            on_epoch=on_epoch,
        )
    for checkpoint, weights in kept.items():
        file = f"{ROOT}-{checkpoint}" if name == ROOT and checkpoint != LAST else name
        _save(run, file, weights)
    partial_state.unlink(missing_ok=True)


def _restore(fitting: Fitting, partial_state: Path) -> None:
    try:
        fitting.restore(states.load(partial_state))
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # a state, but not this net's
        raise states.damaged(partial_state, error) from error


def _keep(recipe: Recipe, name: str, validated: bool) -> dict[str, str]:
    if isinstance(settings_of(recipe, name).schedule, Cosine):
        return {}
    if name != ROOT:
        return {name: "validation_loss" if validated else "loss"}
    return {level: f"{level}_micro_auprc" if validated else "loss" for level in ("coarse", "fine")}


def judge_root(
    taxonomy: Taxonomy, targets: NDArray[np.float32], probabilities: NDArray[np.float32]
) -> dict[str, float]:
    """Micro AUPRC at both levels; NaN where nothing is labelled."""
    return {
        f"{level}_micro_auprc": evaluate(
            targets, probabilities, level, taxonomy, ties="threshold"
        ).micro_auprc
        for level in ("coarse", "fine")
    }


def examples(windows: Windows, name: str, taxonomy: Taxonomy, *, dummy: bool = False) -> Examples:
    """What a net learns from: every window for the root; for a branch those of its category with a known
    fine tag, or with `dummy` every window with one, asked for one output more: "not this category".
    """
    columns = [taxonomy.index[id] for id in outputs(name, taxonomy)]
    fine = windows.labels[:, columns]
    if name == ROOT:
        return Examples(
            windows, np.arange(len(windows)), fine if windows.targets is None else windows.targets
        )
    coarse = windows.labels[:, taxonomy.index[coarse_id(name)]]
    known = ~np.isnan(fine).all(axis=1)
    if not dummy:
        rows = np.flatnonzero((coarse > 0.5) & known)
        return Examples(windows, rows, fine[rows])
    rows = np.flatnonzero(~np.isnan(coarse) & known)
    return Examples(windows, rows, np.column_stack([fine[rows], 1 - coarse[rows]]))


def _save(run: Run, name: str, weights: Mapping[str, torch.Tensor]) -> None:
    about = {"recipe": msgspec.to_builtins(run.recipe), "provenance": run.provenance}
    states.save({"weights": dict(weights)} | about, run.net_path(name))
