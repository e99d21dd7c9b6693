"""Fit a whole system: the root net, then a branch net for each category with more than one fine tag.

A run directory holds

- `recipe.json`, the whole recipe, and `provenance.json`, what it was run on and with;
- `root-coarse.pt` and `root-fine.pt`, the root's best checkpoints (`root.pt`, where the recipe keeps the
  running mean), and `branch-<id>.pt`; each with its recipe and provenance;
- `history.jsonl`, a line per epoch;
- `<net>.partial`, the whole state of the net that was being fitted when the run stopped.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import msgspec
import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.features import Windows
from edgetag_train.data.sounds import INDEX
from edgetag_train.data.training import TrainingData
from edgetag_train.embedding import Embedding
from edgetag_train.files import writing
from edgetag_train.fit import checkpoint as states
from edgetag_train.fit.loop import LAST, Examples, Fitting, Record, positive_weight
from edgetag_train.fit.progress import Watcher, watch
from edgetag_train.fit.stopping import Stop, stop_on_signals
from edgetag_train.metrics import evaluate
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.recipe import Cosine, Recipe

log = structlog.get_logger("edgetag.train")
ROOT = "root"
_LAST_LAYER = "classifier.7"


@dataclass(frozen=True)
class Run:
    """A run directory and what it was begun with."""

    path: Path
    recipe: Recipe
    provenance: dict[str, Any]

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


def read_run(path: Path) -> Run:
    """
    Raises:
        InputError: `path` is no run directory.
    """
    try:
        recipe = msgspec.json.decode((path / "recipe.json").read_bytes(), type=Recipe)
        provenance = msgspec.json.decode((path / "provenance.json").read_bytes(), type=dict)
        msgspec.convert(provenance, _Stated)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path} is no run directory ({error}); make one with: edgetag train fit") from error
    return Run(path, recipe, provenance)


def outputs(net: str) -> tuple[str, ...]:
    """Tag ids of a net's outputs: every tag for `root`, a category's fine tags for `branch-<id>`."""
    if net.startswith(ROOT):
        return SONYC_UST.ids
    return tuple(tag.id for tag in SONYC_UST.category(net.removeprefix("branch-")).fine)


def net_names(recipe: Recipe) -> tuple[str, ...]:
    """`root`, then the branches in taxonomy order, if the recipe has any."""
    branches = (f"branch-{id}" for id in SONYC_UST.branch_ids) if recipe.branch else ()
    return (ROOT, *branches)


def checkpoints(recipe: Recipe, net: str) -> tuple[str, ...]:
    """Names of the files (less `.pt`) that a fitted net leaves."""
    if net != ROOT:
        return (net,)
    return ("root-coarse", "root-fine") if recipe.keeps_two else (ROOT,)


def chosen_root(recipe: Recipe) -> str:
    """The root checkpoint that the system stands on."""
    return f"root-{recipe.root_checkpoint}" if recipe.keeps_two else ROOT


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
        InputError: `out` holds another run, or one while `resume` is false; nothing to train on.
        DivergedError: a loss is no number.
        OutputError: `out` cannot be written.
        Stopped: a signal asked for an end; what was done is kept.
    """
    with writing(out), stop_on_signals() as stop, watch() as watcher:
        run = _claim(out, recipe, _provenance(data, embedding, device, overrides), resume=resume)
        if root is not None:
            _take_root(run, root)
        for number, name in enumerate(net_names(recipe)):
            if not all(run.net_path(file).exists() for file in checkpoints(recipe, name)):
                _fit_net(run, data, name, recipe.seed + number, device or torch.device("cpu"), stop, watcher)


