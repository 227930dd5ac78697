"""The arithmetic of the refit: what goes by its cost in error, and a Gram matrix by panels."""

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models.block_passes import gram
from distill_jax.models.refit import ROUNDS, Sums, by_reconstruction, ridge_of


def regression(size, seed=0):
    """Correlated features, so that the removal of one changes what the others cost."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((5 * size, size)) @ rng.standard_normal((size, size))
    target = a @ rng.standard_normal((size, 4)) + rng.standard_normal((5 * size, 4))
    sums = Sums(a.T @ a, a.T @ target, np.abs(a).sum(0), np.float64(len(a)))
    original = rng.standard_normal((size, 4))
    return sums, ridge_of(sums, original, 1e-2), original


def by_regressions(ridge, keep):
    """The same removals, with a regression of its own on what is left in each round."""
    alive = np.arange(len(ridge.right_FD))
    step = max(1, -(-(len(alive) - keep) // ROUNDS))
    while len(alive) > keep:
        inverse = np.linalg.inv(ridge.hessian_FF[np.ix_(alive, alive)])
        cost = np.sum(ridge.solve(alive) ** 2, 1) / np.diag(inverse)
        alive = np.delete(alive, np.argsort(cost)[: min(step, len(alive) - keep)])
    return alive


@pytest.mark.parametrize(("size", "keep"), [(60, 20), (50, 49), (20, 1), (7, 7)])
def test_removals_are_those_of_a_new_regression_in_each_round(size, keep):
    for seed in range(3):
        sums, ridge, original = regression(size, seed)
        kept = by_reconstruction(sums, ridge, original, keep)
        np.testing.assert_array_equal(kept, by_regressions(ridge, keep))


@pytest.mark.parametrize("size", [1, 3, 4, 24, 30])
def test_gram_by_panels_equals_the_product(size):
    a_BTF = np.random.default_rng(size).standard_normal((2, 16, size)).astype(np.float32)
    gram_FF = np.asarray(gram(jnp.asarray(a_BTF)))
    rows = a_BTF.reshape(-1, size).astype(np.float64)
    np.testing.assert_allclose(gram_FF, rows.T @ rows, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(gram_FF, gram_FF.T)
