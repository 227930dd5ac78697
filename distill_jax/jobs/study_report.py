"""The report of a study: read back from the arms' workdirs, judged, and written as two files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import flatten
from distill_jax.evals.continuations import data_metrics
from distill_jax.evals.document_totals import document_groups
from distill_jax.evals.lm_eval_tasks import TaskExamples, examples_of
from distill_jax.evals.records_file import Records, read_records
from distill_jax.evals.serving import compare_serving
from distill_jax.export import directory_dtype
from distill_jax.files import read_sealed
from distill_jax.jobs.study_seal import BEHAVIOUR, EXAMPLES, SERVING, TOKENS, write_part
from distill_jax.progress import Progress, say
from distill_jax.report.charts import svg_files
from distill_jax.report.page import finite, page
from distill_jax.report.scores import example_scores, token_scores
from distill_jax.report.study import Study, study_report
from distill_jax.report.tables import study_table
from distill_jax.setup import teachers
from distill_jax.setup.cleaning import removed_json
from distill_jax.setup.evaluator import (
    Evaluator,
    Written,
    advice_inputs,
    measure_texts,
    read_written,
    text_of,
)
from distill_jax.setup.inputs import Inputs
from distill_jax.setup.measures import COLUMNS, SCORER
from distill_jax.setup.models import count, load_model
from distill_jax.setup.provenance import provenance
from distill_jax.study.arms import TREATMENT
from distill_jax.study.comparisons import Measured, judge_study
from distill_jax.study.results import Key, Measure, RunResult, StudyPlan
from distill_jax.types import Advance
from distill_jax.words import named

SAMPLES = 3  # prompts whose continuations the page shows


def write_report(
    c: ConfigDict,
    directory: Path,
    plan: StudyPlan,
    of: Mapping[str, Any],
    results: Mapping[Key, RunResult],
    evaluator: Evaluator,
    progress: Progress,
) -> bool:
    """Writes report.json and report.html of all finished runs; gives whether the student may ship.

    of: what the study's files belong to, by study_seal.of_study.
    Every process takes part in what runs a model, and decides alike.
    """
    inputs = evaluator.inputs
    say("measuring what the teacher writes, and what serving costs")
    with progress.stage("write", "compiling and writing texts of the teacher"):
        written = {"teacher": _teacher_texts(c, directory, of, evaluator).metrics}
    if evaluator.prompts is not None:
        new = c.study.new_tokens
        written["data"] = data_metrics(evaluator.prompts, new, evaluator.training)
    done = [key for key, result in results.items() if result.failed is None]
    where = {key: directory / result.workdir for key, result in results.items()}
    lines = {key: workdir.read_lines(where[key] / workdir.METRICS) for key in done}
    with progress.stage("judge", "reading the records"):
        records = {key: read_records(where[key] / TOKENS) for key in done}
        measured = _measured(plan, where, records, evaluator)
    invalid = _mismatch(inputs)
    failed = {key: result.failed for key, result in results.items() if result.failed is not None}
    if not measured[0].scores.arms and not failed:
        invalid = (
            f"no run has a value of {named(plan.measure.name)}: the runs' examples.json and"
            " tokens.parquet hold what was measured"
        )
    plan = plan._replace(measure=measured[0].measure)  # with the unit and direction of a task
    first, kd = evaluator.teachers.first, plan.by_name.get(TREATMENT)
    versions = provenance(
        inputs.mesh,
        inputs.tokenizer,
        teachers.identity(evaluator.teachers),
        {"train": inputs.training, "eval": evaluator.held_out},
    )
    with progress.stage("serve", "timing what serving costs") as stage:
        cost = _cost(c, directory, of, evaluator, where, done, stage.advance)
    with progress.stage("judge", "judging"):
        verdicts = judge_study(plan, measured, invalid=invalid, failed=failed)
    report = finite(
        study_report(
            Study(
                plan=plan,
                results=results,
                records=records,
                verdicts=verdicts,
                curves={key: [x for x in lines[key] if "eval/nll" in x] for key in done},
                written={name: row for name, row in written.items() if row},
                cost=cost,
                teacher_parameters=first and count(first.params),
                text_of=text_of(inputs.tokenizer),
                document_labels=inputs.held_out.tokenized.labels,
                config=flatten(c),
                config_diff=(directory / workdir.CONFIG_DIFF).read_text(),
                provenance=versions,
                removed=removed_json(inputs.training.removed),
                advice=kd and advice_inputs(c, evaluator, kd.steps, kd.step_flops),
                samples=_samples(directory, plan, where, done),
            )
        )
    )
    report["table"] = study_table(report)
    if jax.process_index() == 0:
        workdir.write_json(directory / workdir.PROVENANCE, versions)
        workdir.write_json(directory / workdir.REPORT, report)
        workdir.write_text(directory / workdir.PAGE, page(report))
        for name, text in svg_files(report).items():
            workdir.write_text(directory / name, text)
    say(report["table"])
    say(f"\nreport: {directory / workdir.PAGE}")
    return report["verdict"]["ships"]


def _measured(
    plan: StudyPlan, where: Mapping[Key, Path], records: Mapping[Key, Records], evaluator: Evaluator
) -> list[Measured]:
    """The scores of the registered measure, then of every other measure that has any."""
    found, groups = [], document_groups(evaluator.inputs.held_out.tokenized)
    for measure in (plan.measure, *plan.secondary):
        if measure.name in COLUMNS:
            column = COLUMNS[measure.name]
            scores = token_scores(measure, column, records, groups)
        else:
            scores = example_scores(measure, _examples(measure, where, records))
        if scores.scores.arms or measure is plan.measure:
            found.append(scores)
    return found


def _examples(
    measure: Measure, where: Mapping[Key, Path], done: Iterable[Key]
) -> dict[Key, TaskExamples]:
    """Each run's score of every example: of a task, or what the user's scorer said of a text."""
    found = {}
    for key in done:
        if measure.name == SCORER:
            texts = read_written(where[key] / BEHAVIOUR).texts
            names, prompts = tuple(map(str, range(len(texts)))), tuple(t.prompt for t in texts)
            values = np.array([text.score for text in texts], np.float64)
            found[key] = TaskExamples(SCORER, "score", True, names, prompts, values)
            continue
        path = where[key] / EXAMPLES
        rows = json.loads(path.read_text()) if path.exists() else ()
        # A task is measured by its first metric, unless the measure names another: TASK/METRIC.
        own = [
            row for row in rows if measure.name in (row["task"], f"{row['task']}/{row['metric']}")
        ]
        if own:
            found[key] = examples_of(own[0])
    return found


def _teacher_texts(
    c: ConfigDict, directory: Path, of: Mapping[str, Any], evaluator: Evaluator
) -> Written:
    """What the teacher writes, measured once per study."""
    path = directory / "teacher" / BEHAVIOUR
    if path.exists() or evaluator.teachers.first is None or evaluator.prompts is None:
        return read_written(path)
    written = measure_texts(c, evaluator.teachers.first, evaluator)
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        write_part(path, of, written.json())
    return written


def _samples(
    directory: Path, plan: StudyPlan, where: Mapping[Key, Path], done: Sequence[Key]
) -> list[dict[str, Any]]:
    """The first prompts, continued by the teacher and by each arm's first seed, and the data."""
    paths = {"teacher": directory / "teacher"}
    for arm, seed in sorted(done, key=lambda key: key[1]):
        paths.setdefault(arm, where[arm, seed])
    steps = {"teacher": 0} | {name: planned.steps for name, planned in plan.by_name.items()}
    lines: list[dict[str, Any]] = []
    for name, path in ((name, paths[name]) for name in steps if name in paths):
        texts = read_written(path / BEHAVIOUR).texts[:SAMPLES]
        if not lines:
            lines += [_sample("data", 0, text.prompt, text.reference) for text in texts]
        lines += [_sample(name, steps[name], text.prompt, text.text) for text in texts]
    return lines


