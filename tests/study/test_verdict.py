"""The verdict holds its error rates on simulated studies, and refuses what would inflate them.

200 studies at a true rate of 5% give more than 15 errors with a chance of less than 5%.
"""

import math

import numpy as np
import pytest

from distill_jax.study.paired import Scores
from distill_jax.study.rules import (
    HELPS,
    INCONCLUSIVE,
    INVALID,
    NO_BETTER,
    WORSE,
    Rules,
)
from distill_jax.study.verdict import (
    Comparison,
    judge,
    judge_all,
    ships,
    verdict,
)
from distill_jax.study.wording import Verdict
from distill_jax.types import UserError
from distill_jax.words import NEW_FAILURE
from tests.study.simulated import as_scores, as_table, joined, rows, sliced, sliced_table, study

STUDIES = 200
BOUND = 15


def decide(table, **options):
    return verdict(table, **{"margin": 0.0, "slice_margin": 0.0, **options})


def test_the_bound_is_that_of_the_binomial():
    log = lambda k: (
        math.lgamma(STUDIES + 1)
        - math.lgamma(k + 1)
        - math.lgamma(STUDIES - k + 1)
        + k * math.log(0.05)
        + (STUDIES - k) * math.log(0.95)
    )
    more = sum(math.exp(log(k)) for k in range(BOUND + 1, STUDIES + 1))
    assert 0.03 < more < 0.05


# seeds, and what varies: seeds alone, documents alone (a few hold most tokens), all.
TRUTHS = [
    (3, {"by_document": 0.0, "by_both": 0.0}),
    (3, {"by_seed": 0.001, "by_both": 0.001, "lengths": "pareto"}),
    (3, {"by_seed": 0.02, "by_document": 0.2, "by_both": 0.2, "lengths": "pareto"}),
    (5, {"by_seed": 0.02, "by_document": 0.1, "by_both": 0.1}),
    (10, {"by_seed": 0.05, "by_document": 0.2, "by_both": 0.05, "lengths": "equal"}),
]


@pytest.mark.parametrize(("seeds", "truth"), TRUTHS)
def test_no_effect_is_seldom_called_one_and_twice_the_detectable_is_found(seeds, truth):
    rng = np.random.default_rng(11)
    options = {"seeds": seeds, "documents": 60, **truth}
    tables = [study(rng, **options) for _ in range(STUDIES)]
    null = [decide(table) for table in tables]
    assert sum(v.label in (HELPS, WORSE) for v in null) <= BOUND
    for sign, label in ((-1, HELPS), (1, WORSE)):
        found = 0
        for v, table in zip(null[:50], tables, strict=False):
            # New seeds and new effects on the held-out documents that said what is detectable.
            planted = sign * 2 * v.minimum_detectable_effect
            again = study(
                rng, effect=planted, weight_D=table["weight"][: options["documents"]], **options
            )
            found += decide(again).label == label
        assert found >= 45


@pytest.mark.parametrize("broken", [0, 17])
def test_a_student_broken_on_one_slice_is_flagged_there_alone_while_the_mean_helps(broken):
    nll, weight_KD = sliced(np.random.default_rng(13), effect=-0.3)
    nll[0, :, broken] += 0.3 + 0.6
    v = decide(sliced_table(nll, weight_KD), margin=0.01, slice_margin=0.02)
    assert v.label == f"{NEW_FAILURE}part:{broken}"
    assert [f.slice for f in v.failures] == [f"part:{broken}"]
    assert v.interval[1] < -0.01
    assert f"part:{broken}" in v.reason
    failure = v.failures[0]
    assert failure.effect == pytest.approx(0.6, abs=0.1)
    assert failure.interval[0] > 0.02
    assert failure.adjusted_p < 0.05
    assert [s.slice for s in v.slices if s.harmed] == [f"part:{broken}"]
    assert not ships(v, None)
    unbroken = sliced(np.random.default_rng(13), effect=-0.3)
    assert decide(sliced_table(*unbroken), margin=0.01, slice_margin=0.02).label == HELPS


