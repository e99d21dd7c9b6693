"""Fit a whole system: the root net, then a branch net for each category with more than one fine tag.

A run directory holds `recipe.json`, one `*.pt` a net, `history.jsonl`. Nets already there are kept, so an
interrupted run goes on at the first net that is missing.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.features import Windows, mix_scenes
from edgetag_train.data.sounds import INDEX
from edgetag_train.fit.loop import Epoch, fit
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.recipe import Fit, Recipe

log = structlog.get_logger("edgetag.train")
ROOT = "root"


def outputs(net: str) -> tuple[str, ...]:
    """Tag ids of a net's outputs: every tag for `root`, a category's fine tags for `branch-<id>`."""
    if net == ROOT:
        return SONYC_UST.ids
    return tuple(tag.id for tag in SONYC_UST.category(net.removeprefix("branch-")).fine)


def net_names() -> tuple[str, ...]:
    """`root`, then the branches in taxonomy order."""
    return (ROOT, *(f"branch-{id}" for id in SONYC_UST.branch_ids))


def fit_system(recipe: Recipe, data: Path, out: Path) -> None:
    """Train every net of `recipe` on scenes mixed from `data` into the run directory `out`.

    Raises:
        InputError: the data cannot be read, or `out` holds a run of another recipe.
    """
    _claim(out, recipe)
    windows = mix_scenes(data, out / "scenes", recipe.scenes, n_scenes=recipe.n_scenes, seed=recipe.seed)
    for number, name in enumerate(net_names()):
        if (out / f"{name}.pt").exists():
            continue
        settings = recipe.root if name == ROOT else recipe.branch
        rows = examples(windows, name)
        if len(rows) < 2:
            log.warning("net left out: no example", net=name)
            continue
        log.info("fitting", net=name, table=settings.table, examples=len(rows), epochs=settings.epochs)
        net = _fit_net(name, windows, rows, settings, recipe.seed + number, out)
        _save(net.state_dict(), out / f"{name}.pt")


def examples(windows: Windows, name: str) -> NDArray[np.intp]:
    """Rows a net learns from: all for the root, those of its category with a known fine tag for a branch."""
    if name == ROOT:
        return np.arange(len(windows))
    coarse = windows.labels[:, INDEX[name.removeprefix("branch-")]]
    fine = windows.labels[:, [INDEX[id] for id in outputs(name)]]
    return np.flatnonzero((coarse == 1) & ~np.isnan(fine).all(axis=1))


def load_net(run: Path, name: str, settings: Fit) -> TaggingNet:
    """A trained net of a run, ready for inference.

    Raises:
        InputError: the run has no such net.
    """
    net = TaggingNet(settings.table, len(outputs(name)), fusion=settings.fusion)
    try:
        net.load_state_dict(torch.load(run / f"{name}.pt", weights_only=True))
    except FileNotFoundError:
        raise InputError(f"{run} holds no {name}.pt; fit it first: edgetag train fit …") from None
    return net.eval()


def _fit_net(
    name: str, windows: Windows, rows: NDArray[np.intp], settings: Fit, seed: int, out: Path
) -> TaggingNet:
    started_s = time.monotonic()

    def on_epoch(epoch: Epoch) -> None:
        line = {
            "net": name,
            "epoch": epoch.number,
            "loss": round(epoch.loss, 4),
            "seconds": round(epoch.seconds, 1),
        }
        with (out / "history.jsonl").open("ab") as history:
            history.write(msgspec.json.encode(line) + b"\n")
        log.info("epoch", **line, elapsed_s=round(time.monotonic() - started_s))

    columns = np.array([INDEX[id] for id in outputs(name)])
    return fit(windows, rows, columns, settings, seed=seed, on_epoch=on_epoch)


def _save(state: Mapping[str, object], path: Path) -> None:
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def _claim(out: Path, recipe: Recipe) -> None:
    out.mkdir(parents=True, exist_ok=True)
    stamp, stated = out / "recipe.json", msgspec.json.encode(recipe)
    if stamp.exists() and stamp.read_bytes() != stated:
        raise InputError(f"{out} holds a run of another recipe; choose an empty folder")
    stamp.write_bytes(stated)
