"""The verdict's promises in simulated studies: errors at the margin, power, families, copies.

Bounds are such that a right verdict breaks one of them less than once in 1,000 (were the studies
drawn anew), and z for t, documents or groups left out, or no adjustment for looks, arms or slices
nearly always.
"""

from functools import partial

import pytest
from scipy import stats

from experiments.verdict_audit import edges, rates
from experiments.verdict_audit.run import line, shown
from experiments.verdict_audit.tally import Tally

CHANCE = 1e-5  # of one bound, for a rate that is just what was promised

QUESTIONS = {
    "few seeds": partial(rates.boundary, "seeds alone", 3, 30, 400),
    "documents": partial(rates.boundary, "documents alone", 3, 30, 200),
    "heavy tails": partial(rates.boundary, "t(3)", 5, 30, 200),
    "interaction": partial(rates.boundary, "interaction", 5, 30, 200),
    "unequal lengths": partial(rates.boundary, "unequal lengths", 4, 120, 150),
    "accuracy": partial(rates.boundary, "accuracy", 5, 200, 150),
    "one-token answers": partial(rates.boundary, "one-token answers", 5, 100, 150),
    "power": partial(rates.power, "normal", 3, 50, 50),
    "planning": partial(rates.planning, 3, 12, 150),
    "looks": partial(rates.adding_seeds, "seeds alone", 20, 250, range(3, 13), 0.0),
    "arms": partial(rates.null_arms, 5, 20, 50, 30),
    "slices": partial(edges.null_slices, 5, 80, 20, 50),
    "heavy tokens": partial(edges.heavy_tokens, 5, 100, 300),
    "right or wrong": partial(rates.discrete_power, 6),
    "sure answers": partial(rates.sure_answers, 6),
    "copied seeds": partial(edges.copied_seeds, 3),
    "renamed": partial(edges.renamed, 20),
}


def possible(t: Tally) -> bool:
    """Whether a rate as promised gives such a count with more than the chance."""
    often = t.at_most is None or stats.binom.sf(t.count - 1, t.studies, t.at_most) > CHANCE
    seldom = t.at_least is None or stats.binom.cdf(t.count, t.studies, t.at_least) > CHANCE
    return bool(often and seldom)


@pytest.mark.parametrize("name", QUESTIONS)
def test_keeps_its_promises(name):
    tallies = QUESTIONS[name]()
    assert any(t.studies for t in tallies)
    assert [t for t in tallies if not possible(t)] == []


def test_absent_slices_hide_no_harm():
    alone, beside = edges.absent_slices(5, 100, 30)
    assert alone.count == beside.count > 20


@pytest.mark.parametrize("t", edges.copied_documents(20), ids=lambda t: t.world)
def test_copies_of_one_group_are_one_document(t):
    assert possible(t)
    assert t.mean == pytest.approx(1, abs=0.1)


def test_the_table_has_every_question():
    tallies = [*rates.boundary("normal", 3, 10, 4), *edges.renamed(4)]
    text = shown(tallies)
    assert "normal, few documents" in text
    assert "the label moves: documents renamed" in text
    assert all(line(t)["low"] <= t.count / t.studies <= line(t)["high"] for t in tallies)
