"""The verdict holds its error rates on simulated studies, and refuses what would inflate them.

500 studies at a true rate of 5% give more than 33 errors with a chance of less than 5%.
"""

import json
import math

import numpy as np
import pytest

from distill_jax.study.bootstrap import chance_of_more, spreads
from distill_jax.study.pairing import Incomparable
from distill_jax.study.reasons import HELPS, INCONCLUSIVE, INVALID, NEW_FAILURE, NO_BETTER, WORSE
from distill_jax.study.slice_harm import holm, slice_effects
from distill_jax.study.verdict import Verdict, ships, slice_rows, verdict, verdict_dict
from distill_jax.types import UserError
from tests.study.simulated import as_table, joined, rows, sliced, sliced_table, study

STUDIES = 500
BOUND = 33


def judge(table, **options):
    return verdict(table, **{"margin": 0.0, "slice_margin": 0.0, "resamples": 200, **options})


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
    (3, {"by_seed": 0.0, "by_both": 0.0, "lengths": "pareto"}),
    (3, {"by_seed": 0.02, "by_document": 0.2, "by_both": 0.2, "lengths": "pareto"}),
    (5, {"by_seed": 0.02, "by_document": 0.1, "by_both": 0.1}),
    (10, {"by_seed": 0.05, "by_document": 0.2, "by_both": 0.05, "lengths": "equal"}),
]


@pytest.mark.parametrize(("seeds", "truth"), TRUTHS)
def test_no_effect_is_seldom_called_one_and_twice_the_detectable_is_found(seeds, truth):
    rng = np.random.default_rng(11)
    options = {"seeds": seeds, "documents": 60, **truth}
    tables = [study(rng, **options) for _ in range(STUDIES)]
    null = [judge(table, seed=i) for i, table in enumerate(tables)]
    assert sum(v.label in (HELPS, WORSE) for v in null) <= BOUND
    for sign, label in ((-1, HELPS), (1, WORSE)):
        found = 0
        for v, table in zip(null[:100], tables, strict=False):
            # New seeds and new effects on the held-out documents that said what is detectable.
            planted = sign * 2 * v.minimum_detectable_effect
            again = study(
                rng, effect=planted, count_D=table["count"][: options["documents"]], **options
            )
            found += judge(again).label == label
        assert found >= 90


@pytest.mark.parametrize("seeds", [3, 10])
def test_thirty_slices_without_harm_give_a_false_alarm_in_at_most_one_study_of_twenty(seeds):
    rng = np.random.default_rng(12)
    alarms = 0
    for i in range(STUDIES):
        nll, count_KD = sliced(rng, seeds=seeds, documents=60)
        total_KSD = (nll[0] - nll[1]).transpose(1, 0, 2) * count_KD[:, None]
        found = spreads(total_KSD, count_KD, resamples=100, seed=i)
        p_values = [chance_of_more(spread, 0.0) for spread in found]
        alarms += min(holm(p_values, len(p_values))) < 0.05
    assert alarms <= BOUND


@pytest.mark.parametrize("broken", [0, 17])
def test_a_student_broken_on_one_slice_is_flagged_there_alone_while_the_mean_helps(broken):
    nll, count_KD = sliced(np.random.default_rng(13), effect=-0.3)
    nll[0, :, broken] += 0.3 + 0.6
    v = judge(sliced_table(nll, count_KD), margin=0.01, slice_margin=0.02)
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
    assert judge(sliced_table(*unbroken), margin=0.01, slice_margin=0.02).label == HELPS


def test_the_worst_failure_names_the_label_and_harm_everywhere_stays_worse():
    nll, count_KD = sliced(np.random.default_rng(14), slices=6, effect=-0.3)
    nll[0, :, 1] += 0.9
    nll[0, :, 4] += 1.2
    v = judge(sliced_table(nll, count_KD))
    assert v.label == f"{NEW_FAILURE}part:4"
    assert [f.slice for f in v.failures] == ["part:4", "part:1"]
    nll[0] += 3.0
    v = judge(sliced_table(nll, count_KD))
    assert v.label == WORSE
    assert len(v.failures) == 6


