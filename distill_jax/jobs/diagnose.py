"""The job diagnose: where and why any student differs from its teacher."""

from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from distill_jax import workdir
from distill_jax.config import config_diff, flatten, load_base
from distill_jax.diagnosis.advice import advise
from distill_jax.diagnosis.summary import summarise
from distill_jax.diagnosis.triggers import trigger_values
from distill_jax.evals.aggregates import aggregate
from distill_jax.evals.continuations import behaviour_section
from distill_jax.evals.records_file import write_records
from distill_jax.jobs.costs import with_costs
from distill_jax.jobs.study_seal import TOKENS
from distill_jax.progress import Progress, say
from distill_jax.report.headline import diagnose_answer
from distill_jax.report.page import page
from distill_jax.report.run import report_json, study_command
from distill_jax.report.tables import ModelRow, text_table
from distill_jax.setup import data, reading, storing, teachers
from distill_jax.setup.evaluator import (
    Evaluator,
    advice_inputs,
    evaluator_of,
    measure_texts,
    measure_tokens,
    text_of,
)
from distill_jax.setup.hearing import Hear
from distill_jax.setup.inputs import Inputs
from distill_jax.setup.models import Loaded, Source, load_measured, mesh_of, size_line, size_of
from distill_jax.setup.owner import Question
from distill_jax.setup.provenance import provenance
from distill_jax.setup.steps import with_steps
from distill_jax.setup.teachers import Teachers
from distill_jax.types import UserError
from distill_jax.words import named, plural


def diagnose_job(asked: Question, progress: Progress) -> None:
    """Compares student.path with teacher.path on the evaluation text; diagnose.baseline beside it.

    Writes tokens.parquet, report.json and report.html.
    """
    c, results = asked.config, asked.results
    for key in ("teacher", "student"):
        if not c[key].path:
            raise UserError(f"config.{key}.path is empty: diagnose needs --config.{key}.path=PATH")
    mesh = mesh_of(c, "eval")
    with progress.stage("load", "reading the text") as stage:
        documents = reading.evaluation_documents(c, Hear(stage.tell, say), own=asked.own_text)
    with progress.stage("load", "reading the models") as stage:
        models = load_measured(c, mesh, c.diagnose.baseline, stage.advance)
    for name, loaded in models.items():
        say(size_line(name, loaded))
    with progress.stage("tokenise", "tokenising") as stage:
        evaluator = evaluator_of(c, _inputs(asked, mesh, models, documents, Hear(stage.tell, say)))
    say(f"text: {data.description(evaluator.held_out)}")
    of = c, (models["teacher"],), lambda: evaluator.held_out.rows, c.eval.batch_size, mesh
    (models["teacher"],) = with_costs(*of, progress)
    found = evaluator.teachers._replace(loaded=(models["teacher"],))
    evaluator = evaluator._replace(teachers=found)
    records, written = {}, {}
    for name, loaded in models.items():
        if name != "teacher":
            with progress.stage("evaluate", f"measuring the {name}") as stage:
                records[name] = measure_tokens(c, loaded, evaluator, stage.advance)
        with progress.stage("write", f"compiling and writing texts of the {name}"):
            written[name] = measure_texts(c, loaded, evaluator).metrics
    if jax.process_index():
        return
    write_records(results / TOKENS, records["student"])
    report = _report(asked, evaluator, models, records, written)
    workdir.write_json(results / workdir.REPORT, report)
    workdir.write_text(results / workdir.PAGE, page(report))
    say(report["table"])
    for line in _lines(report):
        say(line)
    say(f"\nreport: {results / workdir.PAGE}")


def _inputs(
    asked: Question, mesh: Mesh, models: dict[str, Loaded], documents, hear: Hear
) -> Inputs:
    """The evaluation text, and where token frequencies come from: data.source, or else it."""
    c = asked.config
    student = models["student"]
    vocab = min(loaded.model.config.vocab for loaded in models.values())
    text = storing.tokenized(documents, student.tokenizer, vocab, hear)
    training = text
    if asked.own_text or (c.data.eval_source and c.data.source):
        read = reading.training_documents(c, hear)[0]
        training = storing.tokenized(read, student.tokenizer, vocab, hear)
    found = Teachers((models["teacher"],), None, None, False)
    return Inputs(
        mesh, found, Source(student.model.config, None), student.tokenizer, training, text
    )


def _report(asked: Question, evaluator: Evaluator, models, records, written) -> dict:
    c = asked.config
    student, first = models["student"], models["teacher"]
    metrics = aggregate(records["student"].columns)
    evaluation = {f"eval/{name}": value for name, value in metrics.items()}
    evaluation["eval/tokens"] = len(records["student"].columns["token"])
    rows = [
        ModelRow.teacher("teacher", size_of(first.model, first.params), evaluation),
        ModelRow.of("student", size_of(student.model, student.params), evaluation),
    ]
    versions = provenance(
        evaluator.inputs.mesh,
        student.tokenizer,
        teachers.identity(evaluator.teachers),
        {"eval": evaluator.held_out},
    )
    diff = config_diff(c, load_base())
    # A study starts where the run started, which the exported student does not tell.
    command = asked.run and study_command(asked.run, flatten(load_base()), str(asked.directory))
    report = report_json(
        rows, evaluation, [], flatten(c), versions, kind="diagnose", config_diff=diff,
        study_command=command,
    )  # fmt: skip
    baseline = [records["baseline"]] if "baseline" in records else []
    report |= summarise(
        [records["student"]],
        baseline,
        names=("student", "baseline"),
        text_of=text_of(student.tokenizer),
        document_labels=evaluator.inputs.held_out.tokenized.labels,
        kl_own=written["student"].get("kl_own"),
        kl_data=written["student"].get("kl_data"),
    )._asdict()
    report |= diagnose_answer(rows, report["diagnose"])._asdict()
    if evaluator.prompts is not None:
        report["behaviour"] = behaviour_section(
            written, prompts=len(evaluator.prompts.prompts), new_tokens=c.study.new_tokens
        )
    of_run, _ = with_steps(c, len(data.packed(c, evaluator.inputs.training, seed=c.seed).rows))
    report["options"] = advise(
        trigger_values(report, student="student"), advice_inputs(c, evaluator, of_run.steps, None)
    )
    report["table"] = text_table(rows)
    return report


def _lines(report: dict) -> Iterator[str]:
    """What the page says first, for a terminal."""
    yield "\n" + report["headline"]
    yield from report["findings"]
    found = report["diagnose"]
    for row in found["classes"]:
        if row["tokens"]:
            tokens = plural(row["tokens"], "token")
            yield f"  {named(row['class'])}: {tokens}, {row['share_of_kl']:.1%} of it"
    for option in report["options"]:
        yield f"to try: {option['name']} ({option['override']})"
