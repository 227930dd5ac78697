"""A training run as live objects: its first state, its compiled steps, its checkpoints."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.config import choose, flatten
from distill_jax.evals.likelihood import EvalStep, evaluate, make_eval_step
from distill_jax.files import read_sealed, sealed
from distill_jax.losses.terms import needs_teacher
from distill_jax.models.binding import Model
from distill_jax.models.families import FAMILIES
from distill_jax.run import LoopOptions, Run
from distill_jax.setup import data, teachers
from distill_jax.setup.inputs import Setting
from distill_jax.setup.loss import Recipe, train_step_of
from distill_jax.setup.models import Source, bind_config
from distill_jax.setup.student import student_config
from distill_jax.sharding import parameter_shardings
from distill_jax.step import TrainStep, init_state
from distill_jax.types import Advance, Params, TrainState
from distill_jax.writers import Writer

TEACHING = 1  # the stream of random numbers for what teachers draw
ARCHITECTURE = "architecture.json"  # of the student, so that its checkpoints can be read again
# Keys that shape no compiled step: runs that differ in these alone share their programs.
FREE = (
    "seed",
    "student.path",
    "generate.prompts",
    "generate.messages",
    "checkpoint.every",
    "eval.every",
)


class CompiledSteps(NamedTuple):
    """The jitted steps of a run; another of the same shape, terms and schedule shares them."""

    train_step: TrainStep
    eval_step: EvalStep


def open_checkpoints(c: ConfigDict, directory: Path):
    """The checkpoint manager of a run's directory."""
    return checkpoint.open_manager(
        directory / workdir.CHECKPOINTS,
        keep_last=c.checkpoint.keep_last,
        keep_best=c.checkpoint.keep_best,
        metric=c.checkpoint.metric,
        every=c.checkpoint.every,
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


def abstract_state(
    model: Model, begin, mesh: Mesh, shard: Sequence[str]
) -> tuple[TrainState, TrainState]:
    """Shapes of a training state with their shardings, and the shardings alone.

    shard: the mesh axes that split parameters and moments.
    """
    shapes = jax.eval_shape(begin, model.abstract())
    rules = FAMILIES[model.config.family].sharding
    shardings = parameter_shardings(shapes, rules, mesh, shard)
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    return jax.tree.map(with_sharding, shapes, shardings), shardings


def shape_of(c: ConfigDict, model: Model) -> str:
    """What the compiled steps of a run depend on; runs that agree here share them."""
    keys = {key: value for key, value in flatten(c).items() if key not in FREE}
    return json.dumps([architecture(model), keys])


def architecture(model: Model) -> dict[str, Any]:
    """The student's sizes, as a Hugging Face config.json has them."""
    return FAMILIES[model.config.family].to_hf(model.config)


def write_architecture(directory: Path, model: Model) -> None:
    """Notes the student's sizes beside its checkpoints, on process 0."""
    if jax.process_index() == 0:
        workdir.write_json(directory / ARCHITECTURE, sealed(architecture(model)))


def saved_model(c: ConfigDict, directory: Path) -> Model | None:
    """The decoder of the student whose checkpoints a directory holds; None if that is damaged."""
    raw = read_sealed(directory / ARCHITECTURE)
    if raw is None or raw.get("model_type") not in FAMILIES:
        return None
    return bind_config(c, FAMILIES[raw["model_type"]].from_hf(raw), c.student.dtype)


def rebuilt_model(c: ConfigDict, directory: Path, source: Source) -> tuple[Model, str]:
    """The same by what the student started from, written again, with a line that says so."""
    model = bind_config(c, student_config(c, source), c.student.dtype)
    write_architecture(directory, model)
    path = directory / ARCHITECTURE
    return model, f"{path} was missing or damaged: written again by what the config starts from"


def compiled_steps(setting: Setting, model: Model, shardings: TrainState | None) -> CompiledSteps:
    """The jitted steps of a run, not yet compiled."""
    c, recipe, mesh = setting.config, setting.recipe, setting.inputs.mesh
    teach, _ = teachers.teach_of(c, setting.inputs.teachers, recipe.terms, model, mesh)
    train_step = train_step_of(c, recipe, model, teach, mesh, shardings)
    compared, _ = teachers.measure_of(c, setting.references)
    of = {"block_tokens": c.model.block_tokens, "mesh": mesh}
    return CompiledSteps(train_step, make_eval_step(model, compared, **of))


@contextmanager
def compiled_beside(
    setting: Setting,
    steps_by_shape: dict[str, CompiledSteps],
    waiting: Callable[[], AbstractContextManager],
) -> Iterator[None]:
    """Inside, a thread compiles the training step of the student that pruning will make.

    Pruning leaves cores idle, and the run then finds the program in steps_by_shape. waiting() is
    entered where the program is not ready at the end. Nothing is done for a student whose sizes
    are not known before, nor where several processes compile together.
    """
    with ThreadPoolExecutor(1) as thread:
        compiled = thread.submit(_compilation(setting, steps_by_shape))
        yield
        if not compiled.done():
            with waiting():
                wait([compiled])  # what fails in it fails again, where the loop compiles


def _compilation(
    setting: Setting, steps_by_shape: dict[str, CompiledSteps]
) -> Callable[[], object]:
    """Adds the steps of the student that pruning will make; and gives what compiles one.

    Nothing is traced before that is called.
    """
    c, mesh, source = setting.config, setting.inputs.mesh, setting.inputs.source
    flags = (source.config.local_blocks, source.config.rope_blocks)
    if c.student.init != "prune" or flags != (None, None) or jax.process_count() > 1:
        return lambda: None
    model = bind_config(c, student_config(c, source), c.student.dtype)
    shape = shape_of(c, model)
    if shape in steps_by_shape:
        return lambda: None
    begin = starter(c, setting.recipe)
    abstract, shardings = abstract_state(model, begin, mesh, c.student.shard)
    steps = steps_by_shape[shape] = compiled_steps(setting, model, shardings)
    of = (setting.inputs.teachers, setting.recipe.terms, model, mesh)
    _, teacher_params = teachers.teach_of(c, *of)
    batches = data.training_batches(c, setting.training.rows, mesh, 0)
    _, batch = next(batches)
    batches.close()
    arguments = (abstract, teacher_params, batch, _teaching_key(c))
    return lambda: steps.train_step.lower(*arguments).compile()


def _teaching_key(c: ConfigDict):
    return jax.random.fold_in(jax.random.key(c.seed), TEACHING)


def run_of(
    setting: Setting,
    model: Model,
    state: TrainState,
    steps: CompiledSteps,
    manager: checkpoint.CheckpointManager,
    on_start: Callable[[Params], None],
    writers: tuple[Writer, ...],
) -> Run:
    """Everything the loop needs. on_start(params): called before the first step of a fresh run."""
    c, mesh, found = setting.config, setting.inputs.mesh, setting.inputs.teachers
    _, teacher_params = teachers.teach_of(c, found, setting.recipe.terms, model, mesh)
    _, reference_params = teachers.measure_of(c, setting.references)

    def measure(params: Params, advance: Advance) -> dict[str, float]:
        rows = setting.held_out.rows
        batches = data.held_out_batches(c, rows, mesh)
        count = -(-len(rows) // c.eval.batch_size)
        of = (steps.eval_step, params, reference_params, batches)
        measured = evaluate(*of, count=count, advance=advance)
        choose("checkpoint.metric", c.checkpoint.metric, measured)
        return measured

    return Run(
        workdir=setting.directory,
        options=LoopOptions(
            steps=c.steps,
            eval_every=c.eval.every,
            checkpoint_every=c.checkpoint.every,
            max_skipped=c.optim.max_skipped,
            max_rollbacks=c.optim.max_rollbacks,
            watchdog_s=c.watchdog_s,
        ),
        manager=manager,
        state=state,
        teacher_params=teacher_params,
        key=_teaching_key(c),
        train_step=steps.train_step,
        batches=lambda start: data.training_batches(c, setting.training.rows, mesh, start),
        evaluate=measure,
        tokens_by_source=partial(data.tokens_by_source, setting.training),
        learning_rate=lambda step: float(setting.recipe.learning_rate(step)),
        on_start=on_start,
        writers=writers,
    )