def test_harm_within_the_slice_margin_is_no_failure():
    nll, count_KD = sliced(np.random.default_rng(13), effect=-0.3)
    nll[0, :, 3] += 0.9
    assert judge(sliced_table(nll, count_KD), slice_margin=0.9).failures == ()


def test_slices_too_small_to_test_say_so_and_still_count_in_the_family():
    nll, count_KD = sliced(np.random.default_rng(15), slices=4, effect=-0.3)
    count_KD[2, 3:] = 0
    count_KD[3] = 0
    table = sliced_table(nll, count_KD)
    found = {s.slice: s for s in slice_effects(table, slice_margin=0.0, registered=PARTS)}
    assert "documents" in found["part:2"].untestable
    assert found["part:2"].effect is not None
    assert found["part:3"] == ("part:3", None, (None, None), None, 0, 0, False, found["part:3"][-1])
    assert found["never seen"].untestable
    fewer = slice_effects(table, slice_margin=0.0, registered=("part:0",))[0]
    assert found["part:0"].effect == fewer.effect
    nll[0, :, 0] += 0.4
    table = sliced_table(nll, count_KD)
    p = [
        slice_effects(table, slice_margin=0.0, registered=names)[0].adjusted_p
        for names in (("part:0",), PARTS)
    ]
    assert p[1] == pytest.approx(5 * p[0])
    few = slice_effects(table, slice_margin=0.0, minimum_tokens=10**9)
    assert all("tokens" in s.untestable or "documents" in s.untestable for s in few)


PARTS = ("part:0", "part:1", "part:2", "part:3", "never seen")


def test_holm_is_its_definition():
    p = [0.01, 0.04, 0.03, 0.005]
    assert holm(p, 4) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(p, 10) == pytest.approx([0.09, 0.28, 0.24, 0.05])
    assert holm([0.9, 0.8], 2) == [1.0, 1.0]
    assert holm([], 3) == []


def test_the_effect_is_all_totals_over_all_counts():
    table = study(np.random.default_rng(16), effect=-0.1)
    mean = lambda arm: (
        table["nll_total"][table["arm"] == arm].sum() / table["count"][table["arm"] == arm].sum()
    )
    assert judge(table).effect == pytest.approx(mean("kd") - mean("sft"))


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
    assert judge(shuffled) == judge(table)
    other = {**table, "arm": np.where(table["arm"] == "kd", "x", "y"), "count": table["count"] + 1}
    assert judge(joined(table, other)) == judge(table)
    assert judge({name: column.tolist() for name, column in table.items()}) == judge(table)


def test_one_seed_of_resampling_gives_one_answer(table):
    assert judge(table, seed=3) == judge(table, seed=3)
    assert judge(table, seed=3).interval != judge(table, seed=4).interval


def test_swapping_the_arms_turns_the_sign(table):
    there, back = judge(table), judge(table, treatment="sft", baseline="kd")
    assert there.effect == -back.effect
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))
    assert {there.label, back.label} in ({HELPS, WORSE}, {INCONCLUSIVE})


@pytest.mark.parametrize("shared", ["nothing", "seed", "document"])
def test_what_both_arms_share_changes_nothing(table, shared):
    by = np.array([0.0, 1.0, 7.0])[table["seed"]] if shared == "seed" else 0.0
    by = table["document"] / 10 if shared == "document" else by
    harder = {**table, "nll_total": table["nll_total"] + (5.0 + by) * table["count"]}
    same(judge(harder), judge(table))


def test_units_scale_everything_but_the_label(table):
    bits = {**table, "nll_total": table["nll_total"] / math.log(2)}
    assert judge(bits).interval == pytest.approx(np.array(judge(table).interval) / math.log(2))
    assert judge(bits).label == judge(table).label


def test_equal_arms_are_no_better_with_certainty():
    table = study(np.random.default_rng(19), by_seed=0, by_document=0, by_both=0)
    v = judge(table)
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
    v = judge(table, margin=margin)
    assert v.label == label
    assert f"{v.effect:+.4g}" in v.reason
    if label != INCONCLUSIVE:
        assert v.seeds_needed is None