def test_the_worst_failure_names_the_label_and_harm_everywhere_stays_worse():
    nll, weight_KD = sliced(np.random.default_rng(14), slices=6, effect=-0.3)
    nll[0, :, 1] += 0.9
    nll[0, :, 4] += 1.2
    v = decide(sliced_table(nll, weight_KD))
    assert v.label == f"{NEW_FAILURE}part:4"
    assert [f.slice for f in v.failures] == ["part:4", "part:1"]
    nll[0] += 3.0
    v = decide(sliced_table(nll, weight_KD))
    assert v.label == WORSE
    assert len(v.failures) == 6


def test_harm_within_the_slice_margin_is_no_failure():
    nll, weight_KD = sliced(np.random.default_rng(13), effect=-0.3)
    nll[0, :, 3] += 0.9
    assert decide(sliced_table(nll, weight_KD), slice_margin=0.9).failures == ()


def test_the_effect_is_all_totals_over_all_counts():
    table = study(np.random.default_rng(16), effect=-0.1)
    mean = lambda arm: (
        table["total"][table["arm"] == arm].sum() / table["weight"][table["arm"] == arm].sum()
    )
    assert decide(table).effect == pytest.approx(mean("kd") - mean("sft"))


def same(a, b, tolerance=1e-9):
    assert (a.label, a.seeds, a.seeds_needed) == (b.label, b.seeds, b.seeds_needed)
    for name in ("effect", "interval", "minimum_detectable_effect"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), abs=tolerance)
    for mine, other in zip(a.slices, b.slices, strict=True):
        assert mine[:1] == other[:1]
        assert mine.effect == pytest.approx(other.effect, abs=tolerance)
        assert mine.adjusted_p == pytest.approx(other.adjusted_p, abs=tolerance)


@pytest.fixture(scope="module")
def table():
    return sliced_table(*sliced(np.random.default_rng(17), slices=5, documents=60, effect=-0.03))


def test_the_order_of_rows_and_other_arms_change_nothing(table):
    rng = np.random.default_rng(18)
    shuffled = rows(table, rng.permutation(len(table["arm"])))
    assert decide(shuffled) == decide(table)
    other = {
        **table,
        "arm": np.where(table["arm"] == "kd", "x", "y"),
        "weight": table["weight"] + 1,
    }
    assert decide(joined(table, other)) == decide(table)
    assert decide({name: column.tolist() for name, column in table.items()}) == decide(table)


def test_swapping_the_arms_turns_the_sign(table):
    there, back = decide(table), decide(table, treatment="sft", baseline="kd")
    assert there.effect == -back.effect
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert {there.label, back.label} in ({HELPS, WORSE}, {INCONCLUSIVE})


@pytest.mark.parametrize("shared", ["nothing", "seed", "document"])
def test_what_both_arms_share_changes_nothing(table, shared):
    by = np.array([0.0, 1.0, 7.0])[table["seed"]] if shared == "seed" else 0.0
    by = table["document"] / 10 if shared == "document" else by
    harder = {**table, "total": table["total"] + (5.0 + by) * table["weight"]}
    same(decide(harder), decide(table))


def test_units_scale_everything_but_the_label(table):
    bits = {**table, "total": table["total"] / math.log(2)}
    assert decide(bits).interval == pytest.approx(np.array(decide(table).interval) / math.log(2))
    assert decide(bits).label == decide(table).label


def test_equal_arms_are_no_better_with_certainty():
    table = study(np.random.default_rng(19))
    kd = rows(table, table["arm"] == "kd")
    v = decide(joined(kd, {**kd, "arm": np.full(len(kd["arm"]), "sft")}))
    assert (v.label, v.effect, v.interval) == (NO_BETTER, 0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("effect", "margin", "label"),
    [
        (-0.1, 0.0, HELPS),
        (-0.1, 0.05, HELPS),
        (-0.1, 0.2, NO_BETTER),  # certainly better, certainly by less than what matters
        (-0.1, 0.1, INCONCLUSIVE),
        (0.0, 0.05, NO_BETTER),
        (0.0, 0.0, INCONCLUSIVE),
        (0.1, 0.05, WORSE),
        (0.1, 0.2, NO_BETTER),
        (0.1, 0.0, WORSE),
    ],
)
def test_labels_follow_the_interval_and_the_margin(effect, margin, label):
    rng = np.random.default_rng(20)
    table = study(rng, by_seed=0.002, by_document=0.02, by_both=0.01, effect=effect, documents=200)
    v = decide(table, margin=margin)
    assert v.label == label
    assert f"{v.effect:+.4g}" in v.reason
    if label != INCONCLUSIVE:
        assert v.seeds_needed is None


