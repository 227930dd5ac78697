"""Laws of the small-sample arithmetic below the verdict, against tables and literal resampling."""

import math

import numpy as np
import pytest

from distill_jax.study.bootstrap import (
    Spread,
    chance_of_more,
    document_shares,
    documents_for,
    interval,
    resolution,
    seeds_for,
    spreads,
)
from distill_jax.study.student_t import (
    detectable_shift,
    sum_quantile,
    sum_tail,
    t_quantile,
    t_table,
)

# dof, probability, quantile: printed tables of Student's t.
T_TABLE = [
    (1, 0.975, 12.7062),
    (2, 0.9, 1.88562),
    (2, 0.975, 4.30265),
    (2, 0.995, 9.92484),
    (3, 0.975, 3.18245),
    (4, 0.95, 2.13185),
    (9, 0.975, 2.26216),
    (30, 0.975, 2.04227),
    (120, 0.975, 1.97993),
]


@pytest.mark.parametrize(("dof", "probability", "expected"), T_TABLE)
def test_quantiles_of_t_are_those_of_printed_tables(dof, probability, expected):
    assert t_quantile(probability, dof) == pytest.approx(expected, rel=3e-5)
    assert t_quantile(1 - probability, dof) == -t_quantile(probability, dof)


def test_many_degrees_of_freedom_are_a_normal_on_the_safe_side():
    assert 1.95996 < t_quantile(0.975, 1e9) < 1.966


@pytest.mark.parametrize(
    ("dofs", "scales"), [((2, 50), (1, 1)), ((2, 9), (0.3, 2)), ((4, 5), (3, 1))]
)
def test_sum_of_two_t_is_what_drawing_them_gives(dofs, scales):
    rng = np.random.default_rng(0)
    drawn = sum(s * rng.standard_t(dof, 1_000_000) for s, dof in zip(scales, dofs, strict=True))
    tables = [t_table(dof, s) for s, dof in zip(scales, dofs, strict=True)]
    assert sum_quantile(0.975, *tables) == pytest.approx(np.quantile(drawn, 0.975), rel=0.01)
    assert sum_tail(6.0, *tables) == pytest.approx(np.mean(drawn > 6), rel=0.05)
    assert sum_tail(sum_quantile(0.99, *tables), *tables) == pytest.approx(0.01, rel=1e-6)
    assert sum_tail(-6.0, *tables) == pytest.approx(1 - sum_tail(6.0, *tables), abs=1e-6)


@pytest.mark.parametrize("dof", [1.5, 2, 7, 300])
def test_a_level_without_variance_leaves_the_other_t(dof):
    for pair in ((t_table(dof, 2.0), t_table(3, 0.0)), (t_table(3, 0.0), t_table(dof, 2.0))):
        assert sum_quantile(0.975, *pair) == pytest.approx(2 * t_quantile(0.975, dof), rel=1e-4)


def test_nothing_varies_then_nothing_is_uncertain():
    none = t_table(2, 0.0), t_table(9, 0.0)
    assert sum_quantile(0.975, *none) == 0
    assert (sum_tail(1e-9, *none), sum_tail(-1e-9, *none)) == (0, 1)


