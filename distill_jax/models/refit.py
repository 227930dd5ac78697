"""Least squares for an output matrix: which of its input features to keep, and its best values.

A half of a block adds A W to the residual stream x, where A holds its neurons' activations or its
heads' outputs. Given a target stream y, the kept features and their rows of W minimize

  mean over tokens |x + A W - y|² + ridge |W - W_original|²,  rows of removed features being 0.

Removing feature j from the optimum costs |W_j|² / (H^-1)_jj, H = A'A + ridge: optimal brain surgeon
(Hassibi and Stork 1993) on a layer's output, as in 2203.07259.
"""

from typing import NamedTuple

import numpy as np

ROUNDS = 16  # of removal by reconstruction; costs are updated after each


class Sums(NamedTuple):
    """Sums over the calibration tokens for one half of a block, in float64 on the host."""

    gram_FF: np.ndarray  # A'A
    target_FD: np.ndarray  # A'(y - x)
    absolute_F: np.ndarray  # |A|
    tokens: np.ndarray


class Ridge(NamedTuple):
    """The regression H W = right side, both divided by the number of tokens."""

    hessian_FF: np.ndarray
    right_FD: np.ndarray

    def solve(self, keep_F: np.ndarray) -> np.ndarray:
        """The best rows of the kept features, [kept, D]."""
        return np.linalg.solve(self.hessian_FF[np.ix_(keep_F, keep_F)], self.right_FD[keep_F])


def ridge_of(sums: Sums, original_FD: np.ndarray, share: float) -> Ridge:
    """The regression of one half; the ridge is `share` of the mean squared feature."""
    gram = sums.gram_FF / sums.tokens
    strength = share * np.trace(gram) / len(gram)
    right = sums.target_FD / sums.tokens + strength * original_FD
    return Ridge(gram + strength * np.eye(len(gram)), right)


def by_reconstruction(sums: Sums, ridge: Ridge, original_FD: np.ndarray, keep: int) -> np.ndarray:
    """Removes, in ROUNDS rounds, the features whose removal adds the least squared error."""
    alive = np.arange(len(original_FD))
    inverse = np.linalg.inv(ridge.hessian_FF)
    weights = inverse @ ridge.right_FD
    step = max(1, -(-(len(alive) - keep) // ROUNDS))
    while len(alive) > keep:
        order = np.argsort(np.sum(weights**2, 1) / np.diag(inverse))
        count = min(step, len(alive) - keep)
        out, stay = order[:count], np.sort(order[count:])
        # Setting the rows `out` to 0 changes the others along columns of the inverse Hessian.
        gain = np.linalg.solve(inverse[np.ix_(out, out)], inverse[np.ix_(out, stay)]).T
        weights = weights[stay] - gain @ weights[out]
        inverse = inverse[np.ix_(stay, stay)] - gain @ inverse[np.ix_(out, stay)]
        alive = alive[stay]
    return alive


def by_contribution(sums: Sums, ridge: Ridge, original_FD: np.ndarray, keep: int) -> np.ndarray:
    """Root mean square activation times the norm of the feature's row."""
    size = np.sqrt(np.diag(sums.gram_FF)) * np.linalg.norm(original_FD, axis=1)
    return _largest(size, keep)


def by_activation(sums: Sums, ridge: Ridge, original_FD: np.ndarray, keep: int) -> np.ndarray:
    """Mean absolute activation (Minitron, 2407.14679)."""
    return _largest(sums.absolute_F, keep)


def _largest(size_F: np.ndarray, keep: int) -> np.ndarray:
    return np.sort(np.argsort(-size_F, kind="stable")[:keep])


NEURON_CRITERIA = {
    "reconstruction": by_reconstruction,
    "contribution": by_contribution,
    "activation": by_activation,
}
