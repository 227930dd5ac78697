"""Anybody's scores, example by example, as one table: a row per arm, seed, document and slice.

A source is a file, a glob, a glob with {arm} and {seed} in the place of a part of the path that
names them, or a directory of logs of lm-evaluation-harness, laid out as ARM/SEED/**/samples_*.jsonl.

  column    other names         what it is
  arm                           what was trained, or the path's {arm}
  seed                          of the training run, or the path's {seed}
  document  doc_id, example     the same name in all arms and seeds for the same example
  total     score, value        the document's score; where it has a weight, the sum over it
  weight    count, tokens       tokens or examples that total is the sum of; absent: 1
  slice                         a part of the documents; `all`, or absent: the whole document
  group                         documents of one group (copies, one prompt) count as one
"""

import fnmatch
import glob
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.data.lm_eval_logs import SampleLog, is_sample_log, read_sample_log, task_of
from distill_jax.data.score_files import FileTable, read_table_file
from distill_jax.types import UserError

WHOLE = "all"  # the slice that is the whole document
REQUIRED = {
    "arm": ("arm",),
    "seed": ("seed",),
    "document": ("document", "doc_id", "example"),
    "total": ("total", "score", "value"),
}
OPTIONAL = {"weight": ("weight", "count", "tokens"), "slice": ("slice",), "group": ("group",)}
WHY = {
    "arm": "name what was trained in each row, or put {arm} into the path",
    "seed": "runs with other seeds differ by chance, which a verdict has to know: name the seed of "
    "the training run in each row, or put {seed} into the path",
    "document": "name the example in each row, by the same name in all arms and seeds",
    "total": "give each row its score",
}
LOGS = "{arm}/{seed}/**/samples_*.jsonl"


class ScoreTable(NamedTuple):
    """columns: arm, seed, document, slice (texts), total, weight (float64), perhaps group (texts),
    of equal length.

    metric, unit, higher_is_better  of logs of lm-evaluation-harness, as these say; else None.
    notes                           sentences on what was found in them.
    """

    columns: dict[str, np.ndarray]
    files: tuple[Path, ...]
    metric: str | None = None
    unit: str | None = None
    higher_is_better: bool | None = None
    notes: tuple[str, ...] = ()


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


def read_scores(source: str, *, metric: str = "", task: str = "") -> ScoreTable:
    """Reads all files of a source.

    metric: of logs, NAME or NAME,FILTER, empty: the first; of tables the column to use as total.
    task: of logs, a task or a pattern such as mmlu_*; empty: all.
    Raises UserError, with file and row, for whatever is no such table.
    """
    found = list(_files(source))
    is_log = {_is_log(path) for path, _ in found}
    if len(is_log) > 1:
        raise UserError(f"{source!r} has logs of lm-evaluation-harness and tables: give one kind")
    if is_log == {True}:
        return _read_logs(found, metric, task)
    if task:
        raise UserError(
            f"config.verdict.task is {task!r}, and {found[0][0]} is no log of "
            "lm-evaluation-harness: keep the rows of that task, or use the column slice"
        )
    tables = [_with_path(read_table_file(path), given) for path, given in found]
    total = (metric,) if metric else REQUIRED["total"]
    rows = _join([_picked(table, REQUIRED | {"total": total} | OPTIONAL) for table in tables])
    return ScoreTable(_columns(rows), tuple(path for path, _ in found))