@pytest.mark.parametrize("power", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("dof", [1, 2, 4, 30])
def test_the_detectable_shift_is_found_as_often_as_said(dof, power):
    rng = np.random.default_rng(1)
    shift = detectable_shift(dof, 0.95, power)
    s = np.sqrt(rng.chisquare(dof, 200_000) / dof)
    found = shift + rng.standard_normal(200_000) > t_quantile(0.975, dof) * s
    assert found.mean() == pytest.approx(power, abs=0.004)


@pytest.mark.parametrize("documents", [2, 5, 40])
def test_equal_documents_count_like_a_plain_sample(documents):
    correction, dof = document_shares(np.full(documents, 1 / documents))
    assert correction == pytest.approx(documents / (documents - 1))
    assert dof == pytest.approx(documents - 1)


def test_shares_are_those_of_the_quadratic_form():
    rng = np.random.default_rng(2)
    share_D = rng.pareto(1.2, 12) + 0.1
    share_D /= share_D.sum()
    residual_DD = np.diag(share_D) @ (np.eye(12) - np.outer(np.ones(12), share_D))
    eigenvalues = np.linalg.eigvalsh(residual_DD @ residual_DD.T)
    correction, dof = document_shares(share_D)
    assert correction == pytest.approx(np.sum(share_D**2) / eigenvalues.sum())
    assert dof == pytest.approx(eigenvalues.sum() ** 2 / np.sum(eigenvalues**2))


def random_study(rng, seeds=4, documents=60):
    count_D = 20 + rng.poisson(rng.lognormal(4, 0.7, documents))
    nll_SD = 0.1 * rng.normal(size=(seeds, 1)) + 0.4 * rng.normal(size=documents)
    nll_SD = nll_SD + 0.3 * rng.normal(size=(seeds, documents))
    return nll_SD * count_D, count_D.astype(float)


def test_variances_are_those_of_a_literal_bootstrap_of_seeds_then_documents():
    rng = np.random.default_rng(3)
    total_SD, count_D = random_study(rng)
    seeds, documents = total_SD.shape
    found = spreads(total_SD[None], count_D[None], resamples=20_000, seed=0)[0]
    literal, of_documents = [], []
    for _ in range(20_000):
        d = rng.integers(documents, size=documents)
        s = rng.integers(seeds, size=seeds)
        literal.append(total_SD[np.ix_(s, d)].sum() / (seeds * count_D[d].sum()))
        of_documents.append(total_SD[:, d].sum() / (seeds * count_D[d].sum()))
    correction, _ = document_shares(count_D / count_D.sum())
    assert found.document_variance / correction == pytest.approx(np.var(of_documents), rel=0.05)
    # Drawing seeds understates their variance by (S - 1) / S, and adds the interaction once more.
    shrink = (seeds - 1) / seeds
    parts = shrink * (found.seed_variance + found.interaction_variance / correction)
    assert np.var(literal) == pytest.approx(parts + np.var(of_documents), rel=0.05)
    assert found.effect == pytest.approx(total_SD.sum() / (seeds * count_D.sum()))


def test_parts_of_the_variance_are_unbiased():
    """Known components, equal documents: sd 0.1 by seed, 0.4 by document, 0.3 by both."""
    rng = np.random.default_rng(4)
    runs = []
    for _ in range(400):
        nll_SD = 0.1 * rng.normal(size=(3, 1)) + 0.4 * rng.normal(size=30)
        nll_SD = nll_SD + 0.3 * rng.normal(size=(3, 30))
        runs.append(spreads(nll_SD[None] * 50, np.full((1, 30), 50.0), resamples=100, seed=0)[0])
    expected = {
        "seed_variance": 0.01 / 3 + 0.09 / 90,
        "document_variance": 0.16 / 30 + 0.09 / 90,
        "interaction_variance": 0.09 / 90,
    }
    for name, value in expected.items():
        mean = np.mean([getattr(run, name) for run in runs])
        assert mean == pytest.approx(value, rel=0.12), name


def test_slices_see_the_same_draws_and_none_another():
    rng = np.random.default_rng(5)
    total_SD, count_D = random_study(rng)
    half_D = count_D * (np.arange(len(count_D)) % 2)
    both = spreads(
        np.stack([total_SD, total_SD * (half_D > 0)]),
        np.stack([count_D, half_D]),
        resamples=300,
        seed=1,
    )
    assert both[0] == spreads(total_SD[None], count_D[None], resamples=300, seed=1)[0]
    assert both[1].documents == 30


def test_draws_in_chunks_are_the_draws_at_once(monkeypatch):
    total_SD, count_D = random_study(np.random.default_rng(6))
    whole = spreads(total_SD[None], count_D[None], resamples=300, seed=1)[0]
    monkeypatch.setattr("distill_jax.study.bootstrap.CHUNK", 7 * len(count_D))
    assert spreads(total_SD[None], count_D[None], resamples=300, seed=1)[0] == pytest.approx(whole)


def spread(seeds=3, seed_variance=1e-4, document_variance=1e-4, interaction=2e-5, effect=-0.1):
    return Spread(effect, seeds, 100, seed_variance, document_variance, interaction, 60.0)


@pytest.mark.parametrize("by_seed", [0.0, 1e-6, 1e-4])
@pytest.mark.parametrize("by_document", [0.0, 1e-6, 1e-4])
def test_p_values_and_intervals_are_one_distribution(by_seed, by_document):
    s = spread(seed_variance=by_seed, document_variance=by_document)
    low, high = interval(s, 0.95)
    if low < high:
        assert chance_of_more(s, low) == pytest.approx(0.025, rel=1e-3)
        assert chance_of_more(s, high) == pytest.approx(0.975, rel=1e-3)
    assert (low + high) / 2 == pytest.approx(s.effect)


def test_more_seeds_resolve_more_until_documents_forbid_it():
    s = spread()
    steps = [resolution(s, 0.95, seeds) for seeds in (3, 4, 8, 100, 10_000)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == resolution(s, 0.95)
    floor = detectable_shift(60, 0.95, 0.95) * math.sqrt(8e-5)
    assert steps[-1] == pytest.approx(floor, rel=0.01)
    assert seeds_for(s, floor * 0.99, 0.95, 3) is None
    target = floor * 1.5
    needed = seeds_for(s, target, 0.95, 3)
    assert resolution(s, 0.95, needed) <= target < resolution(s, 0.95, needed - 1)
    assert seeds_for(s, 10.0, 0.95, 3) == 3
    assert documents_for(s, target, 0.95) == math.ceil(100 * 2 * floor**2 / target**2)


@pytest.mark.parametrize(("seeds", "documents"), [(1, 50), (3, 1)])
def test_one_of_anything_has_no_variance(seeds, documents):
    total_SD, count_D = random_study(np.random.default_rng(7), seeds, documents)
    found = spreads(total_SD[None], count_D[None], resamples=100, seed=0)[0]
    assert not found.known
    assert interval(found, 0.95) == (None, None)
    assert chance_of_more(found, 0.0) is None
    assert resolution(found, 0.95) is None
    assert seeds_for(found, 1.0, 0.95, 3) is None
