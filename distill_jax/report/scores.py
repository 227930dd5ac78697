"""From what the runs of a study left behind to the scores that its verdict compares."""

from collections.abc import Mapping

import numpy as np

from distill_jax.data.score_columns import WHOLE
from distill_jax.evals.bounds import bounds_of, of_difference
from distill_jax.evals.document_totals import document_totals
from distill_jax.evals.lm_eval_tasks import TaskExamples
from distill_jax.evals.records_file import Records
from distill_jax.study.arms import TREATMENT
from distill_jax.study.comparisons import Measured
from distill_jax.study.paired import Arm, Scores
from distill_jax.study.results import Key, Measure


def token_scores(
    measure: Measure, column: str, records: Mapping[Key, Records], groups: np.ndarray
) -> Measured:
    """Totals of a column of the per-token records by document and slice; no arms without it.

    groups: what copies of a held-out document have in common. Arms on other tokens than kd are
    left out, with the reason.
    """
    having = {key: own for key, own in records.items() if column in own.columns}
    if not having:
        return Measured(measure, Scores((WHOLE,), np.zeros((1, 0)), {}))
    totals = document_totals(having, column)
    first = next(iter(totals.arms.values()))
    weight_PE = totals.arms.get(TREATMENT, first).weight_PRE[:, 0]
    arms, left_out = {}, {}
    for name, arm in totals.arms.items():
        other_R = [
            not np.array_equal(one_PE, weight_PE) for one_PE in arm.weight_PRE.swapaxes(0, 1)
        ]
        if any(other_R):
            left_out[name] = (
                f"{name} seed {arm.seeds[other_R.index(True)]} was measured on other tokens than"
                " kd: its tokenizer, windows or text differ, so nothing can be paired"
            )
        else:
            arms[name] = Arm(arm.seeds, arm.total_PRE)
    names = tuple(str(document) for document in totals.documents.tolist())
    scores = Scores(totals.slices, weight_PE, arms, names, groups[totals.documents])
    return Measured(measure, scores, totals.teacher_E, left_out)


def example_scores(measure: Measure, examples: Mapping[Key, TaskExamples]) -> Measured:
    """A score of weight 1 for each example; arms on other examples than the first are left out."""
    first = next(iter(examples.values()), None)
    if first is None:
        return Measured(measure, Scores((WHOLE,), np.zeros((1, 0)), {}))
    measure = measure._replace(
        unit=f"{first.metric} per example", higher_is_better=first.higher_is_better
    )
    values: dict[str, dict[str, np.ndarray]] = {}
    left_out: dict[str, str] = {}
    for (arm, seed), own in examples.items():
        if (own.ids, own.groups) != (first.ids, first.groups):
            left_out[arm] = f"{arm} seed {seed} answered other examples than the first run"
        values.setdefault(arm, {})[str(seed)] = np.asarray(own.values, np.float64)[None]
    arms = {
        name: Arm(tuple(by_seed), np.stack(list(by_seed.values()), axis=1))
        for name, by_seed in values.items()
        if name not in left_out
    }
    weight_PE, groups = np.ones((1, len(first.ids))), np.array(first.groups, np.str_)
    scores = Scores((WHOLE,), weight_PE, arms, first.ids, groups)
    _, furthest = of_difference(bounds_of(f"{first.task}/{first.metric}"))
    return Measured(measure, scores, None, left_out, furthest)
