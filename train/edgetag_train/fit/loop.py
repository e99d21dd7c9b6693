"""The training loop, on one screen."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgetag.contract.frontend import FLOOR_DB
from edgetag_train.data.features import Windows
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.recipe import Fit


@dataclass(frozen=True)
class Epoch:
    """What one pass over the scenes came to."""

    number: int
    loss: float
    seconds: float


def fit(
    windows: Windows,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    settings: Fit,
    *,
    seed: int,
    on_epoch: Callable[[Epoch], None],
) -> TaggingNet:
    """Train one net on the windows `rows`, one output per label column of `columns`.

    Labels that are not known (NaN) add nothing to the loss. The weights returned are the running mean
    over the last steps; no validation set is looked at, so none is spent.

    Raises:
        FloatingPointError: the loss is not a number; the step is named.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    # Table 1 takes half the time in bfloat16 and channels_last. Table 2 is small, and on the CPU torch 2.13
    # corrupts its memory there (row 1, channels_last) and gives other gradients each time (row 6, bfloat16).
    large = settings.table == 1
    memory_format = torch.channels_last if large else torch.contiguous_format
    net = TaggingNet(
        settings.table,
        len(columns),
        fusion=settings.fusion,
        conv_dropout=settings.conv_dropout,
        fc_dropout=settings.fc_dropout,
    ).to(memory_format=memory_format)
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging), use_buffers=True)
    optimiser = _optimiser(net, settings)
    steps_per_epoch = max(1, len(rows) // settings.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.epochs * steps_per_epoch)
    weight = positive_weight(windows.labels[np.ix_(rows, columns)], settings.smoothing)
    net.train()
    for number in range(1, settings.epochs + 1):
        started_s, losses = time.monotonic(), []
        for batch in _batches(rng, rows, settings.batch):
            logmel = _augmented(rng, windows.logmel[batch], settings)
            with torch.autocast("cpu", torch.bfloat16, enabled=large):
                logits = net(logmel.to(memory_format=memory_format))
            loss = masked_loss(
                logits.float(), torch.from_numpy(windows.labels[np.ix_(batch, columns)]), weight
            )
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"the loss is {loss.item()} in epoch {number}, step {len(losses) + 1}"
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            mean.update_parameters(net)
            losses.append(loss.item())
        on_epoch(Epoch(number, float(np.mean(losses)), time.monotonic() - started_s))
    return mean.module.eval()


def masked_loss(logits: Tensor, labels: Tensor, positive: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that are known. Shape: [n, c], [n, c] with NaN, [c] -> []"""
    known = ~torch.isnan(labels)
    losses = binary_cross_entropy_with_logits(
        logits, labels.nan_to_num(), weight=known.float(), pos_weight=positive, reduction="sum"
    )
    return losses / known.sum().clamp(min=1)


def positive_weight(labels: NDArray[np.float32], smoothing: float) -> Tensor:
    """(negatives / positives) ** smoothing per tag, 1 where either is missing. Shape: [n, c] -> [c]"""
    positives, negatives = np.nansum(labels == 1, axis=0), np.nansum(labels == 0, axis=0)
    ratio = np.where((positives > 0) & (negatives > 0), negatives / np.maximum(positives, 1), 1.0)
    return torch.from_numpy(ratio**smoothing).float()


def _optimiser(net: nn.Module, settings: Fit) -> torch.optim.Optimizer:
    kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.RMSprop
    return kind(net.parameters(), lr=settings.rate)


def _batches(rng: np.random.Generator, rows: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    """Shuffled, each sorted for the disk's sake; a remainder is left out (batch norm needs two or more)."""
    shuffled = rng.permutation(rows)
    for start in range(0, max(1, len(rows) - size + 1), size):
        yield np.sort(shuffled[start : start + size])


def _augmented(rng: np.random.Generator, logmel: NDArray[np.float16], settings: Fit) -> Tensor:
    """Rolled in time, heard through another frequency response, a band and a span of frames blanked.

    Shape: [n, 128, 862] -> [n, 1, 128, 862], each window relative to its own maximum again
    """
    n, n_mels, n_frames = logmel.shape
    windows = np.empty((n, 1, n_mels, n_frames), np.float32)
    for k in range(n):
        window = np.roll(logmel[k], int(rng.integers(n_frames)), axis=1).astype(np.float32)
        window += _smooth_gain_db(rng, n_mels, settings.band_gain_db)[:, np.newaxis]
        window -= window.max()
        band, span = (int(rng.integers(int(settings.mask_share * size) + 1)) for size in (n_mels, n_frames))
        low, start = int(rng.integers(n_mels - band + 1)), int(rng.integers(n_frames - span + 1))
        window[low : low + band] = FLOOR_DB
        window[:, start : start + span] = FLOOR_DB
        windows[k, 0] = np.maximum(window, FLOOR_DB)
    return torch.from_numpy(windows)


def _smooth_gain_db(rng: np.random.Generator, n_mels: int, deviation_db: float) -> NDArray[np.float32]:
    """Straight lines between eight random gains. Shape: -> [n_mels]"""
    knots = rng.normal(0.0, deviation_db, 8)
    return np.interp(np.linspace(0, 7, n_mels), np.arange(8), knots).astype(np.float32)
