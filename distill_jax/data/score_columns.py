"""Rows of scores, checked: names as texts, numbers that are finite, each document once."""

import itertools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from distill_jax.data.score_files import FileTable
from distill_jax.types import UserError

WHOLE = "all"  # the slice that is the whole document


class Rows(NamedTuple):
    """Values of all files, one after the other."""

    tables: list[FileTable]
    columns: dict[str, list[Any]]

    def where(self, i: int) -> str:
        """File and number of a row."""
        for table in self.tables:
            if i < len(table.rows):
                word = "line" if table.path.suffix == ".jsonl" else "row"
                return f"{table.path} {word} {table.rows[i]}"
            i -= len(table.rows)
        raise IndexError(i)


class Names(NamedTuple):
    """A column of names: the distinct ones, and which of them each row has."""

    distinct: np.ndarray
    code: np.ndarray

    def texts(self) -> np.ndarray:
        return self.distinct[self.code]


def join(tables: list[FileTable]) -> Rows:
    """One file after the other."""
    names = tables[0].columns
    for table in tables:
        if differs := sorted(set(names) ^ set(table.columns)):
            raise UserError(
                f"{tables[0].path} and {table.path} differ in the column {differs[0]}: give it in "
                "all files or in none"
            )
    joined = {n: list(itertools.chain(*(t.columns[n] for t in tables))) for n in names}
    return Rows(tables, joined)


def checked_columns(rows: Rows) -> dict[str, np.ndarray]:
    """The checked columns as arrays, with a row of slice `all` for every document."""
    count = len(rows.columns["arm"])
    ones = [1.0] * count
    rows = rows._replace(columns={"weight": ones, "slice": [WHOLE] * count} | rows.columns)
    number = {name: _numbers(rows, name) for name in ("total", "weight")}
    negative = np.flatnonzero(number["weight"] < 0)
    if len(negative):
        i = int(negative[0])
        raise UserError(
            f"{rows.where(i)}: weight is {number['weight'][i]:g}: give the number of tokens or "
            "examples in the document, 0 or more"
        )
    texts = [n for n in ("arm", "seed", "document", "slice", "group") if n in rows.columns]
    names = {name: _names(rows, name) for name in texts}
    _check_once(rows, names, ("arm", "seed", "document", "slice"))
    columns = {name: column.texts() for name, column in names.items()} | number
    if WHOLE in names["slice"].distinct:
        return columns
    _check_once(rows, names, ("arm", "seed", "document"))
    whole = columns | {"slice": np.full(count, WHOLE, object)}
    return {name: np.concatenate([whole[name], columns[name]]) for name in columns}


def _numbers(rows: Rows, name: str) -> np.ndarray:
    values = rows.columns[name]
    try:
        found = np.array(values, np.float64)
        if found.ndim > 1:
            raise ValueError("lists of numbers")
    except (TypeError, ValueError):
        found = np.array([_number(value) for value in values], np.float64)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        i = int(bad[0])
        raise UserError(
            f"{rows.where(i)}: {name} is {str(values[i])[:40]!r}: give a finite number, with a "
            "point before its decimals"
        )
    return found


def _number(value: Any) -> float:
    """NaN for what is no number; right or wrong are 1 and 0."""
    try:
        return float({"true": 1, "false": 0}.get(str(value).lower(), value))
    except (TypeError, ValueError):
        return float("nan")


def _names(rows: Rows, name: str) -> Names:
    """Names as texts: 1, 1.0 and "1" are the same, as files and data frames mix them."""
    values = rows.columns[name]
    try:
        text = {value: _text(value) for value in dict.fromkeys(values)}
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
    return Names(np.array(list(number), object), code)


def _text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())


def _check_once(rows: Rows, names: Mapping[str, Names], key: tuple[str, ...]) -> None:
    """Refuses two rows of one arm, seed and document (and slice)."""
    place = np.zeros(len(names["arm"].code), np.int64)
    for name in key:
        place = np.unique(
            place * len(names[name].distinct) + names[name].code, return_inverse=True
        )[1]
    order = np.argsort(place, kind="stable")
    again = np.flatnonzero(place[order][1:] == place[order][:-1])
    if not len(again):
        return
    n = again[np.argmin(order[again + 1])]
    before, i = int(order[n]), int(order[n + 1])
    what = ", ".join(f"{name} {names[name].texts()[i]}" for name in key)
    remedy = (
        "list it once; samples of one prompt are documents of their own, with the prompt as group"
        if "slice" in key
        else f"add rows of slice {WHOLE}, which hold the whole document"
    )
    raise UserError(f"{rows.where(i)} repeats {rows.where(before)} ({what}): {remedy}")
