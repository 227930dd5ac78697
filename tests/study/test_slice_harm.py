"""Harm on slices is found where it is, seldom where it is not, and said to be unknown otherwise."""

import numpy as np
import pytest

from distill_jax.study.paired import Paired
from distill_jax.study.rules import Rules
from distill_jax.study.slice_harm import holm, slice_effects
from distill_jax.study.verdict import verdict
from distill_jax.types import UserError
from tests.study.simulated import sliced, sliced_table

STUDIES = 200


def test_holm_is_its_definition():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def paired_of(nll_ASKD, weight_KD):
    """Slices part:0, ... of `sliced`, after a whole that is not looked at here."""
    total_KSD = (nll_ASKD[0] - nll_ASKD[1]).transpose(1, 0, 2) * weight_KD[:, None]
    names = tuple(f"part:{k}" for k in range(len(weight_KD)))
    units = tuple(str(d) for d in range(weight_KD.shape[1]))
    seeds = tuple(str(s) for s in range(nll_ASKD.shape[1]))
    return Paired(names, seeds, units, total_KSD, weight_KD.astype(float), len(units))


def rows_of(nll_ASKD, weight_KD, names=None):
    paired = paired_of(nll_ASKD, weight_KD)
    return slice_effects(paired, names or paired.slices, Rules(0.0, 0.0), 0.95)


@pytest.mark.parametrize("seeds", [3, 10])
def test_thirty_slices_without_harm_give_a_false_alarm_in_at_most_one_study_of_twenty(seeds):
    rng = np.random.default_rng(12)
    alarms = tested = 0
    for _ in range(STUDIES):
        nll, weight_KD = sliced(rng, seeds=seeds, documents=150)
        found = rows_of(nll, weight_KD)
        alarms += any(row.harmed for row in found)
        tested += sum(row.adjusted_p is not None for row in found)
    assert alarms <= 16  # more with a chance of 2% at 5%
    assert tested > 0.5 * 30 * STUDIES


def test_what_was_never_there_costs_no_detection():
    nll, weight_KD = sliced(np.random.default_rng(15), slices=4)
    weight_KD[2, 3:] = 0
    weight_KD[3] = 0
    names = ("part:0", "part:1", "part:2", "part:3", "never seen")
    found = {row.slice: row for row in rows_of(nll, weight_KD, names)}
    assert "documents" in found["part:2"].untestable
    assert found["part:2"].effect is not None
    for absent in ("part:3", "never seen"):
        assert found[absent][1:8] == (None, (None, None), None, 0.0, 0, 0.0, False)
        assert found[absent].untestable
    alone = rows_of(nll, weight_KD, ("part:0",))[0]
    assert found["part:0"].effect == alone.effect
    nll[0, :, 0] += 0.05
    p = [rows_of(nll, weight_KD, some)[0].adjusted_p for some in (names[:1], names[:2], names)]
    assert p[1] == pytest.approx(2 * p[0])
    assert p[2] == p[1]


def test_which_slices_can_be_tested_follows_from_weights_alone():
    nll, weight_KD = sliced(np.random.default_rng(15), slices=6, documents=120)
    weight_KD[4] = weight_KD[4] > 8
    harm = nll.copy()
    harm[0] += np.random.default_rng(1).normal(0, 5, nll[0].shape)
    reasons = [[row.untestable for row in rows_of(n, weight_KD)] for n in (nll, harm)]
    assert reasons[0] == reasons[1]
    assert reasons[0][4] is not None
    assert None in reasons[0]


@pytest.mark.parametrize(
    ("documents", "weight", "testable"), [(49, 10, 0), (50, 3, 1), (50, 2.9, 0), (150, 1, 1)]
)
def test_a_slice_needs_50_effective_documents_and_a_weight_of_150(documents, weight, testable):
    nll, _ = sliced(np.random.default_rng(48), slices=1, documents=documents)
    (row,) = rows_of(nll, np.full((1, documents), float(weight)))
    assert (row.untestable is None) == bool(testable)


def heavy(rng, documents, tokens, rare=0.02, gain=10.0, margin=0.05):
    """A slice whose harm is exactly the margin: most tokens lose, 2% of them gain a lot."""
    weight_D = np.maximum(rng.poisson(tokens, documents), 1)
    total_D = (margin + rare * gain) * weight_D - gain * rng.binomial(weight_D, rare)
    noise_SD = 0.03 * np.sqrt(weight_D) * rng.normal(size=(3, documents))
    total_SD = total_D + noise_SD + 0.006 * weight_D * rng.normal(size=(3, 1))
    seeds, units = ("0", "1", "2"), tuple(str(d) for d in range(documents))
    return Paired(("part",), seeds, units, total_SD[None], weight_D[None].astype(float), documents)


@pytest.mark.parametrize(("documents", "tokens"), [(30, 2), (60, 3), (100, 2), (200, 2), (60, 20)])
def test_rare_large_gains_are_no_cause_for_alarm(documents, tokens):
    rng, guarded, bare = np.random.default_rng(45), 0, 0
    rules = Rules(0.0, 0.05)
    for _ in range(STUDIES):
        paired = heavy(rng, documents, tokens)
        (row,) = slice_effects(paired, ("part",), rules, 0.95)
        guarded += row.harmed
        low = rules._replace(minimum_documents=0, minimum_weight=0)
        (row,) = slice_effects(paired, ("part",), low, 0.95)
        bare += row.harmed
    assert guarded <= 0.06 * STUDIES
    assert guarded <= bare


@pytest.mark.parametrize("documents", [60, 200])
def test_harm_of_twice_the_margin_of_error_is_found(documents):
    """The guards cost no power where contributions are not skewed, whatever their weights."""
    rng, found = np.random.default_rng(46), 0
    for _ in range(100):
        weight_D = 20 + rng.poisson(rng.lognormal(3.0, 0.5, documents))
        nll_ASKD = rng.normal(0, 0.1, (2, 3, 1, documents)) + rng.normal(0, 0.01, (2, 3, 1, 1))
        nll_ASKD[0] += 0.15 + rng.normal(0, 0.1, documents)
        (row,) = rows_of(nll_ASKD, weight_D[None])
        found += row.harmed
    assert found >= 95


def test_the_untested_slices_are_named_and_a_typo_is_an_error():
    table = sliced_table(*sliced(np.random.default_rng(13), slices=2, effect=-0.3))
    options = {"margin": 0.0, "slice_margin": 0.0}
    names = ("part:0", *(f"kind:{i}" for i in range(5)))
    v = verdict(table, **options, registered=names, known=names)
    assert "5 of 6 registered slices cannot be tested" in v.reason
    assert "(kind:0, kind:1, kind:2 and 2 more)" in v.reason
    assert [row.slice for row in v.slices] == list(names)
    with pytest.raises(UserError, match=r"prat:0 .* did you mean part:0"):
        verdict(table, **options, registered=("prat:0",))


def test_harm_to_a_score_where_higher_is_better_is_a_loss():
    rng = np.random.default_rng(47)
    nll, weight_KD = sliced(rng, slices=3, effect=-0.3)
    nll[0, :, 1] += 0.9
    table = sliced_table(nll, weight_KD)
    v = verdict(table, margin=0.0, slice_margin=0.02)
    rewards = {**table, "total": -table["total"]}
    better = {"higher_is_better": True, "unit": "reward"}
    w = verdict(rewards, margin=0.0, slice_margin=0.02, **better)
    assert w.label == v.label == "NEW FAILURE MODE IN part:1"
    assert w.failures[0].effect == -v.failures[0].effect < 0
    assert w.failures[0].adjusted_p == v.failures[0].adjusted_p
