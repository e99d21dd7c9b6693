"""What a teacher's evidence is worth on a street: a probability for each coarse tag, fitted to few labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

_SLOPE = 0.7
_SLOPES_APART = 30.0
_INTERCEPTS_APART = 1.0


@dataclass(frozen=True, eq=False)
class Verdict:
    """Platt's scaling of each tag's evidence. Shape: slopes, intercepts [c]"""

    slopes: NDArray[np.float64]
    intercepts: NDArray[np.float64]

    def __call__(self, evidence: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits to probabilities. Shape: [n, c] -> [n, c]"""
        logits = evidence * self.slopes + self.intercepts
        return (1 / (1 + np.exp(-logits))).astype(np.float32)


def fit_verdict(evidence: NDArray[np.float32], labels: NDArray[np.float32]) -> Verdict:
    """Logistic regression of each tag on its own evidence, drawn towards one slope and one intercept for all.

    A tag that hardly occurs among the recordings, or does not occur, takes nearly the common ones; so what
    the teacher says of it is believed as it is of the others.

    Shape: evidence [n, c], labels [n, c] in [0, 1], NaN unknown
    """
    n_tags = evidence.shape[1]
    known = ~np.isnan(labels)
    present = np.nan_to_num(labels)

    def unfold(parameters: NDArray[np.float64]) -> Verdict:
        apart = parameters[2:].reshape(2, n_tags)
        return Verdict(parameters[0] + apart[0], parameters[1] + apart[1])

    def cost(parameters: NDArray[np.float64]) -> float:
        verdict = unfold(parameters)
        logits = evidence * verdict.slopes + verdict.intercepts
        misfit = (np.logaddexp(0, logits) - present * logits)[known].sum()
        apart = np.square(parameters[2:].reshape(2, n_tags)).sum(axis=1)
        return float(misfit + _SLOPES_APART * apart[0] + _INTERCEPTS_APART * apart[1])

    start = np.zeros(2 + 2 * n_tags)
    start[0] = _SLOPE
    return unfold(minimize(cost, start, method="L-BFGS-B").x)