def test_an_undecided_study_says_how_many_seeds_decide():
    rng = np.random.default_rng(21)
    noisy = {"by_document": 0.02, "by_both": 0.01, "documents": 300}
    table = study(rng, by_seed=0.0, **noisy)
    by_seed = np.array([-0.15, -0.05, 0.05])[table["seed"]] * (table["arm"] == "kd")
    v = decide({**table, "total": table["total"] + by_seed * table["weight"]}, margin=0.02)
    assert v.label == INCONCLUSIVE
    assert v.seeds_needed > 3
    assert f"at least {v.seeds_needed:,} seeds in a new study" in v.reason
    assert "85% upper bound" in v.reason
    assert f"{v.minimum_detectable_effect:.3g}" in v.reason
    low, high = v.minimum_detectable_range
    assert 0.02 < low < v.minimum_detectable_effect < high


def test_a_look_spends_its_level_and_plans_for_the_next():
    rng = np.random.default_rng(21)
    table = study(rng, by_seed=0.05, by_document=0.02, by_both=0.01)
    fixed, *looks = (decide(table, margin=0.02, look=look) for look in (None, 1, 2, 3))
    assert [round(v.confidence, 6) for v in (fixed, *looks)] == [0.95, 0.96, 0.995, 0.9975]
    widths = [v.interval[1] - v.interval[0] for v in (fixed, *looks)]
    assert widths == sorted(widths)
    assert "99.5% interval" in looks[1].reason
    assert "at look 2" in looks[1].reason
    assert "for look 3" in looks[1].reason
    needed = [v.seeds_needed for v in (fixed, *looks)]
    assert needed == sorted(needed)


def test_where_documents_forbid_a_decision_more_of_them_are_asked_for():
    rng = np.random.default_rng(22)
    v = decide(study(rng, by_seed=0.001, by_document=1.0, documents=30), margin=0.01)
    assert (v.label, v.seeds_needed) == (INCONCLUSIVE, None)
    assert "hold out about" in v.reason


def test_few_seeds_are_inconclusive_however_large_the_effect():
    table = study(np.random.default_rng(23), seeds=2, effect=-2.0)
    v = decide(table)
    assert v.label == INCONCLUSIVE
    assert v.minimum_detectable_effect > 0
    assert v.seeds_needed >= 3
    assert "minimum of 3" in v.reason
    assert f"run at least {v.seeds_needed} seeds" in v.reason
    assert decide(table, minimum_seeds=2).label == HELPS
    limited = study(np.random.default_rng(23), seeds=2, by_document=2.0, documents=20)
    assert decide(limited).seeds_needed >= 3  # though documents forbid a decision
    assert not ships(v, None)


def test_few_seeds_flag_no_slice():
    nll, weight_KD = sliced(np.random.default_rng(13), seeds=2)
    nll[0, :, 0] += 3.0
    assert decide(sliced_table(nll, weight_KD)).failures == ()


def test_one_seed_knows_no_interval_and_says_so():
    v = decide(study(np.random.default_rng(24), seeds=1, effect=-2.0))
    assert (v.label, v.interval, v.minimum_detectable_effect) == (INCONCLUSIVE, (None, None), None)
    assert v.effect == pytest.approx(-2.0, abs=0.2)
    assert v.seeds_needed == 3
    assert "one seed" in v.reason


