"""Rows of scores, checked: names as texts, numbers that are finite, each document once.

The one place that checks rows, of files and of tables in memory (study/table.py) alike.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distill_jax.types import UserError

WHOLE = "all"  # the slice that is the whole document
Names = tuple[np.ndarray, np.ndarray]  # the distinct ones, and which of them each row has
LARGEST = 1e100  # of a number: sums of squares of larger ones may be none
LEAST = 1e-20  # of a weight above 0, which totals are divided by
NAMES = ("arm", "seed", "document", "slice", "group")


class Rows(NamedTuple):
    """Columns of equal length as they were found. where: what to call a row, by its place."""

    columns: Mapping[str, Sequence[Any]]
    where: Callable[[int], str]


def checked_columns(rows: Rows) -> dict[str, np.ndarray]:
    """arm, seed, document, slice and perhaps group (texts), total and weight (float64).

    There is a row of slice `all` for every document. Raises UserError with the first bad row.
    """
    count = len(rows.columns["arm"])
    absent = {"weight": [1.0] * count, "slice": [WHOLE] * count}
    rows = rows._replace(columns=absent | dict(rows.columns))
    number = {name: _numbers(rows, name) for name in ("total", "weight")}
    weight = number["weight"]
    if (bad := (weight < LEAST) & (weight != 0)).any():
        i = int(np.argmax(bad))
        raise UserError(
            f"{rows.where(i)}: weight is {weight[i]:g}: give the number of tokens or "
            f"examples in the document, 0 or from {LEAST:g} on"
        )
    names = {name: _names(rows, name) for name in NAMES if name in rows.columns}
    has_whole = WHOLE in names["slice"][0]
    key = ("arm", "seed", "document", "slice")
    _check_once(rows, names, key if has_whole else key[:-1])
    columns = {name: distinct[code] for name, (distinct, code) in names.items()} | number
    if has_whole:
        return columns
    whole = columns | {"slice": np.full(count, WHOLE, object)}
    return {name: np.concatenate([whole[name], columns[name]]) for name in columns}


def _numbers(rows: Rows, name: str) -> np.ndarray:
    values = rows.columns[name]
    try:
        found = np.array(values, np.float64)
        if found.ndim > 1:
            raise ValueError("lists of numbers")
    except (TypeError, ValueError, OverflowError):
        found = np.array([_number(value) for value in values], np.float64)
    if (bad := ~(np.abs(found) <= LARGEST)).any():
        i = int(np.argmax(bad))
        if np.isfinite(found[i]):
            raise UserError(
                f"{rows.where(i)}: {name} is {found[i]:g}: give a number from {-LARGEST:g} to"
                f" {LARGEST:g}"
            )
        why = "with a point before its decimals"
        if not isinstance(values[i], str):
            why = "and train a run again that broke down"
        raise UserError(
            f"{rows.where(i)}: {name} is {str(values[i])[:40]!r}: give a finite number, {why}"
        )
    return found


def _number(value: Any) -> float:
    """NaN for what is no number; right or wrong are 1 and 0."""
    try:
        return float({"true": 1, "false": 0}.get(str(value).lower(), value))
    except (TypeError, ValueError):
        return float("nan")
    except OverflowError:  # a whole number of over 308 digits
        return float("inf")


def text_of(value: Any) -> str:
    """A name as text: 1, 1.0 and "1" are the same, as files and data frames mix them.

    A missing one (None, NaN) is empty.
    """
    if value is None or value != value:
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())


def _names(rows: Rows, name: str) -> Names:
    """A column as names. Raises UserError for a row without one."""
    values = rows.columns[name]
    try:
        text = {value: text_of(value) for value in dict.fromkeys(values)}
    except TypeError:
        i = next(i for i, value in enumerate(values) if isinstance(value, list | dict))
        raise UserError(
            f"{rows.where(i)}: {name} is a {type(values[i]).__name__}: give a text or a number"
        ) from None
    number = {name: i for i, name in enumerate(dict.fromkeys(text.values()))}
    code_of = {value: number[name] for value, name in text.items()}
    code = np.fromiter((code_of[value] for value in values), np.int64, len(values))
    if "" in number:
        i = int(np.argmax(code == number[""]))
        raise UserError(f"{rows.where(i)}: {name} is empty: name it in each row")
    return np.array(list(number), object), code


def _check_once(rows: Rows, names: Mapping[str, Names], key: tuple[str, ...]) -> None:
    """Refuses two rows of one arm, seed and document (and slice)."""
    codes, sizes = zip(*((names[name][1], len(names[name][0])) for name in key), strict=True)
    place = np.ravel_multi_index(codes, sizes)
    _, first, inverse = np.unique(place, return_index=True, return_inverse=True)
    before = first[inverse]
    again = np.flatnonzero(before != np.arange(len(before)))
    if not len(again):
        return
    i = int(again[0])
    what = ", ".join(f"{name} {names[name][0][names[name][1][i]]}" for name in key)
    slice_n = names["slice"][1]
    remedy = (
        "list it once; samples of one prompt are documents of their own, with the prompt as group"
        if slice_n[i] == slice_n[before[i]]
        else f"add rows of slice {WHOLE}, which hold the whole document"
    )
    raise UserError(f"{rows.where(i)} repeats {rows.where(int(before[i]))} ({what}): {remedy}")
