"""Laws of the closed form: its parts against literal resampling, its rates against known truths."""

import math

import numpy as np
import pytest
from scipy.special import stdtr, stdtrit

from distill_jax.study import uncertainty
from distill_jax.study.rules import level_at
from distill_jax.study.uncertainty import (
    Spread,
    detectable_shift,
    document_shares,
    documents_for,
    half_width,
    interval,
    p_above,
    p_below,
    resolution,
    seeds_for,
    spread_of,
)
from tests.study.simulated import LENGTHS

# seeds, documents, lengths, standard deviations by seed, document and both.
TRUTHS = {
    "seeds": (3, 20, "equal", (0.05, 0.0, 0.0)),
    "documents": (3, 60, "lognormal", (0.0, 0.2, 0.0)),
    "both at once": (3, 50, "equal", (0.0, 0.0, 0.3)),
    "all": (5, 60, "lognormal", (0.05, 0.2, 0.1)),
    "ten seeds": (10, 60, "equal", (0.05, 0.2, 0.05)),
    "few documents": (3, 20, "equal", (0.01, 0.2, 0.1)),
}


def drawn(rng, seeds, weight_D, by, effect=0.0):
    """Totals of treatment - baseline. by: standard deviations by seed, document and both."""
    by_seed, by_document, by_both = by
    nll_SD = effect + by_seed * rng.normal(size=(seeds, 1))
    nll_SD = nll_SD + by_document * rng.normal(size=len(weight_D))
    return (nll_SD + by_both * rng.normal(size=(seeds, len(weight_D)))) * weight_D


@pytest.mark.parametrize("truth", TRUTHS)
def test_each_end_of_the_interval_is_wrong_in_at_most_a_fortieth_of_studies(truth):
    seeds, documents, lengths, by = TRUTHS[truth]
    rng, studies = np.random.default_rng(31), 1500
    wrong = np.zeros(2)
    for _ in range(studies):
        weight_D = LENGTHS[lengths](rng, documents).astype(float)
        low, high = interval(spread_of(drawn(rng, seeds, weight_D, by), weight_D), 0.95)
        wrong += low > 0, high < 0
    # 2.5% and 2.5 standard errors of so many studies; not so wide that nothing is ever found.
    assert max(wrong) <= studies * (0.025 + 2.5 * math.sqrt(0.025 / studies))
    assert sum(wrong) >= studies * 0.01


def test_what_differs_by_seed_and_document_at_once_is_counted_once():
    rng = np.random.default_rng(32)
    weight_D, halves = np.full(400, 9.0), []
    for _ in range(300):
        s = spread_of(drawn(rng, 12, weight_D, (0.0, 0.0, 0.3)), weight_D)
        halves.append(half_width(s, 0.025))
    truth = 0.3 / math.sqrt(12 * 400)
    assert np.mean(halves) == pytest.approx(-stdtrit(11, 0.025) * truth, rel=0.1)


@pytest.mark.parametrize("dof", [1, 2, 4, 30])
def test_the_detectable_shift_is_found_as_often_as_said(dof):
    rng = np.random.default_rng(1)
    shift = detectable_shift(dof, 0.025)
    s = np.sqrt(rng.chisquare(dof, 200_000) / dof)
    found = shift + rng.standard_normal(200_000) > -stdtrit(dof, 0.025) * s
    assert found.mean() == pytest.approx(0.95, abs=0.004)


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
    found = spread_of(total_SD, count_D)
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
        runs.append(spread_of(nll_SD * 50, np.full(30, 50.0)))
    expected = {
        "seed_variance": 0.01 / 3 + 0.09 / 90,
        "document_variance": 0.16 / 30 + 0.09 / 90,
        "interaction_variance": 0.09 / 90,
    }
    for name, value in expected.items():
        mean = np.mean([getattr(run, name) for run in runs])
        assert mean == pytest.approx(value, rel=0.12), name


def test_what_documents_are_called_and_their_order_move_nothing():
    rng = np.random.default_rng(5)
    total_SD, count_D = random_study(rng)
    order_D = rng.permutation(len(count_D))
    assert spread_of(total_SD[:, order_D], count_D[order_D]) == spread_of(total_SD, count_D)
    empty = np.zeros((4, 7))
    longer = np.concatenate([total_SD, empty], axis=1), np.concatenate([count_D, empty[0]])
    assert spread_of(*longer) == spread_of(total_SD, count_D)