def _sample(model: str, step: int, prompt: str, text: str) -> dict[str, Any]:
    return {"model": model, "step": step, "prompt": prompt, "text": text}


def _cost(
    c: ConfigDict,
    directory: Path,
    of: Mapping[str, Any],
    evaluator: Evaluator,
    where: Mapping[Key, Path],
    done: Sequence[Key],
    advance: Advance,
) -> dict | None:
    """What teacher and student cost to serve, measured once per study and price."""
    path = directory / SERVING
    price = c.study.price_per_hour or None
    known = read_sealed(path)
    if known is not None and known["price_per_hour"] == price:
        return {name: value for name, value in known.items() if name != "of"}
    students = [where[key] for key in done if key[0] == TREATMENT]
    if not students:
        return None
    student = load_model(
        c,
        str(students[0] / workdir.STUDENT),
        directory_dtype(c.export.dtype),
        c.student.shard,
        evaluator.inputs.mesh,
    )
    models = {"student": (student.model, student.params)}
    if evaluator.teachers.first is not None:
        models["teacher"] = evaluator.teachers.first.model, evaluator.teachers.first.params
    measured = compare_serving(
        models,
        prompt_tokens=c.study.prompt_tokens,
        new_tokens=c.study.new_tokens,
        price_per_hour=price,
        cache_dtype=c.model.compute_dtype,
        seed=c.seed,
        advance=advance,
    ).json()
    if jax.process_index() == 0:
        write_part(path, of, measured)
    return measured


def _mismatch(inputs: Inputs) -> str | None:
    """A reason why student and teacher do not see the same text."""
    first, tokenizer = inputs.teachers.first, inputs.tokenizer
    if first is not None and tokenizer.chat_template != first.tokenizer.chat_template:
        return (
            "student and teacher have different chat templates, so they do not see the same text:"
            " give both the same"
        )
    return None
