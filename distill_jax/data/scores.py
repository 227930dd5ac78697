"""Anybody's scores, example by example, as one table: a row per arm, seed, document and slice.

A source is a file, a glob, a glob with {arm} and {seed} in the place of a part of the path that
names them, or a directory of logs of lm-evaluation-harness with ARM/SEED/**/samples_*.jsonl below.

  column    other names         what it is
  arm                           what was trained, or the path's {arm}
  seed                          of the training run, or the path's {seed}
  document  doc_id, example     the same name in all arms and seeds for the same example
  total     score, value        the document's score; where it has a weight, the sum over it
  weight    count, tokens       tokens or examples that total is the sum of; absent: 1
  slice                         a part of the documents; `all`, or absent: the whole document
  group                         documents of one group (copies, one prompt) count as one
"""

import bisect
import fnmatch
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill_jax.data.lm_eval_logs import SampleLog, is_sample_log, read_sample_log, task_of
from distill_jax.data.score_columns import Rows, checked_columns
from distill_jax.data.score_files import FileTable, matching_files, read_table_file
from distill_jax.types import UserError

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


def read_scores(source: str, *, metric: str = "", task: str = "") -> ScoreTable:
    """Reads all files of a source.

    metric: of logs, NAME or NAME,FILTER, empty: the first; of tables the column to use as total.
    task: of logs, a task or a pattern such as mmlu_*; empty: all.
    Raises UserError, with file and row, for whatever is no such table.
    """
    found = matching_files(source, LOGS)
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
    rows = _joined([_picked(table, REQUIRED | {"total": total} | OPTIONAL) for table in tables])
    return ScoreTable(checked_columns(rows), tuple(path for path, _ in found))


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
    rows = _joined([_picked(_with_path(log.table, given), named) for log, given in logs])
    if len({log.task for log, _ in logs}) == 1:
        rows = rows._replace(columns={k: v for k, v in rows.columns.items() if k != "slice"})
    notes = _prompts_differ(rows)
    paths = tuple(path for path, _ in chosen)
    better = next((x.higher_is_better for x, _ in logs if x.higher_is_better is not None), None)
    return ScoreTable(checked_columns(rows), paths, first.metric, first.unit, better, notes)


def _check_alike(log: SampleLog, first: SampleLog, of_task: SampleLog) -> None:
    """Refuses scores that do not add up: other metrics, other filters of one task."""
    if log.unit != first.unit or {log.higher_is_better, first.higher_is_better} == {True, False}:
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
    read = set(zip(rows.columns["document"], rows.columns["prompt"], strict=True))
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


def _joined(tables: list[FileTable]) -> Rows:
    """One file after the other."""
    names = tables[0].columns
    for table in tables:
        if differs := sorted(set(names) ^ set(table.columns)):
            raise UserError(
                f"{tables[0].path} and {table.path} differ in the column {differs[0]}: give it in "
                "all files or in none"
            )
    ends = list(itertools.accumulate(len(table.rows) for table in tables))

    def where(i: int) -> str:
        t = bisect.bisect_right(ends, i)
        word = "line" if tables[t].path.suffix == ".jsonl" else "row"
        return f"{tables[t].path} {word} {tables[t].rows[i - ends[t]]}"

    joined = {n: list(itertools.chain(*(t.columns[n] for t in tables))) for n in names}
    return Rows(joined, where)


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
            raise UserError(
                f"{table.path} has columns {' and '.join(own)}: name one of them {name}"
            )
        if own:
            columns[name] = there[own[0]]
    mean = [name for name in ("score", "value") if name in there]
    if mean and "total" not in there and len(names["total"]) > 1 and "weight" in columns:
        raise UserError(
            f"{table.path} has a column {mean[0]} and weights: name it total if it is the sum over "
            "the weight, and multiply it by the weight before if it is the mean"
        )
    return table._replace(columns=columns)
