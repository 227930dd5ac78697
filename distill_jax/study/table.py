"""From a table, as anybody may have it, to arrays of scores.

Letters as in paired.py: P slices, R seeds, E documents.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_jax.study.paired import (
    WHOLE,
    Arm,
    Incomparable,
    Scores,
    check_numbers,
    check_same_weights,
)
from distill_jax.types import UserError

COLUMNS = ("arm", "seed", "document", "total", "weight")  # and perhaps slice, group


def name_of(value: Any) -> str:
    """An id as text: 3, 3.0 and "3" are the same, as files and data frames mix them.

    A missing one (None, NaN) is empty.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or value != value else str(value)


def names_of(column: list[Any], what: str) -> np.ndarray:
    names = np.array([name_of(value) for value in column], dtype=np.str_)
    if missing := np.count_nonzero(names == ""):
        raise Incomparable(f"the {what} is missing in {missing} rows: name it in each row")
    return names


def numbers_of(column: list[Any], what: str) -> np.ndarray:
    try:
        return np.array(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} is not a number everywhere ({error}): give numbers") from error


def columns_of(table: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The table's columns as lists of equal length."""
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise UserError(f"the table lacks the columns {missing}: give {', '.join(COLUMNS)}")
    kept = [name for name in (*COLUMNS, "slice", "group") if name in table]
    columns = {name: np.asarray(table[name], dtype=object).tolist() for name in kept}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(
            f"the table's columns differ in length ({lengths}): give one row per document"
        )
    if not columns["arm"]:
        raise Incomparable("the table has no rows: evaluate the arms")
    columns.setdefault("slice", [WHOLE] * len(columns["arm"]))
    return columns


def read_table(
    table: Mapping[str, Any], arms: tuple[str, str], teacher: str | None
) -> tuple[Scores, tuple[str, ...]]:
    """(the scores of these arms, the slices of all): other arms are not looked at.

    table: columns arm, seed, document, total, weight, and where there are such slice ("all": the
    whole document) and group. A row that is not there has no weight.
    teacher: an arm that is read too, if it is there; of it whole documents count alone.
    Raises UserError where it is no such table, Incomparable where its arms do not match.
    """
    columns = columns_of(table)
    arm_n = np.array([name_of(value) for value in columns.pop("arm")], dtype=np.str_)
    for arm in arms:
        if not np.any(arm_n == arm):
            raise Incomparable(f"the arm {arm} is missing: train and evaluate it")
    known = tuple(sorted({name_of(value) for value in columns["slice"]}))
    rows = np.flatnonzero(np.isin(arm_n, [*arms, *([teacher] if teacher else [])]))
    arm_n = arm_n[rows]
    columns = {name: [column[n] for n in rows] for name, column in columns.items()}
    slice_n, seed_n = names_of(columns["slice"], "slice"), names_of(columns["seed"], "seed")
    slices = (WHOLE, *sorted(set(slice_n.tolist()) - {WHOLE}))
    documents, e_n = np.unique(names_of(columns["document"], "document"), return_inverse=True)
    order = np.argsort(slices)
    p_n = order[np.searchsorted(slices, slice_n, sorter=order)]
    total_n, weight_n = (numbers_of(columns[name], name) for name in ("total", "weight"))
    found: dict[str, Arm] = {}
    weight_PE = np.zeros((len(slices), len(documents)))
    for arm in dict.fromkeys((*arms, *arm_n.tolist())):
        own = arm_n == arm
        seeds, r_own = np.unique(seed_n[own], return_inverse=True)
        shape = len(slices), len(seeds), len(documents)
        place = np.ravel_multi_index((p_n[own], r_own, e_n[own]), shape)
        if repeated := len(place) - len(np.unique(place)):
            raise Incomparable(
                f"{repeated} rows repeat a seed, document and slice of arm {arm}: list every "
                "document once"
            )
        total_PRE, weight_PRE = np.zeros((2, *shape))
        total_PRE.flat[place], weight_PRE.flat[place] = total_n[own], weight_n[own]
        check_numbers(weight_PRE, "weight", arm, seeds)
        if not weight_PRE[0].any():
            raise Incomparable(
                f"no document of arm {arm} has weight in slice all: its mask is empty"
            )
        if not found:
            weight_PE = weight_PRE[:, 0]
        compared = len(slices) if arm in arms else 1
        check_same_weights(weight_PRE[:compared], weight_PE, arm, arms[0], seeds, slices)
        found[arm] = Arm(tuple(seeds.tolist()), total_PRE)
    group_E = None
    if "group" in columns:
        group_E = group_of_documents(names_of(columns["group"], "group"), e_n, documents)
    return Scores(slices, weight_PE, found, tuple(documents.tolist()), group_E), known


def group_of_documents(group_n: np.ndarray, e_n: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The one group of each document."""
    group_E = np.empty(len(documents), group_n.dtype)
    group_E[e_n] = group_n
    differs = group_E[e_n] != group_n
    if differs.any():
        raise Incomparable(
            f"document {documents[e_n[differs][0]]} has two groups: give all its rows one group "
            "(a hash of its text)"
        )
    return group_E
