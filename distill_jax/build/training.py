"""The job train: from a config to a Run for the loop, then the export and the report."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.build import data, samples, student, teachers
from distill_jax.build.models import (
    Loaded,
    bind_config,
    check_length,
    check_tokenizers,
    count,
    student_source,
    student_tokenizer,
)
from distill_jax.build.provenance import provenance
from distill_jax.build.teachers import Teachers
from distill_jax.build.terms import optim_options, plan_of, terms_of
from distill_jax.config import at_least, flatten
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.evals.likelihood import evaluate, make_eval_step
from distill_jax.export import export_student
from distill_jax.loop import LoopOptions, Run, train
from distill_jax.losses.terms import Term, needs_teacher
from distill_jax.models.binding import Model
from distill_jax.models.families import FAMILIES
from distill_jax.objective import objective
from distill_jax.optim import make_optimizer, make_schedule
from distill_jax.sharding import batch_ways, check_batch, make_mesh, parameter_shardings
from distill_jax.step import init_state, make_train_step
from distill_jax.study.report import model_rows, report_html, report_json, samples_text, text_table
from distill_jax.types import Params, TrainState
from distill_jax.writers import Writer, tensorboard, wandb

TEACHING = 1  # the stream of random numbers for what teachers draw
ARCHITECTURE = "architecture.json"  # of the student, so that its checkpoints can be read again


class Setting(NamedTuple):
    """What the parts of one training job share."""

    config: ConfigDict
    directory: Path
    mesh: Mesh
    terms: tuple[Term, ...]
    teachers: Teachers
    tokenizer: Tokenizer
    token_ids: dict[str, Any]
    stop_ids: tuple[int, ...]
    training: data.Data
    held_out: data.Data

    @property
    def teacher(self) -> Loaded | None:
        """The one that texts, tables and pruning take."""
        return self.teachers.first


def train_job(c: ConfigDict, directory: Path) -> Iterator[str]:
    """Trains, exports the student and writes the report; yields the lines a person reads."""
    if (directory / workdir.REPORT).exists():
        yield f"{directory} is done (to train anew, give another --workdir)\n"
        yield json.loads((directory / workdir.REPORT).read_text())["table"]
        return
    setting, source = yield from _prepare(c, directory)
    manager = open_checkpoints(c, directory)
    begin = starter(c, setting.terms)
    if manager.latest_step() is None:
        if c.student.init == "prune":
            p = c.student.prune
            yield (
                f"pruning to {p.blocks or 'all'} blocks and {p.neurons or 'all'} neurons a block"
                f" by {p.calibration_tokens:,} tokens"
            )
        calibration = lambda: data.calibration_batches(c, setting.training.rows, setting.mesh)
        model, params = student.make_student(c, source, setting.teacher, setting.mesh, calibration)
        if jax.process_index() == 0:
            workdir.write_json(directory / ARCHITECTURE, _architecture(model))
        _, shardings = abstract_state(model, begin, setting.mesh)
        state = jax.jit(begin, out_shardings=shardings)(params)
        del params
    else:
        model = saved_model(c, directory)
        abstract, shardings = abstract_state(model, begin, setting.mesh)
        state = checkpoint.restore(manager, abstract)
        yield f"resuming from step {int(state.step)} of {c.steps}"
    yield f"student: {count(state.params) / 1e6:.1f} M parameters"
    state = train(_run(setting, model, state, shardings, manager))
    yield from _finish(setting, model, state.params)


def _prepare(c: ConfigDict, directory: Path):
    """Checks everything that is cheap to check, then reads the teacher and the text."""
    terms = terms_of(c)
    student.check(c)
    samples.check(c)
    at_least("steps", c.steps, 1)
    starter(c, terms)
    teachers.check(c, terms)
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    check_batch("data.batch_size", c.data.batch_size, c.data.microbatches, mesh)
    check_batch("eval.batch_size", c.eval.batch_size, 1, mesh)
    documents, held_out = data.training_documents(c)
    all_teachers = teachers.load_teachers(c, terms, mesh)
    teacher = all_teachers.first
    for one in all_teachers.loaded:
        check_length(c, one.model.config, one.path)
        yield f"teacher: {count(one.params) / 1e6:.1f} M parameters, {one.path}"
    source = student_source(c, teacher)
    tokenizer = student_tokenizer(c, teacher)
    for one in all_teachers.loaded[1:]:
        check_tokenizers(tokenizer, one)
    vocab = min(m.vocab for m in (source.config, *(t.model.config for t in all_teachers.loaded)))
    training = data.packed(c, documents, tokenizer, vocab, seed=c.seed)
    evaluation = data.packed(c, held_out, tokenizer, vocab, seed=None)
    if all_teachers.cache is not None:
        cache = all_teachers.cache
        parts = training, evaluation
        training, evaluation = data.with_cache(c, cache, tokenizer, teacher, *parts)
        yield f"teacher cache: {cache.manifest.kind} of {c.teacher.cache}"
    yield f"training text: {data.description(training)}"
    yield f"held-out text: {data.description(evaluation)}"
    ids = source.read.token_ids if source.read else teacher.token_ids if teacher else {}
    stop_ids = samples.stop_ids(tokenizer, ids)
    return Setting(
        c, directory, mesh, terms, all_teachers, tokenizer, ids, stop_ids, training, evaluation
    ), source


def open_checkpoints(c: ConfigDict, directory: Path):
    """The checkpoint manager of a run's directory."""
    return checkpoint.open_manager(
        directory / workdir.CHECKPOINTS,
        keep_last=int(at_least("checkpoint.keep_last", c.checkpoint.keep_last, 1)),
        keep_best=int(at_least("checkpoint.keep_best", c.checkpoint.keep_best, 0)),
        metric=c.checkpoint.metric,
    )


