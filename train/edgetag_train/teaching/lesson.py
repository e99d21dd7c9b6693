"""Teach an embedding net: one linear layer on its embedding must say what the teacher says of every patch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from edgetag_train.fit import checkpoint as states
from edgetag_train.fit.stopping import Stop
from edgetag_train.models.patch_net import PatchNet, Pupil
from edgetag_train.teaching.corpus import Corpus, to_logmel

log = structlog.get_logger("edgetag.train")
BATCH = 128
RATE = 2e-3
WARM_UP = 0.15
LIMIT = 9.0
"""Logits beyond it are "certainly" and "certainly not"; how certain need not be learnt."""
HELD_OUT_EVERY = 50
N_FOR_MEAN = 20_000


@dataclass(frozen=True)
class Lesson:
    """What a pupil is taught by.

    Attributes:
        epochs: passes over the corpus.
        seed: of initial weights and order.
        heard: columns of the teacher's scores that speak for one of our tags; they count three times.
    """

    epochs: int
    seed: int
    heard: NDArray[np.intp]


class Teaching:
    """A pupil in the middle of its lesson; every fiftieth mixture is kept for its exam.

    Args:
        lesson: how to teach.
        corpus: what to teach from.
    """

    def __init__(self, lesson: Lesson, corpus: Corpus) -> None:
        torch.manual_seed(lesson.seed)
        self._lesson = lesson
        self._patches = corpus.patches.reshape(-1, *corpus.patches.shape[2:])
        self._logits = corpus.logits.reshape(-1, corpus.logits.shape[2])
        in_exam = (
            np.arange(len(self._patches)) // corpus.patches.shape[1] % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        )
        self._exam, self._rows = np.flatnonzero(in_exam), np.flatnonzero(~in_exam)
        mean = self._logits[:N_FOR_MEAN].astype(np.float32).mean(axis=0)
        self.pupil = Pupil(PatchNet(), torch.from_numpy(np.clip(mean, -LIMIT, LIMIT)))
        self.pupil.to(memory_format=torch.channels_last)
        weight = torch.full((len(mean),), 0.3)
        weight[torch.from_numpy(lesson.heard)] = 1.0
        self._weight = weight
        self._optimiser = torch.optim.AdamW(self.pupil.parameters(), lr=RATE, weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, RATE, total_steps=max(2, lesson.epochs * self._n_steps), pct_start=WARM_UP
        )
        self._epoch = 0

    @property
    def _n_steps(self) -> int:
        return -(-len(self._rows) // BATCH)

    def run(self, kept: Path, stop: Stop) -> PatchNet:
        """Teach to the end from wherever `kept` stands; the net, for export.

        Raises:
            Stopped: asked to; the last whole epoch is in `kept`.
            InputError: `kept` is damaged.
        """
        if kept.exists():
            self._restore(kept)
        while self._epoch < self._lesson.epochs:
            loss = self._teach_epoch(stop)
            self._epoch += 1
            states.save(self._state(), kept)
            log.info("taught", epoch=self._epoch, loss=round(loss, 4), **self.examine())
        return self.pupil.net.eval()

    def _teach_epoch(self, stop: Stop) -> float:
        self.pupil.train()
        order = np.random.default_rng((self._lesson.seed, self._epoch)).permutation(self._rows)
        losses = []
        for rows in np.array_split(order, self._n_steps):
            stop.check()
            patches, logits = self._read(np.sort(rows))
            with torch.autocast("cpu", torch.bfloat16):
                said = self.pupil(patches)
            loss = self._loss(said.float(), logits)
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()
            self._schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))

    def _read(self, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        patches, logits = to_logmel(self._patches[rows]), self._logits[rows].astype(np.float32)
        return torch.from_numpy(patches), torch.from_numpy(logits)

    def _loss(self, said: Tensor, taught: Tensor) -> Tensor:
        """Distance of logits, more where the teacher hears something: silence about 500 classes is easy."""
        weight = self._weight * (0.15 + torch.sigmoid(taught).sqrt())
        distance = smooth_l1_loss(said, taught.clamp(-LIMIT, LIMIT), reduction="none")
        return (weight * distance).sum(dim=1).mean() / 50

    @torch.inference_mode()
    def examine(self) -> dict[str, float]:
        """How near the pupil is on mixtures it was not taught: `exam`, the mean correlation of its logits
        with the teacher's over those columns that matter and that vary there."""
        if not len(self._exam):
            return {}
        self.pupil.eval()
        read = [self._read(rows) for rows in np.array_split(self._exam, -(-len(self._exam) // 500))]
        said = torch.cat([self.pupil(patches) for patches, _ in read]).numpy()[:, self._lesson.heard]
        taught = torch.cat([logits for _, logits in read]).numpy()[:, self._lesson.heard]
        varied = (taught.std(axis=0) > 0.1) & (said.std(axis=0) > 0)
        found = [np.corrcoef(said[:, k], taught[:, k])[0, 1] for k in np.flatnonzero(varied)]
        return {"exam": round(float(np.mean(found)), 4)} if found else {}

    def _state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "pupil": self.pupil.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }

    def _restore(self, kept: Path) -> None:
        state = states.load(kept)
        try:
            self._epoch = state["epoch"]
            self.pupil.load_state_dict(state["pupil"])
            self._optimiser.load_state_dict(state["optimiser"])
            self._schedule.load_state_dict(state["schedule"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:  # a state, but not this pupil's
            raise states.damaged(kept, error) from error
