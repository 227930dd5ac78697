"""The job verdict: did it help, from scores that anybody measured; no model is loaded."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from distill_jax import __version__, workdir
from distill_jax.config import choose, flatten
from distill_jax.data.scores import ScoreTable, read_scores
from distill_jax.evals.bounds import bounds_of, of_difference
from distill_jax.progress import Progress, say
from distill_jax.report.verdict import verdict_page, verdict_report, verdict_text
from distill_jax.seals import sha256_of
from distill_jax.setup.owner import claim
from distill_jax.study.rules import NLL, Rules
from distill_jax.study.verdict import TEACHER, Verdict, comparison, judge_all, verdict
from distill_jax.types import Forbidden, UserError
from distill_jax.words import plural

OF_STUDY = ("study.confidence", "study.gate")  # keys that count here, too
PACKAGES = ("numpy", "scipy", "pyarrow")


def verdict_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Reads config.verdict.source, judges, and writes the report.

    Raises Forbidden where config.study.gate is set and the verdict forbids shipping.
    """
    v = c.verdict
    with progress.stage("load", "reading the scores"):
        scores = read_scores(v.source, metric=v.metric, task=v.task)
    arms = sorted(set(scores.columns["arm"]))
    for key in ("treatment", "baseline"):
        if v[key] not in arms:
            choose(f"verdict.{key}", v[key], arms)
    rules = _rules(c, scores)
    say(
        f"{plural(len(scores.files), 'file')}; {rules.unit}, "
        f"{'higher' if rules.higher_is_better else 'lower'} is better; arms {', '.join(arms)}"
    )
    names = {"treatment": v.treatment, "baseline": v.baseline}
    main = verdict(scores.columns, **names, **rules._asdict())
    others = [arm for arm in arms if arm not in (v.treatment, v.baseline, TEACHER)]
    report = verdict_report(
        main,
        _against_treatment(scores.columns, others, v.treatment, rules),
        scores.columns,
        notes=scores.notes,
        config=_resolved(c, rules),
        provenance=_provenance(scores),
    )
    if jax.process_index() == 0:
        claim(c, directory)
        workdir.write_json(directory / workdir.REPORT, report)
        workdir.write_text(directory / workdir.PAGE, verdict_page(report))
    say(verdict_text(report))
    say(f"\nreport: {directory / workdir.PAGE}")
    if c.study.gate and not report["ships"]:
        raise Forbidden(f"the verdict forbids shipping: see {directory / workdir.PAGE}")


def _resolved(c: ConfigDict, rules: Rules) -> dict[str, Any]:
    """The keys that count here, with what was taken where one was left to the scores."""
    own = {k: x for k, x in flatten(c).items() if k.startswith("verdict.") or k in OF_STUDY}
    taken = ("margin", "slice_margin", "unit", "higher_is_better")
    return own | {f"verdict.{name}": getattr(rules, name) for name in taken}


def _rules(c: ConfigDict, scores: ScoreTable) -> Rules:
    """Margins and the direction: in another unit than that of a study all have to be given."""
    v = c.verdict
    said = choose("verdict.higher_is_better", v.higher_is_better.lower(), ("", "true", "false"))
    higher = {"": None, "true": True, "false": False}[said]
    unit = v.unit or scores.unit or v.metric or ("score" if higher else NLL)
    if scores.higher_is_better is not None:
        if higher not in (None, scores.higher_is_better):
            raise UserError(
                f"config.verdict.higher_is_better is {said}, and the logs say the contrary of "
                f"{scores.metric}: leave it out"
            )
        higher = scores.higher_is_better
    if unit == NLL:
        _check_likelihoods(scores, higher)
        higher = False
    if higher is None:
        raise UserError(
            f"config.verdict.higher_is_better is empty: say whether a higher {unit} is better "
            "(true) or worse (false)"
        )
    margin = slice_margin = _margin(v.margin, "margin", unit, c.study.margin)
    if len(set(scores.columns["slice"])) > 1:  # else it is not used
        slice_margin = _margin(v.slice_margin, "slice_margin", unit, c.study.slice_margin)
    # What logs call acc is a share; of a table's column only its user knows.
    _, furthest = of_difference(bounds_of(f"task/{scores.metric}"))
    return Rules(
        margin, slice_margin, c.study.confidence, v.minimum_seeds, higher, unit, v.look or None,
        furthest=furthest,
    )  # fmt: skip


def _margin(given: float, name: str, unit: str, of_study: float) -> float:
    if given >= 0:
        return given
    if unit != NLL:
        what = "difference" if name == "margin" else "harm to a slice"
        raise UserError(
            f"config.verdict.{name} is not given: decide on the smallest {what} in {unit} that "
            "matters, best before looking at the scores"
        )
    return of_study


def _check_likelihoods(scores: ScoreTable, higher: bool | None) -> None:
    if higher:
        raise UserError(
            f"config.verdict.higher_is_better is true, and {NLL} are better lower: name the unit "
            "of your scores by config.verdict.unit"
        )
    if np.isin(scores.columns["total"], (0.0, 1.0)).all():
        raise UserError(
            f"every total is 0 or 1, which are no {NLL}: set config.verdict.unit=accuracy, "
            "config.verdict.higher_is_better=true and config.verdict.margin"
        )


def _against_treatment(
    columns: dict[str, np.ndarray], others: list[str], treatment: str, rules: Rules
) -> tuple[Verdict, ...]:
    """Further arms, each against the treatment, with Holm over them."""
    return judge_all([comparison(columns, arm, treatment, rules) for arm in others])


def _provenance(scores: ScoreTable) -> dict[str, Any]:
    """Versions, and the sha256 of every file."""
    return {
        "distill_jax": __version__,
        "python": platform.python_version(),
        **{f"package.{name}": metadata.version(name) for name in PACKAGES},
        "files": {str(f): sha256_of(f) for f in scores.files},
    }
