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
from distill_jax.build.inputs import Setting, check, description, read_inputs, setting_of
from distill_jax.build.models import bind_config, count
from distill_jax.build.provenance import provenance
from distill_jax.build.terms import Recipe, train_step_of
from distill_jax.config import at_least, flatten
from distill_jax.evals.likelihood import EvalStep, evaluate, make_eval_step
from distill_jax.export import export_student
from distill_jax.loop import LoopOptions, Run, train
from distill_jax.losses.terms import needs_teacher
from distill_jax.models.binding import Model
from distill_jax.models.families import FAMILIES
from distill_jax.sharding import batch_ways, parameter_shardings
from distill_jax.step import TrainStep, init_state
from distill_jax.study.page import page
from distill_jax.study.report import model_rows, report_json, samples_text, text_table
from distill_jax.types import Params, TrainState
from distill_jax.writers import Writer, tensorboard, wandb

TEACHING = 1  # the stream of random numbers for what teachers draw
ARCHITECTURE = "architecture.json"  # of the student, so that its checkpoints can be read again
# Keys that shape no compiled step: runs that differ in these alone share their programs.
FREE = ("seed", "student.path", "generate.prompts", "checkpoint.every", "eval.every")


class Programs(NamedTuple):
    """The compiled steps of a run; another of the same shape, terms and schedule shares them."""

    train_step: TrainStep
    eval_step: EvalStep


def train_job(c: ConfigDict, directory: Path) -> Iterator[str]:
    """Trains, exports the student and writes the report; yields the lines a person reads."""
    if (directory / workdir.REPORT).exists():
        yield f"{directory} is done (to train anew, give another --workdir)\n"
        yield json.loads((directory / workdir.REPORT).read_text())["table"]
        return
    recipe, mesh = check(c)
    inputs = yield from read_inputs(c, recipe.terms, mesh)
    setting = setting_of(c, recipe, directory, inputs)
    yield from description(setting)
    model, params = yield from train_student(setting, {})
    yield from finish(setting, model, params)


def train_student(setting: Setting, programs: dict[str, Programs]) -> Iterator[str]:
    """Trains from the start or the last checkpoint to the last step.

    programs: those of earlier runs by what shapes them; this run's are added. Yields lines a
    person reads and returns (model, params).
    """
    c, directory = setting.config, setting.directory
    manager = open_checkpoints(c, directory)
    begin = starter(c, setting.recipe)
    if manager.latest_step() is None:
        model, params = yield from start_of(setting)
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
    shape = json.dumps(
        [_architecture(model), {k: v for k, v in flatten(c).items() if k not in FREE}]
    )
    if shape not in programs:
        programs[shape] = programs_of(setting, model, shardings)
    state = train(_run(setting, model, state, programs[shape], manager))
    return model, state.params


def start_of(setting: Setting) -> Iterator[str]:
    """The student before its first step; yields a line where that takes long."""
    c = setting.config
    if c.student.init == "prune":
        p = c.student.prune
        yield (
            f"pruning to {p.blocks or 'all'} blocks and {p.neurons or 'all'} neurons a block"
            f" by {p.calibration_tokens:,} tokens"
        )
    # Pruning asks no teacher, and may look at text that a cache has nothing for.
    rows = data.plain(setting.training.rows)
    calibration = lambda: data.calibration_batches(c, rows, setting.mesh)
    teacher = setting.teachers.first
    return student.make_student(c, setting.source, teacher, setting.mesh, calibration)


def open_checkpoints(c: ConfigDict, directory: Path):
    """The checkpoint manager of a run's directory."""
    return checkpoint.open_manager(
        directory / workdir.CHECKPOINTS,
        keep_last=int(at_least("checkpoint.keep_last", c.checkpoint.keep_last, 1)),
        keep_best=int(at_least("checkpoint.keep_best", c.checkpoint.keep_best, 0)),
        metric=c.checkpoint.metric,
    )


def starter(c: ConfigDict, recipe: Recipe) -> Callable[[Params], TrainState]:
    """The function that makes the first state of a run from the student's parameters."""
    average = teachers.AVERAGE in (c.teacher.path, *c.teacher.more)
    return partial(
        init_state,
        optimizer=recipe.optimizer,
        plan=recipe.plan,
        keep_average=average and needs_teacher(recipe.terms),
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


def programs_of(setting: Setting, model: Model, shardings: TrainState | None) -> Programs:
    """The jitted steps of a run, not yet compiled."""
    c, recipe, mesh = setting.config, setting.recipe, setting.mesh
    teach, _ = teachers.teach_of(c, setting.teachers, recipe.terms, model, mesh)
    train_step = train_step_of(c, recipe, model, teach, mesh, shardings)
    compared, _ = teachers.measure_of(c, setting.judges)
    block_tokens = c.model.block_tokens * batch_ways(mesh)
    return Programs(train_step, make_eval_step(model, compared, block_tokens=block_tokens))


def _run(setting, model, state, programs, manager) -> Run:
    c, mesh = setting.config, setting.mesh
    _, teacher_params = teachers.teach_of(c, setting.teachers, setting.recipe.terms, model, mesh)
    _, judge_params = teachers.measure_of(c, setting.judges)

    def measure(params: Params) -> dict[str, float]:
        batches = data.held_out_batches(c, setting.held_out.rows, mesh)
        return evaluate(programs.eval_step, params, judge_params, batches).named()

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
        train_step=programs.train_step,
        batches=lambda start: data.training_batches(c, setting.training.rows, mesh, start),
        evaluate=measure,
        learning_rate=lambda step: float(setting.recipe.learning_rate(step)),
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
    teacher, lines = setting.teachers.first, []
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


def finish(setting: Setting, model: Model, params: Params) -> Iterator[str]:
    """The exported student, the report, and the lines a person reads at the end."""
    c, directory, teacher = setting.config, setting.directory, setting.teachers.first
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
    report = report_json(rows, last, lines, flatten(c), facts, history=history, config_diff=diff)
    workdir.write_text(directory / workdir.PAGE, page(report))
    workdir.write_json(directory / workdir.REPORT, report)
    yield samples_text(lines)
    yield text_table(rows)
    yield f"\nstudent: {directory / workdir.STUDENT}\nreport:  {directory / workdir.PAGE}"
