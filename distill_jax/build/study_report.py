"""The report of a study: read back from the arms' workdirs, judged, and written as two files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.build import teachers
from distill_jax.build.inputs import Inputs
from distill_jax.build.measure import BEHAVIOUR, TOKENS, Judge, measure_texts
from distill_jax.build.models import count, load_model
from distill_jax.build.provenance import provenance
from distill_jax.config import flatten
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.evals.records_file import read_records
from distill_jax.study.arms import TREATMENT
from distill_jax.study.assemble import Study, study_report
from distill_jax.study.behaviour import data_metrics
from distill_jax.study.charts import svg_files
from distill_jax.study.page import finite, page
from distill_jax.study.report import study_table
from distill_jax.study.serving import compare_serving

SERVING = "serving.json"
SAMPLES = 3  # prompts whose continuations the page shows


def write_report(
    c: ConfigDict,
    directory: Path,
    plan: dict[str, Any],
    results: dict,
    judge: Judge,
    inputs: Inputs,
) -> Iterator[str]:
    """Writes report.json and report.html of all finished runs.

    results: by (arm, seed). Yields lines a person reads and returns whether the verdict allows
    shipping. Every process takes part in what runs a model, and decides alike.
    """
    yield "measuring what the teacher writes, and what serving costs"
    written = {"teacher": _teacher_texts(c, directory, judge), "data": _data_texts(c, judge)}
    done = {key: result for key, result in results.items() if "failed" not in result}
    where = {key: directory / result["workdir"] for key, result in results.items()}
    lines = {key: workdir.read_lines(path / workdir.METRICS) for key, path in where.items()}
    first = judge.teachers.first
    facts = provenance(
        judge.mesh,
        inputs.tokenizer,
        teachers.facts(judge.teachers),
        {"train": inputs.training, "eval": judge.held_out},
    )
    report = finite(
        study_report(
            Study(
                plan=plan,
                results=results,
                records={key: read_records(where[key] / TOKENS) for key in done},
                curves={key: [x for x in lines[key] if "eval/nll" in x] for key in done},
                written={name: row for name, row in written.items() if row},
                serving=_serving(c, directory, judge, where, done),
                teacher_parameters=first and count(first.params),
                invalid=_mismatch(inputs),
                text_of=text_of(inputs.tokenizer),
                document_labels=judge.labels,
                config=flatten(c),
                config_diff=(directory / workdir.CONFIG_DIFF).read_text(),
                provenance=facts,
                run=run_facts(c, judge),
                samples=_samples(directory, plan, where, done),
            )
        )
    )
    table = study_table(report)
    report["table"] = table
    ships = report["verdict"]["ships"]
    if jax.process_index():
        return ships
    workdir.write_json(directory / workdir.PROVENANCE, facts)
    workdir.write_json(directory / workdir.REPORT, report)
    workdir.write_text(directory / workdir.PAGE, page(report))
    for name, text in svg_files(report).items():
        workdir.write_text(directory / name, text)
    yield table
    yield f"\nreport: {directory / workdir.PAGE}"
    return ships


def _teacher_texts(c: ConfigDict, directory: Path, judge: Judge) -> dict[str, Any]:
    """The teacher's behaviour, measured once a study."""
    path = directory / "teacher" / BEHAVIOUR
    if path.exists():
        return json.loads(path.read_text())["metrics"]
    if judge.teachers.first is None or judge.prompts is None:
        return {}
    measured = measure_texts(c, judge.teachers.first, judge)
    if jax.process_index() == 0:
        path.parent.mkdir(exist_ok=True)
        workdir.write_json(path, measured)
    return measured["metrics"]


def _samples(directory: Path, plan: dict, where: dict, done: dict) -> list[dict[str, Any]]:
    """The first prompts, continued by the teacher and by each arm's first seed, and the data."""
    paths = {"teacher": directory / "teacher"}
    for arm, seed in sorted(done, key=lambda key: key[1]):
        paths.setdefault(arm, where[arm, seed])
    lines = []
    for name in ("teacher", *plan["arms"]):
        path = paths.get(name, directory) / BEHAVIOUR
        texts = json.loads(path.read_text())["texts"] if path.exists() else []
        step = plan["arms"][name]["steps"] if name in plan["arms"] else 0
        told = [{"model": name, "step": step, **text} for text in texts[:SAMPLES]]
        if not lines:
            lines += [
                line | {"model": "data", "step": 0, "text": line["reference"]} for line in told
            ]
        lines += told
    return [{key: line[key] for key in ("model", "step", "prompt", "text")} for line in lines]


def _data_texts(c: ConfigDict, judge: Judge) -> dict[str, Any]:
    if judge.prompts is None:
        return {}
    return data_metrics(judge.prompts, c.study.new_tokens, judge.training)


def _serving(c: ConfigDict, directory: Path, judge: Judge, where: dict, done: dict) -> dict | None:
    """What teacher and student cost to serve, measured once, one after the other."""
    path = directory / SERVING
    price = c.study.price_per_hour or None
    if path.exists():
        known = json.loads(path.read_text())
        if known["price_per_hour"] == price:
            return known
    students = [where[key] for key in done if key[0] == TREATMENT]
    if not students:
        return None
    student = load_model(c, str(students[0] / workdir.STUDENT), c.export.dtype, judge.mesh)
    models = {"student": (student.model, student.params)}
    if judge.teachers.first is not None:
        models["teacher"] = judge.teachers.first.model, judge.teachers.first.params
    measured = compare_serving(
        models,
        prompt_tokens=c.study.prompt_tokens,
        new_tokens=c.study.new_tokens,
        price_per_hour=price,
        cache_dtype=c.model.compute_dtype,
        seed=c.seed,
    )
    if jax.process_index() == 0:
        workdir.write_json(path, measured)
    return measured


def _mismatch(inputs: Inputs) -> str | None:
    """A reason why student and teacher do not see the same text."""
    first, tokenizer = inputs.teachers.first, inputs.tokenizer
    if first is not None and tokenizer.chat_template != first.tokenizer.chat_template:
        return "student and teacher have different chat templates: they do not see the same text"
    return None


def text_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    """The text of one token, special ones as they are written."""
    return lambda token: tokenizer.backend.decode([token], skip_special_tokens=False)


def run_facts(c: ConfigDict, judge: Judge) -> dict[str, Any]:
    """What an option may depend on beside the config: the teacher's size, what was learned from."""
    cache, first = judge.teachers.cache, judge.teachers.first
    return {
        "targets": cache.manifest.kind if c.teacher.cache else c.teacher.targets,
        "cache_dtype": cache and cache.manifest.form["dtype"],
        "teacher_blocks": first and first.model.config.blocks,
        "teacher_neurons": first and first.model.config.neurons,
    }
