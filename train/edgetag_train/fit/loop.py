"""The training loop of one net, and everything of it that a checkpoint must hold."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from edgetag.contract.errors import InputError
from edgetag.contract.frontend import FLOOR_DB
from edgetag_train.data.features import Windows
from edgetag_train.fit import checkpoint as states
from edgetag_train.fit.schedule import Schedule
from edgetag_train.fit.stopping import Stop
from edgetag_train.models.cnn import Fusion, TaggingNet
from edgetag_train.recipe import Cosine, Fit

StateDict = dict[str, Tensor]
Record = dict[str, float | int | str]
Judge = Callable[[NDArray[np.float32], NDArray[np.float32]], dict[str, float]]
"""Targets [n, c] and probabilities [n, c] of the validation examples -> figures, more being better."""

LAST = "last"
EVALUATION_BATCH = 64
SAVE_EVERY_S = 300.0


class DivergedError(InputError):
    """The loss is no number: other data or another recipe is needed."""


@dataclass(frozen=True, eq=False)
class Examples:
    """What a net is shown and asked. Shape: rows [m] ascending, targets [m, c] in [0, 1], NaN unknown"""

    windows: Windows
    rows: NDArray[np.intp]
    targets: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)


class Fitting:
    """One net in training: what changes from step to step is in `state()`, all of it.

    Args:
        keep: checkpoint name -> the figure (of `Judge`, or "loss") whose best epoch it holds. Empty: the
            running mean of the weights is kept in the end, under the name `last`.
    """

    def __init__(
        self,
        settings: Fit,
        n_outputs: int,
        *,
        fusion: Fusion,
        positive: Tensor,
        keep: Mapping[str, str],
        seed: int,
        device: torch.device,
    ) -> None:
        torch.manual_seed(seed)
        self._rng = np.random.default_rng(seed)
        self._settings, self._keep, self._device = settings, dict(keep), device
        # Table 1 is faster in channels_last. On the CPU torch 2.13 corrupts its memory with Table 2's row 1.
        self._memory = torch.channels_last if settings.table == 1 else torch.contiguous_format
        self._net = TaggingNet(
            settings.table,
            n_outputs,
            fusion=fusion,
            conv_dropout=settings.conv_dropout,
            fc_dropout=settings.fc_dropout,
        ).to(device, memory_format=self._memory)
        self._positive = positive.to(device)
        self._mean = _running_mean(self._net, settings)
        kind = torch.optim.Adam if settings.optimiser == "adam" else torch.optim.RMSprop
        self._optimiser = kind(self._net.parameters(), lr=settings.rate)
        self._schedule = Schedule(settings)
        self.epoch = 0
        self._step = 0
        self._order: NDArray[np.intp] | None = None
        self._losses: list[float] = []
        self._best: dict[str, tuple[float, int, StateDict]] = {}
        self._saved_s = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the schedule has come to its end."""
        return self.epoch >= self._settings.epochs or self._schedule.finished

    def run(
        self,
        train: Examples,
        validation: Examples | None,
        judge: Judge,
        *,
        checkpoint: Path,
        stop: Stop,
        on_step: Callable[[int, int], None],
        on_epoch: Callable[[Record], None],
    ) -> dict[str, StateDict]:
        """Train to the end from wherever it stands; the weights to keep, by checkpoint name.

        `on_step` hears the number of steps done in this epoch and of all of them.

        Raises:
            Stopped: asked to; the state is in `checkpoint`.
            DivergedError: the loss or a weight is no number; `checkpoint` holds the last state that was good.
        """
        while not self.finished:
            started_s = time.monotonic()
            rate = self._schedule.rate(self.epoch / self._settings.epochs)
            self._train_epoch(train, checkpoint, stop, on_step)
            record: Record = {"epoch": self.epoch + 1, "loss": float(np.mean(self._losses)), "rate": rate}
            record |= self._end_epoch(validation, judge, record)
            record["seconds"] = round(time.monotonic() - started_s, 2)
            on_epoch(record)
            self.save(checkpoint)
        return self._kept()

    def _train_epoch(
        self, train: Examples, checkpoint: Path, stop: Stop, on_step: Callable[[int, int], None]
    ) -> None:
        if self._order is None:
            self._order, self._step, self._losses = self._rng.permutation(len(train)), 0, []
        batches = split_batches(self._order, self._settings.batch)
        for batch in batches[self._step :]:
            rate = self._schedule.rate((self.epoch + self._step / len(batches)) / self._settings.epochs)
            self._losses.append(self._train_step(train, batch, rate))
            self._step += 1
            on_step(self._step, len(batches))
            if stop.asked or time.monotonic() - self._saved_s > SAVE_EVERY_S:
                self._check_weights()
                self.save(checkpoint)
                stop.check()

    def _train_step(self, train: Examples, batch: NDArray[np.intp], rate: float) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._net.train()
        rows = train.rows[batch]
        logmel = augmented(self._rng, train.windows.logmel[rows], self._settings)
        logits = self._logits(logmel, train.windows, rows, shuffle=self._settings.shuffle)
        targets = torch.from_numpy(train.targets[batch]).to(self._device)
        loss = masked_loss(logits, targets, self._positive)
        if not torch.isfinite(loss):
            raise self._diverged(f"the loss is {loss.item()} in", self._step + 1)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        if self._mean is not None:
            self._mean.update_parameters(self._net)
        return loss.item()

    def _logits(
        self, logmel: Tensor, windows: Windows, rows: NDArray[np.intp], *, shuffle: bool = False
    ) -> Tensor:
        embedding = None
        if self._net.fusion != "none":
            assert windows.embedding is not None
            patches = np.asarray(windows.embedding[rows])
            if shuffle:
                order = self._rng.permuted(np.tile(np.arange(patches.shape[1]), (len(rows), 1)), axis=1)
                patches = np.take_along_axis(patches, order[:, :, np.newaxis], axis=1)
            embedding = torch.from_numpy(patches).to(self._device)
        reduced = self._settings.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=reduced):
            logits: Tensor = self._net(
                logmel.to(self._device).contiguous(memory_format=self._memory), embedding
            )
        return logits.float()

    def _end_epoch(self, validation: Examples | None, judge: Judge, record: Record) -> Record:
        """Judge the net, keep it where it is the best so far, ask the schedule; the figures."""
        self._check_weights()
        figures: dict[str, float] = {}
        loss = record["loss"]
        if validation is not None and self._keep:
            probabilities, loss = self.evaluate(validation)
            if not math.isfinite(loss):
                raise self._diverged(f"the validation loss is {loss} after", self._step)
            figures = judge(validation.targets, probabilities) | {"validation_loss": loss}
        heard = record | figures
        scores = {name: _score(figure, float(heard[figure])) for name, figure in self._keep.items()}
        improved = [name for name, score in scores.items() if score > self._best_score(name)]
        self.epoch += 1
        for name in improved:
            self._best[name] = (scores[name], self.epoch, _copy(self._net.state_dict()))
        first = next(iter(self._keep), None)
        event = self._schedule.end_epoch(improved=first in improved, loss=float(loss))
        self._order = None
        notes = {"best": "+".join(improved)} if improved else {}
        return figures | notes | ({"event": event} if event else {})

    def _best_score(self, name: str) -> float:
        return self._best[name][0] if name in self._best else -math.inf

    @torch.inference_mode()
    def evaluate(self, examples: Examples) -> tuple[NDArray[np.float32], float]:
        """Probabilities [m, c], and the loss without positive weights."""
        self._net.eval()
        logits = torch.cat(
            [
                self._logits(plain(examples.windows.logmel[rows]), examples.windows, rows).cpu()
                for rows in _slices(examples.rows, EVALUATION_BATCH)
            ]
        )
        loss = masked_loss(logits, torch.from_numpy(examples.targets), torch.ones(logits.shape[1]))
        return torch.sigmoid(logits).numpy(), loss.item()

    def _kept(self) -> dict[str, StateDict]:
        last = self._net if self._mean is None else self._mean.module
        if not self._keep:
            return {LAST: _copy(last.state_dict())}
        return {
            name: self._best[name][2] if name in self._best else _copy(last.state_dict())
            for name in self._keep
        }

    def save(self, path: Path) -> None:
        """Write the whole state, atomically."""
        states.save(self.state(), path)
        self._saved_s = time.monotonic()

    def _check_weights(self) -> None:
        """Before they are kept: a gradient that is no number spoils them before any loss tells."""
        if not all(tensor.isfinite().all() for tensor in self._net.state_dict().values()):
            raise self._diverged("a weight is no finite number after", self._step)

    def _diverged(self, what: str, step: int) -> DivergedError:
        rate = self._optimiser.param_groups[0]["lr"]
        return DivergedError(
            f"{what} epoch {self.epoch + 1}, step {step}; "
            f"what was good before is kept. Look at the data, or lower the rate ({rate:g})"
        )

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "epoch": self.epoch,
            "step": self._step,
            "order": None if self._order is None else torch.from_numpy(self._order),
            "losses": self._losses,
            "net": self._net.state_dict(),
            "mean": None if self._mean is None else self._mean.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state(),
            "best": {name: list(best) for name, best in self._best.items()},
            "rng": self._rng.bit_generator.state,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if self._device.type == "cuda" else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Stand where `state` was taken."""
        self.epoch, self._step, self._losses = state["epoch"], state["step"], list(state["losses"])
        self._order = None if state["order"] is None else state["order"].numpy()
        self._net.load_state_dict(state["net"])
        if self._mean is not None:
            self._mean.load_state_dict(state["mean"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.restore(state["schedule"])
        self._best = {name: (best[0], best[1], best[2]) for name, best in state["best"].items()}
        self._rng.bit_generator.state = state["rng"]
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] is not None and self._device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"])


def masked_loss(logits: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """Mean binary cross-entropy over the labels that are known. Shape: [n, c], [n, c] with NaN, [c] -> []"""
    known = ~torch.isnan(targets)
    losses = binary_cross_entropy_with_logits(
        logits, targets.nan_to_num(), weight=known.float(), pos_weight=positive, reduction="sum"
    )
    return losses / known.sum().clamp(min=1)


def positive_weight(targets: NDArray[np.float32], smoothing: float) -> Tensor:
    """(negatives / positives) ** smoothing per tag, 1 where either is missing. Shape: [n, c] -> [c]

    A soft label of 0.3 counts as 0.3 positives and 0.7 negatives.
    """
    positives, known = np.nansum(targets, axis=0), np.sum(~np.isnan(targets), axis=0)
    negatives = known - positives
    either = (positives > 0) & (negatives > 0)
    ratio = np.divide(negatives, positives, out=np.ones(targets.shape[1]), where=either)
    return torch.from_numpy(ratio**smoothing).float()


def split_batches(order: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
    """Batches of `size` and what is left over, each ascending for the disk's sake.

    One example left over joins the batch before it: batch norm cannot tell the spread of one.
    """
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    ends = [*starts[1:], len(order)]
    return [np.sort(order[start:end]) for start, end in zip(starts, ends, strict=True)]


def plain(logmel: NDArray[np.float16]) -> Tensor:
    """Shape: [n, 128, 862] -> [n, 1, 128, 862]"""
    return torch.from_numpy(np.asarray(logmel)).float()[:, None]


def augmented(rng: np.random.Generator, logmel: NDArray[np.float16], settings: Fit) -> Tensor:
    """Rolled in time, heard through another frequency response, a band and a span of frames blanked.

    Shape: [n, 128, 862] -> [n, 1, 128, 862], each window relative to its own maximum again
    """
    if not (settings.roll or settings.band_gain_db or settings.mask_share):
        return plain(logmel)
    n, n_mels, n_frames = logmel.shape
    windows = np.empty((n, 1, n_mels, n_frames), np.float32)
    for k in range(n):
        shift = int(rng.integers(n_frames)) if settings.roll else 0
        window = np.roll(logmel[k], shift, axis=1).astype(np.float32)
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


def _score(figure: str, value: float) -> float:
    """More is better; what is no number (no positives) is never better than anything."""
    return -value if figure.endswith("loss") else value


def _running_mean(net: TaggingNet, settings: Fit) -> AveragedModel | None:
    if not isinstance(settings.schedule, Cosine):
        return None
    return AveragedModel(
        net, multi_avg_fn=get_ema_multi_avg_fn(settings.schedule.averaging), use_buffers=True
    )


def _copy(state: Mapping[str, Tensor]) -> StateDict:
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def _slices(rows: NDArray[np.intp], size: int) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
