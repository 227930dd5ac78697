"""What values a measure can have, and intervals that do not leave them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_jax.evals.aggregates import MODEL_METRICS, PAIR_METRICS, aggregate, flips
from distill_jax.evals.bounds import BOUNDS, POSITIVE, bounds_of, of_difference, within
from distill_jax.evals.exposure import EXPOSURE
from distill_jax.evals.likelihood import LOGGED
from distill_jax.evals.text_measures import TEXT_MEASURES
from distill_jax.report.study import interval
from tests.evals.random_records import columns_of, logits

MEASURES = {
    *MODEL_METRICS, *PAIR_METRICS, *TEXT_MEASURES, *EXPOSURE, "perplexity",
    *(name.removeprefix("teacher_") for name in LOGGED),
}  # fmt: skip
BOUNDED = [name for name, bounds in BOUNDS.items() if math.isfinite(bounds[1])]


def test_every_measure_has_its_bounds_and_nothing_else_has():
    assert set(BOUNDS) == MEASURES


def test_the_metrics_of_any_records_lie_within():
    for seed in range(3):
        z, t, labels = logits(seed)
        columns, other = columns_of(z, labels, t), columns_of(t, labels)
        found = aggregate(columns) | flips(columns, other)
        for name, value in found.items():
            low, high = bounds_of(name)
            assert low <= value <= high, name


@pytest.mark.parametrize("name", BOUNDED)
@given(data=st.data())
def test_an_interval_over_seeds_stays_within(name, data):
    low, high = BOUNDS[name]
    values = data.draw(st.lists(st.floats(low, high), min_size=2, max_size=5))
    free, cut = interval(values, 0.95), interval(values, 0.95, BOUNDS[name])
    assert low <= cut["low"] <= cut["mean"] <= cut["high"] <= high
    assert cut["mean"] == free["mean"]
    assert cut["low"] == max(free["low"], low)
    assert cut["high"] == min(free["high"], high)


def test_a_mean_that_rounding_put_beyond_a_bound_stays_in_its_interval():
    assert within(-2e-9, 1e-3, POSITIVE, -1e-9) == (-1e-9, 1e-3)
    assert within(-1e-9, 1e-3, POSITIVE, 0.0) == (0.0, 1e-3)


def test_what_is_not_known_is_not_cut():
    assert bounds_of("somebody's own") == (-math.inf, math.inf)
    assert bounds_of("squad/f1") == (-math.inf, math.inf)
    assert bounds_of("gsm8k/exact_match,strict-match") == (0.0, 1.0)
    assert bounds_of("gsm8k/exact_match_stderr,strict-match") == POSITIVE
    assert of_difference((0.0, 1.0)) == (-1.0, 1.0)
    assert np.isinf(of_difference(POSITIVE)).all()
