"""Laws of advice: no trigger, no advice; every override is one the program accepts."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest
from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

from configs.base import get_config
from distill_jax.config import check_keys, flatten
from distill_jax.diagnosis.advice import ADVICE, advise
from distill_jax.diagnosis.overrides import AdviceInputs
from distill_jax.diagnosis.triggers import TRIGGERS, trigger_values
from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.setup.loss import terms_of

ROOT = Path(__file__).resolve().parents[2]
STEPS, FLOPS = 72, 3e11
REPLACED = [f"terms.{name}.{key}" for name in DIVERGENCES for key in ("weight", "temperature")]


def quickstart() -> ConfigDict:
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "configs/quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def variant(**changes):
    config = quickstart()
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


# name -> (config, what the run says of itself beside its config)
RUNS = {
    "quickstart": (variant(), {"teacher_blocks": 30, "teacher_neurons": 1536}),
    "labels": (variant(terms__cross_entropy__weight=0.3), {}),
    "top_k": (
        variant(teacher__targets="top_k", teacher__policy="tail_bucket"),
        {"targets": "top_k"},
    ),
    "cached": (variant(teacher__cache="/cache"), {"cache_dtype": "int8"}),
    "study": (variant(job="study"), {"cache_dtype": "int8"}),
    "reverse": (
        variant(
            terms__forward_kl__weight=0.0,
            terms__reverse_kl__weight=1.0,
            terms__reverse_kl__schedule="linear:0.5",
        ),
        {},
    ),
}


def triggered(advice):
    """Values that meet every condition of an advice, just."""
    return {"best_step": 40.0} | {c.trigger: float(c.threshold) for c in advice.conditions}


def offered(values, run="quickstart", **more):
    config, of_run = RUNS[run]
    given = {"steps": STEPS, "flops_per_step": FLOPS} | of_run | more
    return advise(values, AdviceInputs(config=flatten(config), **given))


def names(rows):
    return [row["name"] for row in rows]


def parse(override, config):
    """The config as the command line makes it of an override."""
    values = absl_flags.FlagValues()
    start = ConfigDict(config).copy_and_resolve_references()
    argv = ["test", *shlex.split(override)]
    config_flags.DEFINE_config_dict("config", start, flag_values=values, sys_argv=argv)
    values(argv)
    return values.config


@pytest.mark.parametrize("advice", ADVICE, ids=lambda o: o.name)
def test_advice_appears_with_its_trigger_alone(advice):
    values = triggered(advice)
    runs = [run for run in RUNS if advice.name in names(offered(values, run))]
    assert runs, "no run is offered this advice"
    for run in runs:
        for condition in advice.conditions:
            short = 1e-6 if condition.below else -1e-6
            less = values | {condition.trigger: condition.threshold + short}
            assert advice.name not in names(offered(less, run))
            assert advice.name not in names(offered(values | {condition.trigger: None}, run))
            absent = {k: v for k, v in values.items() if k != condition.trigger}
            assert advice.name not in names(offered(absent, run))
        row = next(row for row in offered(values, run) if row["name"] == advice.name)
        first = advice.conditions[0]
        assert row["trigger"] == {
            "metric": first.trigger, "value": values[first.trigger], "threshold": first.threshold
        }  # fmt: skip
        assert set(row) == {
            "name", "why", "trigger", "override", "flops", "literature"
        }  # fmt: skip


def test_no_values_no_advice():
    for run in RUNS:
        assert offered({}, run) == []
        assert offered(dict.fromkeys(TRIGGERS), run) == []


def test_there_is_advice_and_their_names_are_theirs():
    assert len(ADVICE) >= 8
    assert len({o.name for o in ADVICE}) == len(ADVICE)
    assert all(o.conditions and o.literature for o in ADVICE)


def test_every_condition_is_of_a_trigger():
    for advice in ADVICE:
        for condition in advice.conditions:
            assert condition.trigger in TRIGGERS


@pytest.mark.parametrize("advice", ADVICE, ids=lambda o: o.name)
def test_every_override_is_accepted_and_changes_the_run(advice):
    for run, (config, of_run) in RUNS.items():
        for row in offered(triggered(advice), run):
            changed = parse(row["override"], config)
            check_keys(changed, get_config())
            terms_of(changed)
            before, after = flatten(config), flatten(changed)
            different = {key for key in before if before[key] != after[key]}
            named = [f.removeprefix("--config.").split("=")[0] for f in row["override"].split()]
            assert different == set(named)
            assert len(different) == len(named) > 0
            # Not every divergence can be had from a part of the teacher's distribution.
            partial = of_run.get("targets", "hidden") != "hidden"
            if partial and any(key in different for key in REPLACED):
                assert after["teacher.targets"] == "hidden"


def test_a_replaced_divergence_leaves_no_other():
    for run in RUNS:
        for row in offered({"share_tail": 0.5, "entropy_gap": 0.5}, run):
            assert row["name"] == "a mode-seeking divergence"
            assert "--config.terms.skew_reverse_kl.weight=1" in row["override"]
            active = [n for n in DIVERGENCES if RUNS[run][0].terms[n].weight > 0]
            for name in active:
                assert f"--config.terms.{name}.weight=0" in row["override"]
    row = offered({"share_tail": 0.5, "entropy_gap": 0.5}, "reverse")[0]
    assert "--config.terms.reverse_kl.schedule=constant" in row["override"]


def test_one_command_is_offered_once_and_in_order():
    values = {"effect_equal_flops": 0.1, "harmed_slices": 2, "late_fall": 0.5}
    rows = offered(values)
    assert names(rows) == ["more steps", "labels beside the teacher"]
    assert rows == offered(dict(reversed(values.items())))


def test_a_larger_student_stays_within_its_teacher():
    row = lambda **limits: offered({"share_capacity": 0.6}, **limits)
    [both] = row(teacher_blocks=30, teacher_neurons=1536)
    assert both["override"] == "--config.student.prune.blocks=28 --config.student.prune.neurons=747"
    assert both["flops"] == pytest.approx(FLOPS * STEPS * 28 / 21 * 747 / 560)
    [capped] = row(teacher_blocks=24, teacher_neurons=560)
    assert capped["override"] == "--config.student.prune.blocks=24"
    assert row(teacher_blocks=21, teacher_neurons=560) == []
    assert row(teacher_blocks=None, teacher_neurons=None) == []


def test_costs_are_runs_of_flops():
    [steps] = offered({"late_fall": 0.1})
    assert steps["override"] == f"--config.steps={2 * STEPS}"
    assert steps["flops"] == 2 * STEPS * FLOPS
    [best] = offered({"late_rise": 0.1, "best_step": 36})
    assert best["override"] == "--config.job=export --config.export.checkpoint=best"
    assert best["flops"] == 0
    [earlier] = offered({"late_rise": 0.1, "best_step": 36}, "study")
    assert earlier["override"] == "--config.steps=36"
    assert earlier["flops"] == STEPS * FLOPS / 2
    [seeds] = offered({"seeds_missing": 2}, "study")
    assert seeds["override"] == "--config.study.seeds=5"
    assert seeds["flops"] == 4 * 2 * STEPS * FLOPS
    [unknown] = offered({"late_fall": 0.1}, flops_per_step=None)
    assert unknown["flops"] is None


def test_nothing_takes_the_only_teacher_away():
    config = variant(teacher__cache="/cache", teacher__path="")
    run = AdviceInputs(flatten(config), STEPS, None, targets="top_k", cache_dtype="int8")
    assert advise({"ece_excess": 0.5, "forward_kl": 0.01}, run) == []


# Triggers ---------------------------------------------------------------------------------------


def interval(mean):
    return {"mean": mean, "low": None, "high": None}


def curve(arm, *points):
    return {
        "arm": arm,
        "seed": 0,
        "points": [{"step": s, "flops": None, "nll": n, "forward_kl": None} for s, n in points],
    }


def bins(*rows):
    keys = ("low", "high", "count", "confidence", "accuracy")
    return [dict(zip(keys, row, strict=True)) for row in rows]


# low, high, count, confidence, accuracy
KD_BINS = [(0, 0.5, 3, 0.4, 0.2), (0.5, 1, 1, 0.9, 0.7), (1, 1, 0, None, None)]


def report():
    classes = [
        ("teacher_wrong", 0.1),
        ("distillation_made", 0.05),
        ("capacity", 0.3),
        ("tail", 0.05),
    ]
    kind = {"low": None, "high": None, "adjusted_p": None, "tokens": 9, "effect": 0.0}
    return {
        "verdict": {
            "equal_steps": {"effect": -0.2, "label": "HELPS", "seeds": 3, "seeds_needed": 9},
            "equal_flops": {"effect": 0.03, "label": "INCONCLUSIVE", "seeds": 3, "seeds_needed": 5},
        },
        "arms": [{"arm": "kd", "nll": interval(3.5), "forward_kl": interval(0.9)}],
        "teacher": {"nll": 2.6},
        "curves": [
            curve("kd", (0, 4.0), (20, 3.8), (30, 3.6), (40, 3.5)),
            curve("kd", (0, 4.0), (20, 3.7), (30, 3.5), (40, 3.6)),
            curve("kd", (0, 4.0), (40, 3.0)),
            curve("sft", (0, 4.0), (20, 3.0), (40, 2.0)),
        ],
        "slices": {
            "margin": 0.01,
            "rows": [
                kind | {"slice": s, "comparison": c, "harmed": h}
                for s, c, h in (
                    ("label:a", "equal_steps", True),
                    ("label:a", "equal_flops", True),
                    ("label:b", "equal_steps", False),
                )
            ],
        },
        "metrics": {"kd": {"entropy_gap": interval(0.4), "nll": interval(3.5)}, "teacher": {}},
        "behaviour": {
            "models": [
                {"model": "kd", "exposure_gap": interval(0.6), "kl_data": interval(0.8)},
                {"model": "teacher", "exposure_gap": None, "kl_data": None},
            ]
        },
        "calibration": {
            "models": [
                {"model": "kd", "ece": 0.06, "bins": bins(*KD_BINS)},
                {"model": "teacher", "ece": 0.02, "bins": bins((0, 1, 8, 0.6, 0.55))},
            ]
        },
        "diagnose": {
            "classes": [
                {"class": n, "what": "", "tokens": 1, "share_of_tokens": 0.1, "share_of_kl": s}
                for n, s in classes
            ],
            "slices": [
                {"slice": "label:a", "share_of_tokens": 1.0, "share_of_kl": 1.0, "mean_kl": 1.0},
                {"slice": "frequency:1 of 10", "share_of_tokens": 0.1, "share_of_kl": 0.3},
                {"slice": "frequency:2 of 10", "share_of_tokens": 0.9, "share_of_kl": 0.7},
            ],
        },
    }  # fmt: skip


EXPECTED = {
    "effect_equal_flops": 0.03,
    "seeds_missing": 2,
    "harmed_slices": 1,
    "forward_kl": 0.9,
    "teacher_gap": 0.9,
    "entropy_gap": 0.4,
    "share_teacher_wrong": 0.2,
    "share_distillation_made": 0.1,
    "share_capacity": 0.6,
    "share_tail": 0.1,
    "rare_kl_ratio": 3.0,
    "overconfidence": 0.2 - 0.05,
    "ece_excess": 0.04,
    "exposure_share": 0.75,
    "late_fall": (0.1 - 0.1) / 2,
    "late_rise": (0.0 + 0.1) / 2,
    "best_step": (40 + 30) / 2,
}


def test_every_value_is_read_from_its_place():
    values = trigger_values(report())
    assert set(values) == set(TRIGGERS) - {"share_student_wrong"}
    assert values == pytest.approx(EXPECTED)


@pytest.mark.parametrize("part", report())
def test_a_part_that_is_absent_takes_its_values_with_it(part):
    whole = trigger_values(report())
    less = [trigger_values(report() | {part: value}) for value in (None, {})]
    less.append(trigger_values({k: v for k, v in report().items() if k != part}))
    assert less[0] == less[1] == less[2]
    assert less[0].items() <= whole.items()
    assert less[0] != whole


def test_an_empty_report_has_no_values():
    assert trigger_values({}) == {}
    assert trigger_values(report(), student="another")["effect_equal_flops"] == 0.03
    assert "late_fall" not in trigger_values(report(), student="another")


def test_behind_is_positive_whichever_side_is_better():
    measure = {"name": "arc", "unit": "share", "higher_is_better": True}
    assert trigger_values(report() | {"measure": measure})["effect_equal_flops"] == -0.03
    assert trigger_values({"measure": measure}) == {}


def test_a_curve_without_resolution_says_nothing():
    said = lambda *points: trigger_values({"curves": [curve("kd", *points)]})
    assert "late_fall" not in said((0, 4.0), (10, 3.0), (40, 2.0))
    assert "late_rise" in said((0, 4.0), (10, 3.0), (40, 2.0))
    assert said((0, 4.0), (40, 2.0)) == {}
    assert "late_fall" not in said((35, 4.0), (38, 3.0), (40, 2.0))


def test_advice_of_a_report_are_json():
    rows = offered(trigger_values(report()))
    assert names(rows) == [
        "more seeds",
        "the best step",
        "a larger student",
        "a target between student and teacher",
        "labels beside the teacher",
        "a mode-seeking divergence, for the student's own text",
        "a softer divergence, for calibration",
    ]
    json.dumps(rows, allow_nan=False)
    assert "60%" in rows[2]["why"]
