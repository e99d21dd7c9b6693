"""The learning rate: a small automaton that hears how an epoch went and says what the next rate is."""

import math
from typing import Any, Literal

from edgetag_train.recipe import Cosine, Fit, Plateau, Restarts

Event = Literal["reduced", "restarted"]
MILDEST = 0.9
"""A restart never makes the reduction milder than this, or than the recipe's own."""


class Schedule:
    """A recipe's schedule (see `edgetag_train.recipe`) and where it stands."""

    def __init__(self, settings: Fit) -> None:
        self._settings = settings.schedule
        self._initial = self._rate = settings.rate
        self._reduce = settings.schedule.reduce if isinstance(settings.schedule, Restarts) else 1.0
        self._stagnant = 0
        self._lowest_loss = math.inf
        self.finished = False

    def rate(self, done: float) -> float:
        """The rate of the next step, `done` of all steps (0…1) being behind us."""
        if isinstance(self._settings, Cosine):
            return self._rate * (1 + math.cos(math.pi * done * self._settings.part)) / 2
        return self._rate

    def end_epoch(self, *, improved: bool, loss: float) -> Event | None:
        """Hear of an epoch: whether the validation score is the best so far, and the loss to be lowered."""
        match self._settings:
            case Restarts(stagnation=stagnation):
                return self._lower_or_restart() if self._stagnates(not improved, stagnation) else None
            case Plateau(patience=patience):
                higher = loss >= self._lowest_loss
                self._lowest_loss = min(loss, self._lowest_loss)
                return self._lower_or_finish() if self._stagnates(higher, patience) else None
        return None

    def _stagnates(self, worse: bool, n_epochs: int) -> bool:
        """Whether this is the last of `n_epochs` epochs without progress; counts anew after it."""
        self._stagnant = self._stagnant + 1 if worse else 0
        if self._stagnant < n_epochs:
            return False
        self._stagnant = 0
        return True

    def _lower_or_restart(self) -> Event:
        assert isinstance(self._settings, Restarts)
        self._rate *= self._reduce
        if self._rate >= self._settings.minimum_rate:
            return "reduced"
        self._rate = self._initial
        self._reduce = min(self._reduce + self._settings.milder, max(MILDEST, self._settings.reduce))
        return "restarted"

    def _lower_or_finish(self) -> Event:
        assert isinstance(self._settings, Plateau)
        self._rate *= self._settings.gamma
        self.finished = self._rate < self._settings.minimum_rate
        return "reduced"

    def state(self) -> dict[str, Any]:
        """Where it stands; `restore` takes it."""
        return {name: value for name, value in vars(self).items() if name != "_settings"}

    def restore(self, state: dict[str, Any]) -> None:
        """Stand there."""
        vars(self).update(state)
