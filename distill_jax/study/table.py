"""From a table, as anybody may have it, to arrays of scores.

Letters as in paired.py: P slices, R seeds, E documents. n: rows of the table.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.data.score_columns import WHOLE, Rows, checked_columns, text_of
from distill_jax.study.paired import (
    Arm,
    Incomparable,
    Scores,
    check_same_weights,
    check_some_weight,
)
from distill_jax.types import UserError

COLUMNS = ("arm", "seed", "document", "total", "weight")  # and perhaps slice, group


def read_table(
    table: Mapping[str, Any], arms: tuple[str, str], teacher: str | None
) -> tuple[Scores, tuple[str, ...]]:
    """(the scores of these arms, the slices of all): other arms are not looked at.

    table: columns arm, seed, document, total, weight, and where there are such slice ("all": the
    whole document) and group. A row that is not there has no weight.
    teacher: an arm that is read too, if it is there; of it whole documents count alone.
    Raises UserError where it is no such table, Incomparable where a row or the arms do not fit.
    """
    columns, known = _rows_of_arms(table, (*arms, *([teacher] if teacher else [])))
    slices = (WHOLE, *sorted(set(columns["slice"]) - {WHOLE}))
    place = {name: p for p, name in enumerate(slices)}
    p_n = np.array([place[name] for name in columns["slice"]], np.int64)
    documents, e_n = np.unique(columns["document"].astype(np.str_), return_inverse=True)
    found: dict[str, Arm] = {}
    weights: dict[str, np.ndarray] = {}
    present = set(columns["arm"])
    for arm in (name for name in dict.fromkeys((*arms, *columns["arm"])) if name in present):
        own = columns["arm"] == arm
        seeds, r_own = np.unique(columns["seed"][own].astype(np.str_), return_inverse=True)
        total_PRE, weight_PRE = np.zeros((2, len(slices), len(seeds), len(documents)))
        at = p_n[own], r_own, e_n[own]
        total_PRE[at], weight_PRE[at] = columns["total"][own], columns["weight"][own]
        check_some_weight(weight_PRE[0], arm)
        found[arm], weights[arm] = Arm(tuple(seeds.tolist()), total_PRE), weight_PRE
    runs = [weights[arm] for arm in arms if arm in found]
    every_PRE = np.concatenate(runs or [np.zeros((len(slices), 1, len(documents)))], axis=1)
    weight_PE = np.sort(every_PRE, axis=1)[:, every_PRE.shape[1] // 2]  # that of most runs
    for arm, weight_PRE in weights.items():
        compared = weight_PRE if arm in arms else weight_PRE[:1]
        check_same_weights(compared, weight_PE, arm, found[arm].seeds, slices, documents)
    group_E = None
    if "group" in columns:
        group_n = columns["group"].astype(np.str_)
        group_E = np.empty(len(documents), group_n.dtype)
        group_E[e_n] = group_n
        if (differs := group_E[e_n] != group_n).any():
            raise Incomparable(
                f"document {documents[e_n[differs][0]]} has two groups: give all its rows one "
                "group (a hash of its text)"
            )
    return Scores(slices, weight_PE, found, tuple(documents.tolist()), group_E), known


def _rows_of_arms(
    table: Mapping[str, Any], arms: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """(the checked columns of these arms, the slices of all)."""
    if missing := [name for name in COLUMNS if name not in table]:
        raise UserError(f"the table lacks the columns {missing}: give {', '.join(COLUMNS)}")
    kept = [name for name in (*COLUMNS, "slice", "group") if name in table]
    columns = {name: np.asarray(table[name], dtype=object) for name in kept}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"the table's columns differ in length ({lengths}): give one row per document"
        )
    arm_n = np.array([text_of(value) for value in columns["arm"]], np.str_)
    if not len(arm_n):
        raise Incomparable("the table has no rows: evaluate the arms")
    known = tuple(sorted({text_of(value) for value in columns.get("slice", ())} - {""}))
    rows = np.flatnonzero(np.isin(arm_n, arms))
    where = lambda i: f"row {rows[i] + 1} of the table"
    chosen = {name: column[rows].tolist() for name, column in columns.items()}
    try:
        return checked_columns(Rows(chosen, where)), known
    except UserError as error:
        raise Incomparable(str(error)) from error