def starter(c: ConfigDict, terms: tuple[Term, ...]) -> Callable[[Params], TrainState]:
    """The function that makes the first state of a run from the student's parameters."""
    return partial(
        init_state,
        optimizer=make_optimizer(optim_options(c), c.steps),
        plan=plan_of(c, terms),
        keep_average=needs_teacher(terms) and teachers.AVERAGE in (c.teacher.path, *c.teacher.more),
    )


def abstract_state(model: Model, begin, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """Shapes of a training state with their shardings, and the shardings alone."""
    shapes = jax.eval_shape(begin, model.abstract())
    rules = FAMILIES[model.config.family].sharding
    shardings = parameter_shardings(shapes, rules, mesh)
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(with_sharding, shapes, shardings), shardings


def _architecture(model: Model) -> dict[str, Any]:
    return FAMILIES[model.config.family].to_hf(model.config)


def saved_model(c: ConfigDict, directory: Path) -> Model:
    """The decoder of the student whose checkpoints a directory holds."""
    raw = json.loads((directory / ARCHITECTURE).read_text())
    return bind_config(c, FAMILIES[raw["model_type"]].from_hf(raw), c.student.dtype)


def _run(setting, model, state, shardings, manager) -> Run:
    c, mesh = setting.config, setting.mesh
    teach, teacher_params = teachers.teach_of(c, setting.teachers, setting.terms, model, mesh)
    train_step = make_train_step(
        partial(
            objective, student=model, teach=teach, block_tokens=c.model.block_tokens, mesh=mesh
        ),
        make_optimizer(optim_options(c), c.steps),
        plan_of(c, setting.terms),
        microbatches=c.data.microbatches,
        frozen=tuple(c.optim.frozen),
        average_decay=c.teacher.average_decay,
        state_shardings=shardings,
    )
    compared, compared_params = teachers.measure_of(c, setting.teachers)
    block_tokens = c.model.block_tokens * batch_ways(mesh)
    eval_step = make_eval_step(model, compared, block_tokens=block_tokens)

    def measure(params: Params) -> dict[str, float]:
        batches = data.held_out_batches(c, setting.held_out.rows, mesh)
        return evaluate(eval_step, params, compared_params, batches).named()

    o = optim_options(c)
    rate = o.muon_learning_rate if o.name == "muon" else o.learning_rate
    schedule = make_schedule(o, rate, c.steps)
    return Run(
        workdir=setting.directory,
        options=LoopOptions(
            steps=c.steps,
            eval_every=int(at_least("eval.every", c.eval.every, 0)),
            checkpoint_every=int(at_least("checkpoint.every", c.checkpoint.every, 0)),
            log_every=int(at_least("log.every", c.log.every, 0)),
            max_skipped=c.optim.max_skipped,
            watchdog_s=c.watchdog_s,
        ),
        manager=manager,
        state=state,
        teacher_params=teacher_params,
        key=jax.random.fold_in(jax.random.key(c.seed), TEACHING),
        train_step=train_step,
        batches=lambda start: data.training_batches(c, setting.training.rows, mesh, start),
        evaluate=measure,
        learning_rate=lambda step: float(schedule(step)),
        on_start=lambda params: _first_samples(setting, model, params),
        writers=_writers(c, setting.directory),
    )


def _writers(c: ConfigDict, directory: Path) -> tuple[Writer, ...]:
    if jax.process_index():
        return ()
    chosen = [tensorboard(directory)] if c.log.tensorboard else []
    if c.log.wandb_project:
        chosen.append(wandb(c.log.wandb_project, directory, flatten(c)))
    return tuple(chosen)


def _first_samples(setting: Setting, model: Model, params: Params) -> None:
    """The files a fresh run begins with: provenance, and what teacher and student write before."""
    teacher, lines = setting.teacher, []
    if teacher is not None:
        lines += _samples(setting, "teacher", 0, teacher.model, teacher.params)
    lines += _samples(setting, "student before", 0, model, params)
    parts = {"train": setting.training, "eval": setting.held_out}
    facts = provenance(setting.mesh, setting.tokenizer, teachers.facts(setting.teachers), parts)
    if jax.process_index() == 0:
        workdir.write_json(setting.directory / workdir.PROVENANCE, facts)
        workdir.write_lines(setting.directory / workdir.SAMPLES, lines)


def _samples(setting, name, step, model, params):
    of = partial(samples.sample, setting.config, name, step)
    return of(model, params, setting.tokenizer, setting.stop_ids, time_it=True)


def _finish(setting: Setting, model: Model, params: Params) -> Iterator[str]:
    """The exported student, the report, and the lines a person reads at the end."""
    c, directory, teacher = setting.config, setting.directory, setting.teacher
    after = _samples(setting, "student after", c.steps, model, params)
    export_student(
        directory / workdir.STUDENT,
        model.config,
        params,
        setting.tokenizer,
        setting.token_ids,
        dtype=c.export.dtype,
    )
    if jax.process_index():
        return
    written = workdir.read_lines(directory / workdir.SAMPLES)
    lines = [line for line in written if line["step"] == 0] + after
    workdir.write_lines(directory / workdir.SAMPLES, lines)
    history = workdir.read_lines(directory / workdir.METRICS)
    evaluations = [line for line in history if "eval/nll" in line]
    speeds = {line["model"]: line["tokens_per_s"] for line in lines}
    sizes = [count(teacher.params) if teacher else None, *[count(params)] * 2]
    rows = model_rows(sizes, [evaluations[0], evaluations[-1]], speeds)
    facts = json.loads((directory / workdir.PROVENANCE).read_text())
    last = {k: v for k, v in evaluations[-1].items() if k.startswith("eval/")}
    diff = (directory / workdir.CONFIG_DIFF).read_text()
    page = report_html(rows, history, lines, diff, facts)
    workdir.write_text(directory / "report.html", page)
    report = report_json(rows, last, lines, flatten(c), facts)
    workdir.write_json(directory / workdir.REPORT, report)
    yield samples_text(lines)
    yield text_table(rows)
    yield f"\nstudent: {directory / workdir.STUDENT}\nreport:  {directory / 'report.html'}"
