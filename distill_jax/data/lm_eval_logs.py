"""Scores of single examples from the logs of lm-evaluation-harness.

With --log_samples --output_path=DIR it writes DIR/MODEL/samples_TASK_TIME.jsonl, one line per
example and answer filter, and beside it results_TIME.json, which says for each metric whether
higher is better.
"""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.data.score_files import FileTable, read_json_lines
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON, parse_json, read_json_object

TIME = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)$")
# Metrics that are logged per example as log-likelihoods, alone or as [log-likelihood, words or
# bytes]; only their aggregate is the named metric. The unit, and the value of 1 nat in it.
LIKELIHOODS = {
    "perplexity": ("nats per example", 1.0),
    "word_perplexity": ("nats per word", 1.0),
    "byte_perplexity": ("nats per byte", 1.0),
    "bits_per_byte": ("bits per byte", 1 / math.log(2)),
}
# Keys of a line that are not metrics, for logs that do not list their metrics.
KEYS = {
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics"),
    *("doc_hash", "prompt_hash", "target_hash", "schema", "task_name"),
}


class SampleLog(NamedTuple):
    """One file of samples.

    table             columns document (TASK/doc_id), slice (the task), group (hash of the example),
                      prompt (hash of what the model read), total and weight.
    metric            its name and filter, as the harness writes them: exact_match,strict-match.
    unit              of a score.
    higher_is_better  as the harness says; None where there is no results file.
    """

    table: FileTable
    task: str
    metric: str
    unit: str
    higher_is_better: bool | None


def is_sample_log(path: Path) -> bool:
    """Whether the first line of a jsonl file is a sample of the harness."""
    try:
        with open(path, "rb") as file:
            first = parse_json(file.readline(MOST_JSON + 1), str(path), "")
    except (UserError, OSError):  # whoever reads the file says what is wrong
        return False
    return isinstance(first, dict) and "doc_id" in first and "resps" in first


def task_of(path: Path) -> str:
    """The task of a file of samples, from its name."""
    return TIME.sub("", path.stem).removeprefix("samples_")


def read_sample_log(path: Path, metric: str) -> SampleLog:
    """Reads the scores of one metric.

    metric: NAME or NAME,FILTER; empty: the first. Without a filter: the first filter.
    Raises UserError if the file has no such metric, or not one number per example.
    """
    numbered = read_json_lines(path)
    _, first = numbered[0]
    task, (name, _, chosen) = task_of(path), metric.partition(",")
    names = first.get("metrics") or [key for key in first if key not in KEYS]
    filters = list(dict.fromkeys(record.get("filter", "none") for _, record in numbered))
    name, chosen = name or (names or ["none"])[0], chosen or filters[0]
    if name not in names or chosen not in filters:
        there = ", ".join(f"{n},{f}" for n in names for f in filters)
        raise UserError(f"{path} has no metric {name},{chosen}: choose one of {there or 'none'}")
    numbered = [(n, record) for n, record in numbered if record.get("filter", "none") == chosen]
    unit, scale = LIKELIHOODS.get(name, (name, 1.0))
    pairs = [_total_and_weight(record, name, f"{path} line {n}") for n, record in numbered]
    records = [record for _, record in numbered]
    columns = {
        "document": [f"{task}/{record.get('doc_id')}" for record in records],
        "slice": [task] * len(records),
        "group": [_example_hash(record) for record in records],
        "prompt": [record.get("prompt_hash") for record in records],
        "total": [scale * total for total, _ in pairs],
        "weight": [weight for _, weight in pairs],
    }
    rows = [number for number, _ in numbered]
    better = False if name in LIKELIHOODS else _higher_is_better(path, task, name)
    return SampleLog(FileTable(path, columns, rows), task, f"{name},{chosen}", unit, better)


def _total_and_weight(record: dict[str, Any], name: str, where: str) -> tuple[float, float]:
    value = record.get(name)
    likelihood = name in LIKELIHOODS
    weight = 1.0
    if likelihood and isinstance(value, list) and len(value) == 2:
        value, weight = value
    if not isinstance(value, int | float) or not isinstance(weight, int | float):
        raise UserError(
            f"{where}: {name} is {str(value)[:40]!r}, not a number per example, but an aggregate: "
            "choose another metric by config.verdict.metric"
        )
    return (-value if likelihood else float(value)), float(weight)


def _example_hash(record: dict[str, Any]) -> str:
    """The harness's hash of an example, computed here for logs of older versions."""
    if "doc_hash" in record:
        return record["doc_hash"]
    text = json.dumps(record.get("doc"), indent=2, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _higher_is_better(path: Path, task: str, name: str) -> bool | None:
    time = TIME.search(path.stem)
    beside = path.with_name(f"results_{time[1]}.json") if time else None
    if beside is None or not beside.is_file():
        return None
    try:
        return read_json_object(beside)["higher_is_better"][task][name]
    except (UserError, KeyError, TypeError):
        return None
