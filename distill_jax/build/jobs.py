"""The jobs evaluate, export and generate, which read models and train nothing."""

from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.build import data, samples
from distill_jax.build.measure import benchmarks
from distill_jax.build.models import (
    Loaded,
    check_length,
    check_tokenizers,
    count,
    load_model,
    load_teacher,
    student_tokenizer,
)
from distill_jax.build.provenance import provenance
from distill_jax.build.terms import make_recipe
from distill_jax.build.training import (
    ARCHITECTURE,
    abstract_state,
    open_checkpoints,
    saved_model,
    starter,
)
from distill_jax.config import choose, flatten
from distill_jax.evals.likelihood import evaluate, make_eval_step
from distill_jax.export import export_student
from distill_jax.objective import live_teacher
from distill_jax.sharding import batch_ways, check_batch, make_mesh
from distill_jax.study.report import ModelRow, text_table
from distill_jax.types import UserError


def evaluate_job(c: ConfigDict, directory: Path) -> Iterator[str]:
    """Measures student.path, against teacher.path where both are given, on the evaluation text."""
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    check_batch("eval.batch_size", c.eval.batch_size, 1, mesh)
    documents = data.evaluation_documents(c)
    subject, teacher = _subject(c, mesh)
    yield f"{subject.path}: {count(subject.params) / 1e6:.1f} M parameters"
    for model in (subject, teacher):
        if model is not None:
            check_length(c, model.model.config, model.path)
    vocab = min(m.model.config.vocab for m in (subject, teacher) if m)
    text = data.packed(c, data.tokenized(documents, subject.tokenizer, vocab), seed=None)
    yield f"text: {data.description(text)}"
    eval_step = make_eval_step(
        subject.model,
        teacher and live_teacher(teacher.model),
        block_tokens=c.model.block_tokens * batch_ways(mesh),
    )
    batches = data.held_out_batches(c, text.rows, mesh)
    teacher_params = (teacher.params,) if teacher else ()
    measured = evaluate(eval_step, subject.params, teacher_params, batches).named()
    measured |= {f"eval/{name}": value for name, value in benchmarks(c, subject).items()}
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
    yield text_table(rows)
    yield from (f"{name}: {value:.4g}" for name, value in measured.items() if name.count("/") > 1)


def generate_job(c: ConfigDict, directory: Path) -> Iterator[str]:
    """Continues config.generate.prompts with student.path, or else teacher.path."""
    samples.check(c)
    if not c.generate.prompts:
        raise UserError(
            "config.generate.prompts is empty: give texts, as"
            " --config.generate.prompts='(\"Once upon\",)'"
        )
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    subject = _only(c, mesh)
    stop_ids = samples.stop_ids(subject.tokenizer, subject.token_ids)
    lines = samples.sample(
        c,
        subject.path,
        0,
        subject.model,
        subject.params,
        subject.tokenizer,
        stop_ids,
        time_it=False,
    )
    if jax.process_index() == 0:
        workdir.write_lines(directory / workdir.SAMPLES, lines)
    for line in lines:
        yield f"{line['prompt']}|{line['text']}\n"


def export_job(c: ConfigDict, directory: Path) -> Iterator[str]:
    """Writes workdir/student: from this run's checkpoints, or else from student.path."""
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    choose("export.checkpoint", c.export.checkpoint, ("latest", "best"))
    if (directory / ARCHITECTURE).exists():
        manager = open_checkpoints(c, directory)
        step = manager.latest_step() if c.export.checkpoint == "latest" else manager.best_step()
        if step is None:
            raise UserError(f"{directory} has no checkpoint yet: train first")
        model = saved_model(c, directory)
        abstract, _ = abstract_state(model, starter(c, make_recipe(c)), mesh)
        params = checkpoint.restore(manager, abstract, step).params
        teacher = load_teacher(c, mesh) if not c.student.path else None
        read = load_model(c, c.student.path, c.student.dtype, mesh) if c.student.path else teacher
        tokenizer, ids, where = (
            student_tokenizer(c, teacher or read),
            read.token_ids,
            f"step {step}",
        )
    else:
        read = _only(c, mesh)
        model, params, tokenizer, ids, where = *read[:3], read.token_ids, read.path
    target = directory / workdir.STUDENT
    export_student(target, model.config, params, tokenizer, ids, dtype=c.export.dtype)
    yield f"wrote {target} from {where}"


def _subject(c: ConfigDict, mesh) -> tuple[Loaded, Loaded | None]:
    """The model to measure and the teacher to compare it with."""
    if not c.student.path:
        return _only(c, mesh), None
    teacher = load_teacher(c, mesh)
    subject = load_model(c, c.student.path, c.student.dtype, mesh)
    check_tokenizers(subject.tokenizer, teacher)
    return subject, teacher


def _only(c: ConfigDict, mesh) -> Loaded:
    """The one model of a job without training: student.path, or else teacher.path."""
    path = c.student.path or c.teacher.path
    if not path:
        raise UserError("config.student.path is empty: give --config.student.path=PATH")
    return load_model(c, path, c.student.dtype if c.student.path else c.teacher.dtype, mesh)
