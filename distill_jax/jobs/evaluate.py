"""The job evaluate: one model on the evaluation text, against its teacher where it has one."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import flatten
from distill_jax.evals.likelihood import evaluate, make_eval_step
from distill_jax.objective import live_teacher
from distill_jax.progress import say
from distill_jax.report.tables import ModelRow, text_table
from distill_jax.setup import data
from distill_jax.setup.evaluator import task_scores
from distill_jax.setup.models import (
    Loaded,
    check_length,
    check_tokenizers,
    count,
    load_model,
    load_only_model,
    load_teacher,
)
from distill_jax.setup.provenance import provenance
from distill_jax.sharding import batch_ways, check_batch, make_mesh


def evaluate_job(c: ConfigDict, directory: Path) -> None:
    """Measures student.path, against teacher.path where both are given, on the evaluation text."""
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    check_batch("eval.batch_size", c.eval.batch_size, 1, mesh)
    documents = data.evaluation_documents(c)
    subject, teacher = _subject(c, mesh)
    say(f"{subject.path}: {count(subject.params) / 1e6:.1f} M parameters")
    for model in (subject, teacher):
        if model is not None:
            check_length(c, model.model.config, model.path)
    vocab = min(m.model.config.vocab for m in (subject, teacher) if m)
    text = data.packed(c, data.tokenized(documents, subject.tokenizer, vocab), seed=None)
    say(f"text: {data.description(text)}")
    eval_step = make_eval_step(
        subject.model,
        teacher and live_teacher(teacher.model),
        block_tokens=c.model.block_tokens * batch_ways(mesh),
    )
    batches = data.held_out_batches(c, text.rows, mesh)
    teacher_params = (teacher.params,) if teacher else ()
    measured = evaluate(eval_step, subject.params, teacher_params, batches).named()
    measured |= {f"eval/{name}": value for name, value in task_scores(c, subject).numbers.items()}
    if jax.process_index():
        return
    workdir.write_lines(directory / workdir.METRICS, [{"step": 0, **measured}])
    teachers = {"teacher.sha256": teacher and teacher.fingerprint}
    facts = provenance(mesh, subject.tokenizer, teachers, {"eval": text})
    report = {**measured, "config": flatten(c), "provenance": facts}
    workdir.write_json(directory / workdir.PROVENANCE, facts)
    workdir.write_json(directory / workdir.REPORT, report)
    rows = [ModelRow.of(subject.path, count(subject.params), measured)]
    if teacher:
        rows.insert(0, ModelRow.teacher(teacher.path, count(teacher.params), measured))
    say(text_table(rows))
    for name, value in measured.items():
        if name.count("/") > 1:
            say(f"{name}: {value:.4g}")


def _subject(c: ConfigDict, mesh) -> tuple[Loaded, Loaded | None]:
    """The model to measure and the teacher to compare it with."""
    if not c.student.path:
        return load_only_model(c, mesh), None
    teacher = load_teacher(c, mesh)
    subject = load_model(c, c.student.path, c.student.dtype, mesh)
    check_tokenizers(subject.tokenizer, teacher)
    return subject, teacher
