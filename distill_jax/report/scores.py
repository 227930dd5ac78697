"""From what the runs of a study left behind to the scores that its verdict compares."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from distill_jax.evals.records_file import Records
from distill_jax.evals.slices import TEACHER_NLL, slice_masks
from distill_jax.study.comparisons import Measured
from distill_jax.study.paired import Arm, Scores
from distill_jax.study.results import Key, Measure


class Examples(NamedTuple):
    """One run's score of each example: of a task, or of what a user's scorer says of a text.

    groups: equal for examples that are one piece of evidence, such as the same prompt.
    """

    ids: tuple[str, ...]
    groups: tuple[str, ...]
    values: tuple[float, ...]


def token_scores(
    measure: Measure, column: str, records: Mapping[Key, Records], group_E: np.ndarray
) -> Measured:
    """Totals of a column of the per-token records, by document and slice.

    group_E: what identifies the text of each held-out document. Arms on other tokens than the
    first run are left out. Slices are those of the first run: the teacher's entropy at a border may
    round differently in another program.
    """
    first = next(iter(records.values()))
    document_n = first.columns["document"]
    documents, place_n = np.unique(document_n, return_inverse=True)
    masks = slice_masks(first)
    sums = lambda value_n: np.stack(
        [np.bincount(place_n[m], value_n[m], len(documents)) for m in masks.values()]
    )
    weight_PE = sums(np.ones(len(place_n)))
    totals: dict[str, dict[str, np.ndarray]] = {}
    left_out: dict[str, str] = {}
    for (arm, seed), own in records.items():
        if not _same_tokens(own, first):
            left_out[arm] = (
                f"{arm} seed {seed} was measured on other tokens than the first run: its tokenizer"
                " or windows differ, so that nothing can be paired"
            )
        elif column in own.columns:
            value_n = own.columns[column].astype(np.float64)
            totals.setdefault(arm, {})[str(seed)] = sums(value_n)
    arms = {
        name: Arm(tuple(by_seed), np.stack(list(by_seed.values()), axis=1))
        for name, by_seed in totals.items()
        if name not in left_out
    }
    names = tuple(str(document) for document in documents.tolist())
    scores = Scores(tuple(masks), weight_PE, arms, names, group_E[documents])
    teacher_E = None
    if column == "nll" and TEACHER_NLL in first.columns:
        teacher_E = sums(first.columns[TEACHER_NLL].astype(np.float64))[0]
    return Measured(measure, scores, teacher_E, left_out)


def example_scores(measure: Measure, examples: Mapping[Key, Examples]) -> Measured:
    """One score of weight 1 per example; runs on other examples than the first are left out."""
    first = next(iter(examples.values()))
    values: dict[str, dict[str, np.ndarray]] = {}
    left_out: dict[str, str] = {}
    for (arm, seed), own in examples.items():
        if own.ids != first.ids or own.groups != first.groups:
            left_out[arm] = f"{arm} seed {seed} answered other examples than the first run"
        values.setdefault(arm, {})[str(seed)] = np.array(own.values, np.float64)[None]
    arms = {
        name: Arm(tuple(by_seed), np.stack(list(by_seed.values()), axis=1))
        for name, by_seed in values.items()
        if name not in left_out
    }
    weight_PE = np.ones((1, len(first.ids)))
    scores = Scores(("all",), weight_PE, arms, first.ids, np.array(first.groups))
    return Measured(measure, scores, None, left_out)


def _same_tokens(a: Records, b: Records) -> bool:
    names = ("document", "position", "token")
    return all(np.array_equal(a.columns[name], b.columns[name]) for name in names)