def test_documents_of_one_group_are_one_piece_of_evidence():
    table = study(np.random.default_rng(25))
    tenfold = joined(*({**table, "document": table["document"] + 1000 * i} for i in range(10)))
    alone = decide(table)
    copies = decide({**tenfold, "group": tenfold["document"] % 1000})
    same(copies, alone)
    assert copies.warnings == alone.warnings
    assert "100 groups of 1,000 documents" in copies.reason
    apart = decide(tenfold)  # equal scores alone are no sign of a copy
    assert apart.documents == 1000
    assert decide({**table, "group": table["document"]})._replace(warnings=()) == alone._replace(
        warnings=()
    )


def test_equal_scores_are_no_copies():
    """500 answers of one token, 30% of them certain, a true effect of -0.2."""
    rng = np.random.default_rng(35)
    for _ in range(10):
        certain_D = rng.random(500) < 0.3
        nll_ASD = rng.exponential(2.0, 500) + rng.normal(0, 0.1, (2, 3, 500)) + 3.0
        nll_ASD[0] -= 0.2 / 0.7
        nll_ASD = np.where(certain_D, 1e-7 * rng.random((2, 3, 500)), nll_ASD)
        v = decide(as_table(nll_ASD, np.ones(500)), margin=0.01)
        assert v.label == HELPS
        assert v.interval[1] - v.interval[0] < 0.1


def test_rows_listed_twice_are_refused(table):
    v = decide(joined(table, rows(table, np.arange(3))))
    assert (v.label, v.effect, v.interval) == (INVALID, None, (None, None))
    assert "row 2161 of the table repeats row 1 of the table (arm kd, seed 0" in v.reason


