"""report.json of a single run."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.config import as_flags
from distill_jax.evals.likelihood import perplexity
from distill_jax.report.headline import diagnose_answer, run_answer
from distill_jax.report.page import finite
from distill_jax.report.tables import ModelRow, text_table
from distill_jax.report.taught import Taught, rollback_words

# A run alone has no arm to compare with, and its page must not suggest otherwise.
NO_VERDICT = (
    "What this cannot tell: whether distilling helped. Plain fine-tuning on the labels, for as many"
    " steps or for as many operations, may do as well."
)
UNKNOWN_START = (
    " A study compares them. It has to start from this student as it was before distilling, which"
    " is not known here: diagnose it in the workdir of its run, or give --config.job=study that"
    " start."
)
NO_TEACHER = (
    "What this cannot tell: what a teacher would add, and how far another seed would end from here."
)
SCHEMA = 1  # version of the structure that report.schema.json describes
CURVE_POINTS = 500  # lines of metrics.jsonl that a report keeps, besides the evaluations


def report_json(
    rows: Sequence[ModelRow],
    evaluation: dict[str, float],
    samples: Sequence[dict[str, Any]],
    config: dict[str, Any],
    provenance: dict[str, Any],
    *,
    kind: str = "run",
    history: Sequence[dict[str, Any]] = (),
    config_diff: str = "",
    study_command: str | None = None,
    times: Mapping[str, float] | None = None,
    taught: Taught = Taught(),  # noqa: B008
    removed: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """report.json of one training run (report.schema.json); page() makes report.html of it.

    rows: the closing table; the last is of the student that was evaluated, and a row called
    `teacher` is of its teacher. kind: run, or diagnose where nothing was trained.

    evaluation: the held-out metrics at the end, which also stand flat under their names. history:
    the lines of metrics.jsonl. study_command: what would tell whether distillation helped. times:
    seconds by part of the work. taught: from what a run's student learned. removed: what was
    removed from the text to train on, by reason.
    """
    teacher = teacher_of(rows)
    answer = run_answer(rows, taught) if kind == "run" else diagnose_answer(rows, None)
    answer = answer._replace(findings=[*answer.findings, *rollback_words(history)])
    distilled = teacher and not taught.labels_alone
    statement = NO_TEACHER if taught.labels_alone else NO_VERDICT
    if kind == "diagnose" and not study_command:
        statement += UNKNOWN_START
    absent = ("verdict", "slices", "behaviour", "calibration", "cost", "diagnose")
    return finite(
        {
            **evaluation,
            "schema": SCHEMA,
            "kind": kind,
            **answer._asdict(),
            "statement": statement,
            **({"study_command": study_command} if study_command and distilled else {}),
            **dict.fromkeys(absent),
            "arms": [],
            "teacher": teacher,
            "curves": [{"arm": "student", "seed": config.get("seed", 0), "points": points(history)}]
            if history
            else [],
            "metrics": {rows[-1].name: means(evaluation)} if evaluation else {},
            "options": [],
            "config": config,
            "config_diff": config_diff,
            "provenance": provenance,
            **({"removed": [*map(dict, removed)]} if removed else {}),
            "models": [row._asdict() | {"perplexity": perplexity(row.nll)} for row in rows],
            "samples": list(samples),
            "table": text_table(rows),
            **({"times": dict(times)} if times else {}),
        }
    )


def study_command(config: Mapping[str, Any], base: Mapping[str, Any], workdir: str) -> str:
    """The command of the study of a run's config, in a directory beside the run's, to be pasted.

    config: every key, flat; base: the same with the defaults of configs/base.py.
    """
    flags = as_flags(config | {"job": "study"}, base)
    command = ["python", "-m", "distill_jax.main", "--config=configs/base.py"]
    return shlex.join([*command, f"--workdir={workdir}-study", *flags])


def teacher_of(rows: Sequence[ModelRow]) -> dict[str, Any] | None:
    """What a run knows of its teacher; None where it has none."""
    found = [row for row in rows if row.name == "teacher"]
    return {"nll": found[0].nll, "parameters": found[0].parameters} if found else None


def means(evaluation: dict[str, float]) -> dict[str, Any]:
    """Metrics by their short names; one run gives no interval."""
    return {
        name.removeprefix("eval/"): {"mean": value, "low": None, "high": None}
        for name, value in evaluation.items()
    }


def points(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The learning curve of a run: about CURVE_POINTS lines, all evaluations and the last kept."""
    stride = max(1, len(history) // CURVE_POINTS)
    last = len(history) - 1
    return [
        {
            "step": line["step"],
            "flops": line.get("flops"),
            "nll": line.get("eval/nll"),
            "forward_kl": line.get("eval/forward_kl"),
            "loss": line.get("train/loss"),
        }
        for i, line in enumerate(history)
        if i % stride == 0 or i == last or "eval/nll" in line
    ]