def spread(seeds=3, seed_variance=1e-4, document_variance=1e-4, interaction=2e-5, effect=-0.1):
    return Spread(
        effect, seeds, 100, 80.0, seed_variance, document_variance, interaction, 60.0, 0.0, 100
    )


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.9999])
@pytest.mark.parametrize("by_seed", [0.0, 1e-6, 1e-4])
@pytest.mark.parametrize("by_document", [0.0, 3e-5, 1e-4])
def test_p_is_the_tail_at_which_the_interval_touches(by_seed, by_document, confidence):
    s = spread(seed_variance=by_seed, document_variance=by_document)
    low, high = interval(s, confidence)
    tail = (1 - confidence) / 2
    assert (low + high) / 2 == pytest.approx(s.effect)
    if by_seed or by_document:
        assert p_above(s, low) == pytest.approx(tail, rel=1e-6)
        assert p_above(s, high) == pytest.approx(1 - tail, rel=1e-6)
        assert p_below(s, high) == pytest.approx(tail, rel=1e-6)
    else:
        assert (p_above(s, -0.2), p_above(s, -0.1), p_above(s, 0.0)) == (0, 1, 1)


def test_p_falls_with_distance_and_stays_a_number():
    p = [p_above(spread(), bound) for bound in (0.0, -0.1, -0.11, -0.2, -1.0, -1e9)]
    assert p == sorted(p, reverse=True)
    assert p[1] == 0.5
    assert p[-1] == pytest.approx(1e-15)


def test_more_seeds_resolve_more_until_documents_forbid_it():
    s = spread()
    steps = [resolution(s, 0.95, seeds=seeds) for seeds in (3, 4, 8, 100, 10_000)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == resolution(s, 0.95)
    floor = detectable_shift(60, 0.025) * math.sqrt(8e-5)
    assert steps[-1] == pytest.approx(floor, rel=0.01)
    assert seeds_for(s, floor * 0.99, 0.95, 3) is None
    target = floor * 1.5
    needed = seeds_for(s, target, 0.95, 3)
    certain = s._replace(seed_variance=s.seed_variance * 2 / 0.32504)  # chi-squared, 2 dof, 15%
    resolved = [resolution(certain, 0.95, seeds=n) for n in (needed, needed - 1)]
    assert resolved[0] <= target < resolved[1]
    assert seeds_for(s, 10.0, 0.95, 3) == 3
    assert seeds_for(s, target, 0.99, 3) > needed
    assert documents_for(s, target, 0.95) == math.ceil(100 * 2 * floor**2 / target**2)


def test_follow_ups_of_the_planned_size_tell_0_from_the_margin():
    """As often as said (95%), averaged over what the first study happens to show."""
    rng, by, margin = np.random.default_rng(33), (0.03, 0.03, 0.02), 0.04
    weight_D, decided, studies = np.full(200, 50.0), 0, 400
    for _ in range(studies):
        first = spread_of(drawn(rng, 3, weight_D, by), weight_D)
        seeds = min(seeds_for(first, margin, 0.95, 3), 400)
        again = spread_of(drawn(rng, seeds, weight_D, by), weight_D)
        decided += interval(again, 0.95)[0] >= -margin
    assert decided >= 0.94 * studies


def test_looks_spend_the_level_once():
    assert level_at(None, 0.05) == 0.05
    levels = [level_at(look, 0.05) for look in range(1, 41)]
    assert levels[:3] == pytest.approx([0.04, 0.005, 0.0025])
    assert sum(levels) == pytest.approx(0.05)
    assert sum(levels) <= 0.05


@pytest.mark.parametrize("spends", [True, False])
def test_adding_seeds_until_it_helps_is_no_way_to_help(spends):
    """The true effect is exactly -margin; 3, 5, 8, then 12 seeds."""
    rng, margin, studies = np.random.default_rng(34), 0.05, 2000
    weight_D, false = np.full(40, 50.0), 0
    for _ in range(studies):
        total_SD = drawn(rng, 12, weight_D, (0.05, 0.03, 0.02), -margin)
        highs = [
            interval(
                spread_of(total_SD[:seeds], weight_D), 1 - level_at(look if spends else None, 0.05)
            )[1]
            for look, seeds in enumerate((3, 5, 8, 12), 1)
        ]
        false += min(highs) < -margin
    assert (false <= 0.025 * studies) == spends


@pytest.mark.parametrize(("seeds", "documents"), [(1, 50), (3, 1)])
def test_one_of_anything_has_no_variance(seeds, documents):
    found = spread_of(*random_study(np.random.default_rng(7), seeds, documents))
    assert not found.known
    assert interval(found, 0.95) == (None, None)


@pytest.mark.parametrize("ratio", [1e5, 1e9, 1e300])
def test_one_giant_document_has_no_variance_either(ratio):
    total_SD, count_D = random_study(np.random.default_rng(7), 3, 50)
    count_D[0] *= ratio
    found = spread_of(total_SD, count_D)
    assert found.document_variance is None
    assert found.effective_documents == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dof", [1, 2, 4])
def test_a_far_critical_value_needs_no_noncentral_t(dof, monkeypatch):
    """The limit meets the exact value where both are known, and goes on where only it is."""
    tail = float(stdtr(dof, -5e3))
    exact = detectable_shift(dof, tail)
    monkeypatch.setattr(uncertainty, "FAR", 1e3)
    assert detectable_shift(dof, tail) == pytest.approx(exact, rel=1e-6)
    assert exact < detectable_shift(dof, 1e-15) < math.inf