def test_an_undecided_study_says_how_many_seeds_decide():
    rng = np.random.default_rng(21)
    noisy = {"by_document": 0.02, "by_both": 0.01, "documents": 300}
    table = study(rng, by_seed=0.0, **noisy)
    by_seed = np.array([-0.15, -0.05, 0.05])[table["seed"]] * (table["arm"] == "kd")
    v = judge({**table, "nll_total": table["nll_total"] + by_seed * table["count"]}, margin=0.02)
    assert v.label == INCONCLUSIVE
    assert v.seeds_needed > 3
    assert str(v.seeds_needed) in v.reason
    assert f"{v.minimum_detectable_effect:.4g}" in v.reason
    # So many seeds do decide, where the effect is the one seen.
    again = [
        judge(study(rng, effect=-0.05, by_seed=0.1, seeds=v.seeds_needed, **noisy), margin=0.02)
        for _ in range(20)
    ]
    assert sum(a.label == HELPS for a in again) >= 16


def test_where_documents_forbid_a_decision_more_of_them_are_asked_for():
    rng = np.random.default_rng(22)
    v = judge(study(rng, by_seed=0.001, by_document=1.0, documents=30), margin=0.01)
    assert (v.label, v.seeds_needed) == (INCONCLUSIVE, None)
    assert "hold out about" in v.reason


def test_few_seeds_are_inconclusive_however_large_the_effect():
    table = study(np.random.default_rng(23), seeds=2, effect=-2.0)
    v = judge(table)
    assert v.label == INCONCLUSIVE
    assert v.minimum_detectable_effect > 0
    assert v.seeds_needed >= 3
    assert "minimum of 3" in v.reason
    assert f"run at least {v.seeds_needed} seeds" in v.reason
    assert judge(table, minimum_seeds=2).label == HELPS
    limited = study(np.random.default_rng(23), seeds=2, by_document=2.0, documents=20)
    assert judge(limited).seeds_needed >= 3  # though documents forbid a decision
    assert not ships(v, None)


def test_few_seeds_flag_no_slice():
    nll, count_KD = sliced(np.random.default_rng(13), seeds=2)
    nll[0, :, 0] += 3.0
    assert judge(sliced_table(nll, count_KD)).failures == ()


def test_one_seed_knows_no_interval_and_says_so():
    v = judge(study(np.random.default_rng(24), seeds=1, effect=-2.0))
    assert (v.label, v.interval, v.minimum_detectable_effect) == (INCONCLUSIVE, (None, None), None)
    assert v.effect == pytest.approx(-2.0, abs=0.2)
    assert v.seeds_needed == 3
    assert "one seed" in v.reason


def test_documents_listed_ten_times_are_the_same_evidence():
    table = study(np.random.default_rng(25))
    tenfold = joined(*({**table, "document": table["document"] + 1000 * i} for i in range(10)))
    v = judge(tenfold, resamples=4000)
    assert v.interval == pytest.approx(judge(table, resamples=4000).interval)
    assert "900 repeated ones left out" in v.reason
    assert "100 documents" in v.reason


def test_rows_listed_twice_are_refused(table):
    v = judge(joined(table, rows(table, np.arange(3))))
    assert (v.label, v.effect, v.interval) == (INVALID, None, (None, None))
    assert "3 rows repeat" in v.reason


def test_tokens_given_as_documents_are_refused():
    nll_ASD = np.random.default_rng(26).exponential(2.0, (2, 3, 500))
    table = as_table(nll_ASD, np.ones(500))
    assert judge(table).label == INVALID
    assert "tokens are not documents" in judge(table).reason
    assert judge(table, one_token_documents=True).label != INVALID


def with_teacher(table, difference):
    one = rows(table, (table["arm"] == "sft") & (table["seed"] == 0))
    one["arm"] = np.full(len(one["seed"]), "teacher")
    one["seed"] = np.full(len(one["seed"]), -1)
    one["nll_total"] = one["nll_total"] + difference * one["count"]
    return joined(table, one)