def _files(source: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Each file, with the arm and the seed that its path names."""
    if not source:
        raise UserError(
            "config.verdict.source is empty: give a csv, parquet or jsonl file, or a directory of "
            f"logs of lm-evaluation-harness, laid out as {LOGS}"
        )
    if Path(source).is_file():
        yield Path(source), {}
        return
    pattern = f"{source.rstrip('/')}/{LOGS}" if Path(source).is_dir() else source
    seen, named, wild = set(), "", ""
    for part in re.split(r"(\{\w*\}|\*\*/|\*|\?|\[[^]]+\])", pattern):
        if part in ("{arm}", "{seed}"):
            named += f"(?P={part[1:-1]})" if part in seen else f"(?P<{part[1:-1]}>[^/]+)"
            seen.add(part)
            wild += "*"
        elif re.fullmatch(r"\{\w*\}", part):
            raise UserError(f"config.verdict.source has {part}: only {{arm}} and {{seed}} are read")
        else:
            special = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
            named += special.get(part) or (part if part.startswith("[") else re.escape(part))
            wild += part
    matches = [(path, re.fullmatch(named, path)) for path in sorted(glob.glob(wild, recursive=True))]
    files = [(Path(p), m.groupdict()) for p, m in matches if m is not None and Path(p).is_file()]
    if not files:
        raise UserError(
            f"config.verdict.source: no file is {pattern}: give a csv, parquet or jsonl file, a "
            f"glob, or a directory of logs of lm-evaluation-harness, laid out as {LOGS}"
        )
    yield from files


def _is_log(path: Path) -> bool:
    return path.suffix == ".jsonl" and is_sample_log(path)


def _read_logs(found: list[tuple[Path, dict[str, str]]], metric: str, task: str) -> ScoreTable:
    tasks = sorted({task_of(path) for path, _ in found})
    chosen = [(p, given) for p, given in found if fnmatch.fnmatchcase(task_of(p), task or "*")]
    if not chosen:
        raise UserError(f"config.verdict.task is {task!r}: the logs have {', '.join(tasks)}")
    logs = [(read_sample_log(path, metric), given) for path, given in chosen]
    first = logs[0][0]
    for log, _ in logs:
        _check_alike(log, first, next(one for one, _ in logs if one.task == log.task))
    named = REQUIRED | OPTIONAL | {"prompt": ("prompt",)}
    rows = _join([_picked(_with_path(log.table, given), named) for log, given in logs])
    if len({log.task for log, _ in logs}) == 1:
        del rows.columns["slice"]
    notes = _prompts_differ(rows)
    paths = tuple(path for path, _ in chosen)
    about = first.metric, first.unit, first.higher_is_better
    return ScoreTable(_columns(rows), paths, *about, notes)


def _check_alike(log: SampleLog, first: SampleLog, of_task: SampleLog) -> None:
    """Refuses scores that do not add up: other metrics, other filters of one task."""
    if (log.unit, log.higher_is_better) != (first.unit, first.higher_is_better):
        raise UserError(
            f"{log.table.path} scores {log.metric} and {first.table.path} {first.metric}: choose "
            "one metric by config.verdict.metric, or one task by config.verdict.task"
        )
    if log.metric != of_task.metric:
        raise UserError(
            f"{log.table.path} starts with {log.metric} and {of_task.table.path} with "
            f"{of_task.metric}: choose one by config.verdict.metric"
        )


def _prompts_differ(rows: Rows) -> tuple[str, ...]:
    """A note where a task's example was not put to all models in the same words."""
    read = {pair for pair in zip(rows.columns["document"], rows.columns["prompt"], strict=True)}
    documents = set(rows.columns["document"])
    if more := len(read) - len(documents):
        return (
            f"prompts differ between runs (in {more:,} cases for {len(documents):,} examples): "
            "unless that was meant, evaluate all with the same few-shot examples and chat template",
        )
    return ()


def _with_path(table: FileTable, given: Mapping[str, str]) -> FileTable:
    """With arm and seed from the path, where the file has no such column."""
    more = {name: [text] * len(table.rows) for name, text in given.items()}
    return table._replace(columns=more | table.columns)


def _picked(table: FileTable, names: Mapping[str, tuple[str, ...]]) -> FileTable:
    """The columns that count, by their first name of `names`."""
    columns, there = {}, table.columns
    for name, aliases in names.items():
        own = [alias for alias in aliases if alias in there]
        if not own and name in REQUIRED:
            looked = " or ".join(aliases)
            raise UserError(
                f"{table.path} has no column {looked} (its columns: {', '.join(there)}): "
                f"{WHY[name]}"
            )
        if len(own) > 1 and own[0] != name:
            raise UserError(f"{table.path} has columns {' and '.join(own)}: name one of them {name}")
        if own:
            columns[name] = there[own[0]]
    if "score" in there and "total" not in there and "weight" in columns:
        raise UserError(
            f"{table.path} has the columns score and weight: name the score total if it is the sum "
            "over the weight, and multiply it by the weight before if it is the mean"
        )
    return table._replace(columns=columns)


def _join(tables: list[FileTable]) -> Rows:
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


def _columns(rows: Rows) -> dict[str, np.ndarray]:
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
    except (TypeError, ValueError):
        found = np.array([_number(value) for value in values], np.float64)
    bad = np.flatnonzero(~np.isfinite(found))
    if len(bad):
        i = int(bad[0])
        raise UserError(
            f"{rows.where(i)}: {name} is {str(values[i])[:40]!r}: give a finite number, with a "
            "point before its decimals, and leave out runs that broke down"
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
        place = np.unique(place * len(names[name].distinct) + names[name].code, return_inverse=True)[1]
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
