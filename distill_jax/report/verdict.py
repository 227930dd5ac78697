"""report.json and report.html of a verdict on anybody's scores (verdict.schema.json)."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distill_jax.data.score_columns import WHOLE
from distill_jax.progress import table
from distill_jax.report import charts
from distill_jax.report.headline import verdict_headline
from distill_jax.report.page import finite, render
from distill_jax.study.slice_harm import SliceEffect
from distill_jax.study.verdict import Verdict, ships
from distill_jax.words import labelled

SCHEMA = 1  # version of the structure that verdict.schema.json describes


def slice_dict(row: SliceEffect) -> dict[str, Any]:
    """A slice's row of the forest plot as JSON takes it."""
    values = row._asdict()
    values["low"], values["high"] = values.pop("interval")
    return values


def verdict_dict(v: Verdict) -> dict[str, Any]:
    """The verdict as JSON takes it, without the rows of its slices."""
    values = v._asdict() | {"warnings": list(v.warnings)}
    values["low"], values["high"] = values.pop("interval")
    values["detectable_low"], values["detectable_high"] = values.pop("minimum_detectable_range")
    kept = ("slice", "effect", "low", "high", "adjusted_p")
    values["failures"] = [{name: slice_dict(f)[name] for name in kept} for f in v.failures]
    del values["slices"]
    return values


def verdict_report(
    main: Verdict,
    others: Sequence[Verdict],
    columns: Mapping[str, np.ndarray],
    *,
    notes: Sequence[str],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """All numbers of one verdict.

    others: further arms, against the treatment. columns: the scores.
    """
    arms, seeds = run_means(columns, (main.treatment, main.baseline))
    for row in seeds:
        pair = row["means"].get(main.treatment), row["means"].get(main.baseline)
        row["difference"] = None if None in pair else pair[0] - pair[1]
    direction = "higher" if main.higher_is_better else "lower"
    return finite(
        {
            "schema": SCHEMA,
            "kind": "verdict",
            "headline": verdict_headline(verdict_dict(main), ships(main, None)),
            "statement": f"{main.treatment} against {main.baseline} in {main.unit}, where "
            f"{direction} is better.",
            "ships": ships(main, None),
            "verdict": verdict_dict(main),
            "comparisons": [verdict_dict(other) for other in others],
            "arms": arms,
            "seeds": seeds,
            "slices": [slice_dict(row) for row in main.slices],
            "notes": list(notes),
            "config": dict(config),
            "provenance": dict(provenance),
        }
    )


def run_means(
    columns: Mapping[str, np.ndarray], first: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(arms, seeds): how much there is of each arm; and its mean of whole documents in each seed.

    The arms of `first` come first.
    """
    whole = columns["slice"] == WHOLE
    arm_n, seed_n, total_n, weight_n = (
        columns[name][whole] for name in ("arm", "seed", "total", "weight")
    )
    present = set(arm_n)
    arms = [arm for arm in dict.fromkeys((*first, *sorted(present))) if arm in present]
    seeds = sorted(set(seed_n), key=lambda seed: (not seed.isdigit(), len(seed), seed))
    place = {key: (arm_n == key[0]) & (seed_n == key[1]) for key in itertools.product(arms, seeds)}
    rows = {key: np.flatnonzero(own_n) for key, own_n in place.items() if own_n.any()}
    about = []
    for arm in arms:
        own = [found for (of, _), found in rows.items() if of == arm]
        mean = _mean(total_n, weight_n, np.concatenate(own))
        documents = max(len(found) for found in own)
        about.append({"arm": arm, "seeds": len(own), "documents": documents, "mean": mean})
    mean_of = lambda seed: {
        arm: _mean(total_n, weight_n, rows[arm, seed]) for arm in arms if (arm, seed) in rows
    }
    return about, [{"seed": seed, "means": mean_of(seed)} for seed in seeds]


def _mean(total_n: np.ndarray, weight_n: np.ndarray, rows: np.ndarray) -> float | None:
    weight = weight_n[rows].sum()
    return float(total_n[rows].sum() / weight) if weight else None


def verdict_page(report: dict[str, Any]) -> str:
    """report.html, from the numbers of report.json."""
    one = report["verdict"]
    whiskers = charts.whiskers_of(report["slices"], one)
    return render("scores.html.j2", report, drawing=charts.verdict(one), whiskers=whiskers)


def verdict_text(report: dict[str, Any]) -> str:
    """The same for a terminal: means by seed, the verdict, its warnings, the other arms."""
    number = lambda value: "-" if value is None else f"{value:.4g}"
    names = [arm["arm"] for arm in report["arms"]]
    one = report["verdict"]
    rows = [
        [row["seed"], *(number(row["means"].get(name)) for name in names),
         number(row["difference"])]
        for row in report["seeds"]
    ]  # fmt: skip
    rows.append(["all", *(number(arm["mean"]) for arm in report["arms"]), number(one["effect"])])
    header = ["seed", *names, f"{one['treatment']} - {one['baseline']}"]
    lines = [table(header, rows), "", f"{labelled(one['label'])}. {one['reason']}"]
    lines += [f"warning: {text}" for text in (*one["warnings"], *report["notes"])]
    lines += [
        f"{other['treatment']} against {other['baseline']}: {labelled(other['label'])}."
        f" {other['reason']}"
        for other in report["comparisons"]
    ]
    return "\n".join([*lines, f"fit to ship: {'yes' if report['ships'] else 'no'}"])