def change(table, arm, column, value, rows_of_arm=slice(None)):
    copy = {name: np.array(array, dtype=array.dtype) for name, array in table.items()}
    copy[column] = copy[column].astype(np.result_type(copy[column], type(value)))
    copy[column][np.flatnonzero(copy["arm"] == arm)[rows_of_arm]] = value
    return copy


FIRST = slice(0, 1)
INVALID_TABLES = {
    "teacher is not better than sft": lambda t: with_teacher(t, 0.5),
    "arm kd is missing": lambda t: rows(t, t["arm"] != "kd"),
    "arm sft is missing": lambda t: rows(t, t["arm"] != "sft"),
    "mask is empty": lambda t: change(t, "kd", "count", 0),
    "seeds 2 are missing": lambda t: rows(t, (t["arm"] != "sft") | (t["seed"] != 2)),
    "unequal documents": lambda t: rows(t, np.arange(len(t["arm"])) != 5),
    "unequal counts": lambda t: change(t, "kd", "count", 1, FIRST),
    "not finite in 1 rows, first in arm kd": lambda t: change(
        t, "kd", "nll_total", float("nan"), FIRST
    ),
    "1 counts are negative": lambda t: change(t, "sft", "count", -1, FIRST),
    "whole documents have": lambda t: joined(
        t, {**t, "slice": np.full(len(t["arm"]), "part"), "count": t["count"] + 1}
    ),
}


@pytest.mark.parametrize("reason", INVALID_TABLES)
def test_what_cannot_be_compared_is_invalid_with_its_reason(reason):
    table = study(np.random.default_rng(27), effect=-1.0, documents=40)
    assert judge(table).label == HELPS
    broken = INVALID_TABLES[reason](table)
    v = judge(broken)
    assert v.label == INVALID
    assert reason in v.reason
    assert "\n" not in v.reason
    assert not ships(v, None)
    assert (v.slices, v.failures, v.seeds_needed) == ((), (), None)
    with pytest.raises(Incomparable):
        slice_effects(broken, slice_margin=0.0)


def test_the_callers_reason_makes_it_invalid(table):
    v = judge(table, invalid="the vocabularies differ at token 7")
    assert (v.label, v.reason) == (INVALID, "the vocabularies differ at token 7")


def test_a_better_teacher_changes_nothing(table):
    assert judge(with_teacher(table, -0.5)) == judge(table)


def test_one_document_decides_nothing():
    v = judge(study(np.random.default_rng(28), documents=1, effect=-1.0))
    assert (v.label, v.minimum_detectable_effect) == (INCONCLUSIVE, None)
    assert "hold out more" in v.reason


BAD_OPTIONS = [
    {"margin": -0.1},
    {"slice_margin": float("nan")},
    {"confidence": 1.0},
    {"minimum_seeds": 1},
    {"resamples": 1},
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_options_out_of_range_are_refused(table, options):
    with pytest.raises(UserError, match=next(iter(options))):
        judge(table, **options)


def test_a_table_without_its_columns_is_refused(table):
    with pytest.raises(UserError, match="document"):
        judge({name: column for name, column in table.items() if name != "document"})
    with pytest.raises(UserError, match="differ in length"):
        judge({**table, "seed": table["seed"][1:]})


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


def test_json_holds_every_number_and_no_nan(table):
    nll, count_KD = sliced(np.random.default_rng(13), effect=-0.3)
    nll[0, :, 2] += 0.9
    verdicts = [
        judge(table),
        judge(sliced_table(nll, count_KD)),
        judge(study(np.random.default_rng(29), seeds=1)),
        judge(table, invalid="no"),
    ]
    for v in verdicts:
        loaded = json.loads(json.dumps(verdict_dict(v), allow_nan=False))
        assert (loaded["label"], loaded["effect"]) == (v.label, v.effect)
        assert [loaded["low"], loaded["high"]] == list(v.interval)
        assert [f["slice"] for f in loaded["failures"]] == [f.slice for f in v.failures]
        drawn = json.loads(json.dumps(slice_rows(v, "equal_steps"), allow_nan=False))
        assert [r["tokens"] for r in drawn] == [s.tokens for s in v.slices]
