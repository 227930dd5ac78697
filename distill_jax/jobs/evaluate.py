"""The job evaluate: one model on the evaluation text, against its teacher where it has one."""

import jax

from distill_jax import workdir
from distill_jax.config import flatten
from distill_jax.evals.likelihood import evaluate, make_eval_step
from distill_jax.jobs.costs import with_costs
from distill_jax.objective import live_teacher
from distill_jax.progress import Progress, say
from distill_jax.report.tables import ModelRow, text_table
from distill_jax.setup import data, reading, storing
from distill_jax.setup.evaluator import task_scores
from distill_jax.setup.hearing import Hear
from distill_jax.setup.models import load_measured, mesh_of, size_line, size_of
from distill_jax.setup.owner import Question
from distill_jax.setup.provenance import provenance
from distill_jax.setup.quantising import noted


def evaluate_job(asked: Question, progress: Progress) -> None:
    """Measures student.path, against teacher.path where both are given, on the evaluation text."""
    c, results = asked.config, asked.results
    mesh = mesh_of(c, "eval")
    with progress.stage("load", "reading the text") as stage:
        documents = reading.evaluation_documents(c, Hear(stage.tell, say), own=asked.own_text)
    with progress.stage("load", "reading the models") as stage:
        models = load_measured(c, mesh, advance=stage.advance)
    for name, loaded in models.items():
        say(size_line(name, loaded))
    subject = models["student"]
    vocab = min(loaded.model.config.vocab for loaded in models.values())
    with progress.stage("tokenise", "tokenising") as stage:
        hear = Hear(stage.tell, say)
        tokens = storing.tokenized(documents, subject.tokenizer, vocab, hear)
        text = data.packed(c, tokens, seed=None)
    say(f"text: {data.description(text)}")
    of = c, [*models.values()], lambda: text.rows, c.eval.batch_size, mesh
    models = dict(zip(models, with_costs(*of, progress), strict=True))
    subject, teacher = models["student"], models.get("teacher")
    eval_step = make_eval_step(
        subject.model,
        teacher and live_teacher(teacher.model),
        block_tokens=c.model.block_tokens,
        mesh=mesh,
    )
    batches = data.held_out_batches(c, text.rows, mesh)
    teacher_params = (teacher.params,) if teacher else ()
    count_of = -(-len(text.rows) // c.eval.batch_size)
    with progress.stage("evaluate", "evaluating") as stage:
        of = (eval_step, subject.params, teacher_params, batches)
        measured = evaluate(*of, count=count_of, advance=stage.advance)
    with progress.stage("evaluate", "tasks of lm-evaluation-harness") as stage:
        tasks = task_scores(c, subject, stage.advance).numbers
    measured |= {f"eval/{name}": value for name, value in tasks.items()}
    if jax.process_index():
        return
    workdir.write_lines(results / workdir.METRICS, [{"step": 0, **measured}])
    teachers = {"teacher.sha256": teacher and teacher.fingerprint}
    teachers |= noted([teacher or subject])  # one of them alone may be quantised
    versions = provenance(mesh, subject.tokenizer, teachers, {"eval": text})
    report = {**measured, "config": flatten(c), "provenance": versions}
    workdir.write_json(results / workdir.PROVENANCE, versions)
    workdir.write_json(results / workdir.REPORT, report)
    rows = [ModelRow.of(subject.path, size_of(subject.model, subject.params), measured)]
    if teacher:
        size = size_of(teacher.model, teacher.params)
        rows.insert(0, ModelRow.teacher(teacher.path, size, measured))
    say(text_table(rows))
    for name, value in measured.items():
        if name.count("/") > 1:
            say(f"{name}: {value:.4g}")
    say(f"\nreport: {results / workdir.REPORT}")