def test_tokens_given_as_documents_are_warned_of_where_they_can_be_tokens():
    nll_ASD = np.random.default_rng(26).exponential(2.0, (2, 3, 500))
    table = as_table(nll_ASD, np.ones(500))
    warned = lambda **options: any("have one token" in w for w in decide(**options).warnings)
    assert decide(table).label != INVALID
    assert warned(table=table)
    assert not warned(table={**table, "group": table["document"] // 10})
    assert not warned(table=table, unit="accuracy", higher_is_better=True)
    assert not warned(table={**table, "weight": table["weight"] * 2})


def with_teacher(table, difference):
    one = rows(table, (table["arm"] == "sft") & (table["seed"] == 0))
    one["arm"] = np.full(len(one["seed"]), "teacher")
    one["seed"] = np.full(len(one["seed"]), -1)
    one["total"] = one["total"] + difference * one["weight"]
    return joined(table, one)


def change(table, arm, column, value, rows_of_arm=slice(None)):
    copy = {name: np.array(array, dtype=array.dtype) for name, array in table.items()}
    copy[column] = copy[column].astype(np.result_type(copy[column], type(value)))
    copy[column][np.flatnonzero(copy["arm"] == arm)[rows_of_arm]] = value
    return copy


def part(table, **columns):
    return {**table, "slice": np.full(len(table["arm"]), "part"), **columns}


def with_copied_seed(table, arm):
    copy = {name: np.array(column) for name, column in table.items()}
    of = lambda seed: (copy["arm"] == arm) & (copy["seed"] == seed)
    copy["total"][of(1)] = copy["total"][of(0)] * (1 + 1e-8)  # nearly
    return copy


FIRST = slice(0, 1)
INVALID_TABLES = {
    "teacher is not better than sft": lambda t: with_teacher(t, 0.5),
    "arm kd is missing": lambda t: rows(t, t["arm"] != "kd"),
    "arm sft is missing": lambda t: rows(t, t["arm"] != "sft"),
    "mask is empty": lambda t: change(t, "kd", "weight", 0),
    "different seeds (only kd has 2)": lambda t: rows(t, (t["arm"] != "sft") | (t["seed"] != 2)),
    "kd seed 0 lacks document 5": lambda t: rows(t, np.arange(len(t["arm"])) != 5),
    "kd seed 0 has weight 1 in document 0, and most runs have 247": lambda t: change(
        t, "kd", "weight", 1, FIRST
    ),
    "row 1 of the table: total is 'nan'": lambda t: change(t, "kd", "total", float("nan"), FIRST),
    "row 121 of the table: weight is -1": lambda t: change(t, "sft", "weight", -1, FIRST),
    "slice part has more weight than": lambda t: joined(t, part(t, weight=t["weight"] + 1)),
    "slice part has more score than": lambda t: joined(t, part(t, total=t["total"] + 1)),
    "1 totals of arm kd are negative": lambda t: change(t, "kd", "total", -5.0, FIRST),
    "seeds 0 and 1 of arm kd have the same scores": lambda t: with_copied_seed(t, "kd"),
    "seeds 0 and 1 of arm sft have the same scores": lambda t: with_copied_seed(t, "sft"),
    "the table has no rows": lambda t: rows(t, t["arm"] == "nobody"),
    "seed is empty": lambda t: change(t, "kd", "seed", float("nan"), FIRST),
    "document 7 has two groups": lambda t: {
        **t,
        "group": np.where((t["document"] == 7) & (t["seed"] == 1), -1, t["document"]),
    },
}


@pytest.mark.parametrize("reason", INVALID_TABLES)
def test_what_cannot_be_compared_is_invalid_with_its_reason(reason):
    table = study(np.random.default_rng(27), effect=-1.0, documents=40)
    assert decide(table).label == HELPS
    broken = INVALID_TABLES[reason](table)
    v = decide(broken)
    assert v.label == INVALID
    assert reason in v.reason
    assert "\n" not in v.reason
    assert not ships(v, None)
    assert (v.slices, v.failures, v.seeds_needed) == ((), (), None)


def test_the_callers_reason_makes_it_invalid(table):
    v = decide(table, invalid="the vocabularies differ at token 7")
    assert (v.label, v.reason) == (INVALID, "the vocabularies differ at token 7")


def test_a_better_teacher_changes_nothing(table):
    assert decide(with_teacher(table, -0.5)) == decide(table)


def test_one_document_decides_nothing():
    v = decide(study(np.random.default_rng(28), documents=1, effect=-1.0))
    assert (v.label, v.minimum_detectable_effect) == (INCONCLUSIVE, None)
    assert "hold out more" in v.reason


BAD_OPTIONS = [
    {"margin": -0.1},
    {"slice_margin": float("nan")},
    {"confidence": 1.0},
    {"minimum_seeds": 1},
    {"look": 0},
    {"minimum_weight": -1},
    {"treatment": "sft"},
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_options_out_of_range_are_refused(table, options):
    with pytest.raises(UserError, match=next(iter(options))):
        decide(table, **options)


def test_a_table_without_its_columns_is_refused(table):
    with pytest.raises(UserError, match="document"):
        decide({name: column for name, column in table.items() if name != "document"})
    with pytest.raises(UserError, match="differ in length"):
        decide({**table, "seed": table["seed"][1:]})


@pytest.mark.parametrize(
    ("steps", "flops", "allowed"),
    [
        (HELPS, HELPS, True),
        (HELPS, None, True),
        (HELPS, NO_BETTER, False),
        (HELPS, INCONCLUSIVE, False),
        (HELPS, f"{NEW_FAILURE}code", False),
        (HELPS, INVALID, False),
        (NO_BETTER, HELPS, False),
        (WORSE, None, False),
        (INCONCLUSIVE, HELPS, False),
    ],
)
def test_only_what_won_every_comparison_ships(steps, flops, allowed):
    other = None if flops is None else Verdict(flops, "")
    assert ships(Verdict(steps, ""), other) is allowed


def spoiled(table):
    """A third arm of everything that may be wrong with an arm."""
    odd = rows(table, (table["arm"] == "sft") & (table["document"] < 20))
    n = len(odd["arm"])
    return {
        "arm": ["third"] * n,
        "seed": [None] + ["x"] * (n - 1),
        "document": [f"other {i}" for i in range(n)],
        "slice": ["unheard of"] * n,
        "total": ["not a number"] + [float("nan")] * (n - 1),
        "weight": [-1.0] * n,
    }


def test_an_arm_that_is_not_compared_spoils_nothing(table):
    mixed = {name: [*table[name].tolist(), *column] for name, column in spoiled(table).items()}
    assert decide(mixed) == decide(table)


def test_ids_may_be_numbers_or_text(table):
    as_text = {**table, "document": table["document"].astype(str), "seed": table["seed"] + 0.0}
    as_text["document"] = [
        float(d) if i % 3 else d for i, d in enumerate(as_text["document"].tolist())
    ]
    assert decide(as_text) == decide(table)
    called = {**table, "document": [("a", 2.5)[d % 2] * (d + 1) for d in table["document"]]}
    assert decide(called).interval == decide(table).interval


def test_without_slices_the_column_may_be_left_out():
    table = study(np.random.default_rng(36))
    assert decide({n: c for n, c in table.items() if n != "slice"}) == decide(table)


@pytest.mark.parametrize("ratio", [1e9, math.inf])
def test_one_giant_document_decides_nothing(ratio):
    table = study(np.random.default_rng(37), documents=30, effect=-1.0)
    giant = table["document"] == 0
    weight = np.where(giant, 1e9, 1e9 / ratio)
    v = decide({**table, "weight": weight, "total": table["total"] / table["weight"] * weight})
    assert v.label == INCONCLUSIVE
    assert v.effective_documents == pytest.approx(1)
    assert "hold out more" in v.reason


def accuracy(rng, seeds, gain, documents=2000, name="accuracy"):
    """Right or wrong, by seed and document; some are easy, some hard."""
    chance_D = rng.beta(0.5, 0.5, documents) * (1 - gain)
    right = rng.random((2, seeds, documents)) < np.stack([chance_D + gain, chance_D])[:, None]
    return as_table(right.astype(float), np.ones(documents))


RIGHT = {"higher_is_better": True, "unit": "accuracy", "margin": 0.01}


@pytest.mark.parametrize("seeds", [3, 5])
def test_better_accuracy_helps_and_reads_as_the_user_counts(seeds):
    rng = np.random.default_rng(38)
    for _ in range(5):
        table = accuracy(rng, seeds, 0.087)
        v = decide(table, **RIGHT)
        assert v.label == HELPS
        assert v.effect == pytest.approx(0.087, abs=0.03)
        assert 0.01 < v.interval[0] < v.effect < v.interval[1]
        assert f"{v.effect:+.4g} accuracy" in v.reason
    swapped = decide(table, treatment="sft", baseline="kd", **RIGHT)
    assert swapped.label == WORSE
    assert swapped.effect == pytest.approx(-v.effect)
    losses = decide({**table, "total": 1 - table["total"]}, **{**RIGHT, "higher_is_better": False})
    same(
        losses._replace(effect=-losses.effect, interval=(-losses.interval[1], -losses.interval[0])),
        v,
    )


def test_scores_may_be_negative_where_they_are_no_likelihood():
    table = study(np.random.default_rng(39), effect=-1.0)
    rewards = {**table, "total": -table["total"]}
    assert decide(rewards, unit="reward", higher_is_better=True).label == HELPS
    assert decide(rewards, non_negative=True, unit="reward").label == INVALID


def test_what_the_scores_cannot_carry_is_said():
    rng = np.random.default_rng(40)
    few = decide(study(rng, documents=15, lengths="equal"))
    assert few.effective_documents == pytest.approx(15)
    assert any("15 effective documents" in w for w in few.warnings)
    assert any("missed with chance 51%" in w for w in few.warnings)
    many = decide(study(rng, seeds=5, documents=200, lengths="equal", effect=-1.0))
    assert (many.label, many.warnings) == (HELPS, ())


def test_a_label_that_hangs_on_one_document_or_seed_names_it():
    rng = np.random.default_rng(41)
    quiet = {"by_seed": 0.002, "by_document": 0.02, "by_both": 0.002, "lengths": "equal"}
    table = study(rng, seeds=5, documents=60, effect=-0.02, **quiet)
    hit = (table["arm"] == "kd") & (table["document"] == 13)
    v = decide({**table, "total": table["total"] + 0.9 * hit * table["weight"]})
    assert v.label == INCONCLUSIVE
    assert (
        "document 13 alone decides the label: without it the mean would say HELPS; look at it"
        in v.warnings
    )
    hit = (table["arm"] == "kd") & (table["seed"] == 3)
    v = decide({**table, "total": table["total"] + 0.09 * hit * table["weight"]})
    assert v.label == INCONCLUSIVE
    assert (
        "seed 3 alone decides the label: without it the mean would say HELPS; look at it"
        in v.warnings
    )


def ablations(rng, arms, *, effect=0.0, seeds=3, documents=40):
    """Many arms against one kd; the first alone has an effect."""
    weight_D = np.full(documents, 100.0)
    nll_ASD = 20 + rng.normal(0, 0.5, documents) + rng.normal(0, 0.02, (arms + 1, seeds, 1))
    nll_ASD = nll_ASD + rng.normal(0, 0.1, nll_ASD.shape)
    nll_ASD[1] += effect
    names = ("kd", *(f"arm {a}" for a in range(1, arms + 1)))
    scores = as_scores(nll_ASD, weight_D, names)
    rules = Rules(margin=0.0, slice_margin=0.0)
    return [Comparison(scores, name, "kd", rules) for name in names[1:]]


def test_twelve_ablations_without_effect_are_seldom_called_anything():
    rng = np.random.default_rng(42)
    false, apart, studies = 0, 0, 60
    for i in range(studies):
        comparisons = ablations(rng, 12)
        false += any(v.label != INCONCLUSIVE for v in judge_all(comparisons))
        apart += i < 30 and any(judge(one).label != INCONCLUSIVE for one in comparisons)
    assert false <= 7  # more with a chance of 1% at 5%
    assert apart > 0.15 * 30


def test_levels_of_a_family_are_those_of_holm():
    rng = np.random.default_rng(43)
    comparisons = ablations(rng, 4, effect=-2.0)
    found = judge_all(comparisons)
    assert [v.label for v in found] == [HELPS] + [INCONCLUSIVE] * 3
    levels = [round(1 - v.confidence, 6) for v in found]
    assert levels == [0.0125] + [round(0.05 / 3, 6)] * 3
    assert judge_all(comparisons[:1]) == (judge(comparisons[0]),)
    assert judge_all(()) == ()
    absent = comparisons[0]._replace(treatment="nobody")
    *others, invalid = judge_all([*comparisons, absent])
    assert tuple(others) == found
    assert (invalid.label, "nobody is missing" in invalid.reason) == (INVALID, True)
    looked = comparisons[0]._replace(rules=comparisons[0].rules._replace(look=2))
    with pytest.raises(UserError, match="look"):
        judge_all([*comparisons, looked])


def test_arrays_and_tables_are_judged_alike():
    rng = np.random.default_rng(44)
    nll_ASD, weight_D = 20 + rng.normal(0, 0.1, (2, 3, 50)), rng.integers(1, 90, 50) / 8
    scores = as_scores(nll_ASD, weight_D)
    assert isinstance(scores, Scores)
    by_table = decide(as_table(nll_ASD, weight_D), margin=0.01)
    assert judge(Comparison(scores, "kd", "sft", Rules(0.01, 0.0))) == by_table


@pytest.mark.parametrize("documents", [25, 60])
def test_a_few_answers_that_differ_rule_nothing_out(documents):
    """Right or wrong on few examples: an interval near zero width is luck, not knowledge."""
    r, false = np.random.default_rng(7), 0
    for _ in range(60):
        # The true improvement is exactly the margin.
        luck = r.random((3, documents))
        right = {"sft": luck < 0.9, "kd": luck < 0.95}
        rows = [
            (arm, seed, document, float(values[seed, document]))
            for arm, values in right.items()
            for seed in range(3)
            for document in range(documents)
        ]
        columns = zip(*rows, strict=True)
        table = dict(zip(("arm", "seed", "document", "total"), columns, strict=True))
        table["weight"] = np.ones(len(rows))
        v = verdict(
            table, margin=0.05, slice_margin=0.05, higher_is_better=True, unit="share right"
        )
        false += v.label == "NO BETTER"
        if v.label == "INCONCLUSIVE" and v.interval[0] is not None and v.interval[1] < 0.05:
            assert "it takes to rule an improvement out" in v.reason
    assert false <= 4