def _fit_net(
    run: Run,
    data: TrainingData,
    name: str,
    seed: int,
    device: torch.device,
    stop: Stop,
    watcher: Watcher,
) -> None:
    recipe = run.recipe
    settings = recipe.root if name == ROOT else recipe.branch
    assert settings is not None
    dummy = recipe.branch_negatives == "dummy"
    train = examples(data.train, name, dummy=dummy)
    if name == ROOT and len(train) < 2:
        raise InputError(f"{len(train)} windows to train on; batch norm needs two at the least")
    if len(train) < 2 or (name != ROOT and not (train.targets[:, : len(outputs(name))] > 0).any()):
        log.warning("net left out: too few examples", net=name, category=_label(name), examples=len(train))
        return
    validation = examples(data.validation, name, dummy=dummy) if data.validation else None
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
    partial_state = run.path / f"{name}.partial"
    if partial_state.exists():
        _restore(fitting, partial_state)
    _forget_epochs_after(run.path / "history.jsonl", name, fitting.epoch)
    log.info("fitting", net=name, table=settings.table, examples=len(train), from_epoch=fitting.epoch + 1)
    kept = fitting.run(
        train,
        validation,
        judge_root if name == ROOT else lambda targets, probabilities: {},
        checkpoint=partial_state,
        stop=stop,
        on_step=watcher.on_step,
        on_epoch=partial(_note_epoch, run.path / "history.jsonl", name, watcher),
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
    settings = recipe.root if name == ROOT else recipe.branch
    assert settings is not None
    if isinstance(settings.schedule, Cosine):
        return {}
    if name != ROOT:
        return {name: "validation_loss" if validated else "loss"}
    return {level: f"{level}_micro_auprc" if validated else "loss" for level in ("coarse", "fine")}


def judge_root(targets: NDArray[np.float32], probabilities: NDArray[np.float32]) -> dict[str, float]:
    """Micro AUPRC at both levels; NaN where nothing is labelled."""
    return {
        f"{level}_micro_auprc": evaluate(targets, probabilities, level, ties="threshold").micro_auprc
        for level in ("coarse", "fine")
    }


def examples(windows: Windows, name: str, *, dummy: bool = False) -> Examples:
    """What a net learns from: every window for the root; for a branch those of its category with a known
    fine tag, or with `dummy` every window with one, asked for one output more: "not this category".
    """
    columns = [INDEX[id] for id in outputs(name)]
    fine = windows.labels[:, columns]
    if name == ROOT:
        return Examples(windows, np.arange(len(windows)), fine)
    coarse = windows.labels[:, INDEX[name.removeprefix("branch-")]]
    known = ~np.isnan(fine).all(axis=1)
    if not dummy:
        rows = np.flatnonzero((coarse > 0.5) & known)
        return Examples(windows, rows, fine[rows])
    rows = np.flatnonzero(~np.isnan(coarse) & known)
    return Examples(windows, rows, np.column_stack([fine[rows], 1 - coarse[rows]]))


def load_net(run: Run, name: str) -> TaggingNet:
    """A trained net of a run (`root-coarse`, `branch-1`), ready for inference, its dummy output dropped.

    Raises:
        InputError: the run has no such net, or its file is damaged.
    """
    settings = run.recipe.root if name.startswith(ROOT) else run.recipe.branch
    assert settings is not None
    net = TaggingNet(settings.table, len(outputs(name)), fusion=run.recipe.fusion)
    try:
        weights = states.load(run.net_path(name))["weights"]
        for part in ("weight", "bias"):
            weights[f"{_LAST_LAYER}.{part}"] = weights[f"{_LAST_LAYER}.{part}"][: len(outputs(name))]
        net.load_state_dict(weights)
    except FileNotFoundError:
        raise InputError(f"{run.path} holds no {name}.pt; go on with: edgetag train fit … --resume") from None
    except (KeyError, RuntimeError, TypeError) as error:  # a state, but not this net's
        raise states.damaged(run.net_path(name), error) from error
    return net.eval()


def branches_of(run: Run) -> list[str]:
    """Names of the branch nets that the run holds.

    Raises:
        InputError: one is being trained, or was when the run stopped.
    """
    if unfinished := sorted(path.stem for path in run.path.glob("*.partial")):
        raise InputError(
            f"{run.path} is not finished ({unfinished[0]} was in training); go on with: "
            "edgetag train fit … --resume"
        )
    return [name for name in net_names(run.recipe) if name != ROOT and run.net_path(name).exists()]


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


def _label(name: str) -> str:
    return "all" if name == ROOT else SONYC_UST.category(name.removeprefix("branch-")).label


def _note_epoch(history: Path, net: str, watcher: Watcher, record: Record) -> None:
    with history.open("ab") as file:
        file.write(msgspec.json.encode({"net": net} | record) + b"\n")
    watcher.on_epoch(net, record)


def _forget_epochs_after(history: Path, net: str, epoch: int) -> None:
    """Epochs noted but not saved will be trained, and noted, again."""
    if not history.exists():
        return
    kept = [line for line, note in _notes(history) if note.net != net or note.epoch <= epoch]
    unfinished = history.with_suffix(".tmp")
    unfinished.write_bytes(b"".join(kept))
    unfinished.replace(history)


class _Note(msgspec.Struct, frozen=True):
    net: str
    epoch: int


def _notes(history: Path) -> list[tuple[bytes, _Note]]:
    """The lines of a history and which epoch each is of; a last one that was torn off is left out."""
    lines = history.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    try:
        return [(line, msgspec.json.decode(line, type=_Note)) for line in lines]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{history} is damaged ({error}); restore it, or begin another run") from error


def _save(run: Run, name: str, weights: Mapping[str, torch.Tensor]) -> None:
    about = {"recipe": msgspec.to_builtins(run.recipe), "provenance": run.provenance}
    states.save({"weights": dict(weights)} | about, run.net_path(name))


def _provenance(
    data: TrainingData, embedding: Embedding | None, device: torch.device | None, overrides: Sequence[str]
) -> dict[str, Any]:
    return {
        "edgetag": version("edgetag"),
        "git": git_commit(Path(__file__)),
        "torch": str(torch.__version__),
        "device": str(device or "cpu"),
        "threads": torch.get_num_threads(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "overrides": list(overrides),
        "data": data.about,
        "embedding": embedding
        and {"kind": embedding.kind, "source": embedding.source, "sha256": embedding.sha256["fp32"]},
    }


def git_commit(source: Path) -> str | None:
    """The commit of the checkout that a source file is part of, `-dirty` where code was changed since.

    None where the file is in no checkout, or only lies in one (an installation inside of another project's).
    """
    try:
        _git(source, "ls-files", "--error-unmatch", source.name)
        changed = _git(source, "status", "--porcelain", "--untracked-files=no", ":(top)*.py", ":(top)*.yaml")
        return _git(source, "rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(source: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(source.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def check_start(recipe: Recipe, out: Path, *, root: Path | None, resume: bool) -> None:
    """Refuse what `fit_system` would refuse, before hours are spent on features.

    Raises:
        InputError: `out` holds another run, or one while `resume` is false; `root` is no such run.
        OutputError: `out` cannot be written.
    """
    with writing(out):
        _found(out, recipe, resume=resume)
        TemporaryFile(dir=out).close()
    if root is not None:
        _matching_root(root, recipe)


def _found(out: Path, recipe: Recipe, *, resume: bool) -> Run | None:
    """The run to go on with in `out`, None where there is none yet."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "recipe.json").exists():
        return None
    found = read_run(out)
    if not resume:
        raise InputError(f"{out} holds a run already; go on with it with --resume, or choose another folder")
    if found.recipe != recipe:
        raise InputError(f"{out} holds a run of another recipe; choose another folder")
    return found


def _claim(out: Path, recipe: Recipe, provenance: dict[str, Any], *, resume: bool) -> Run:
    """Begin a run in `out`, or find the one to go on with.

    What may not differ: the recipe, the data, the embedding.
    """
    found = _found(out, recipe, resume=resume)
    if found is None:
        (out / "provenance.json").write_bytes(msgspec.json.format(msgspec.json.encode(provenance)))
        (out / "recipe.json").write_bytes(msgspec.json.format(msgspec.json.encode(recipe)))
        return Run(out, recipe, provenance)
    for what in ("data", "embedding"):
        if found.provenance[what] != provenance[what]:
            raise InputError(f"{out} was begun with other {what}; choose another folder")
    return found


def _matching_root(other: Path, recipe: Recipe) -> Run:
    """Another run, if its root net is the one that this recipe would train."""
    source = read_run(other)
    for key in ("seed", "data", "fusion", "root"):
        if getattr(source.recipe, key) != getattr(recipe, key):
            raise InputError(f"{other} has another {key} than this recipe; its root cannot be taken")
    for name in checkpoints(recipe, ROOT):
        if not source.net_path(name).exists():
            raise InputError(f"{other} holds no {name}.pt; let it finish first")
    return source


def _take_root(run: Run, other: Path) -> None:
    """Copy another run's root net, if it is the one that this run would train."""
    source = _matching_root(other, run.recipe)
    for what in ("data", "embedding"):
        if source.provenance[what] != run.provenance[what]:
            raise InputError(f"{other} was run on other {what}; its root cannot be taken")
    for name in checkpoints(run.recipe, ROOT):
        run.net_path(name).write_bytes(source.net_path(name).read_bytes())
    (run.path / f"{ROOT}.partial").unlink(missing_ok=True)
    try:
        history = [line for line, note in _notes(other / "history.jsonl") if note.net == ROOT]
    except OSError as error:
        raise InputError(f"{other / 'history.jsonl'} cannot be read ({error.strerror})") from error
    _forget_epochs_after(run.path / "history.jsonl", ROOT, 0)
    with (run.path / "history.jsonl").open("ab") as file:
        file.writelines(history)
