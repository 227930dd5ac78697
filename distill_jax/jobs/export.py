"""The job export: a Hugging Face directory, or a GGUF file, of a run's checkpoint or any model."""

from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.checkpoint_files import Damaged
from distill_jax.data.tokenizer import load_tokenizer
from distill_jax.jobs import student_files
from distill_jax.models.binding import Model
from distill_jax.models.load import resolve
from distill_jax.progress import Progress, say
from distill_jax.setup.bits import wide_dtype
from distill_jax.setup.early import check_read
from distill_jax.setup.loss import make_recipe
from distill_jax.setup.models import (
    load_only_model,
    mesh_of,
    own_tokenizer,
    student_source,
    student_tokenizer,
)
from distill_jax.setup.owner import claim, refuse_study
from distill_jax.setup.training import (
    ARCHITECTURE,
    abstract_state,
    open_checkpoints,
    rebuilt_model,
    saved_model,
    starter,
)
from distill_jax.types import Params, UserError


def export_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Writes workdir/student, or student.gguf, of a checkpoint here or else of student.path."""
    mesh = mesh_of(c)
    check_read(c)
    of_run = (directory / ARCHITECTURE).exists() or workdir.last_checkpoint(directory) > 0
    if of_run:
        step, model, params, where = _read_checkpoint(c, directory, mesh, progress)
        teacher = None if own_tokenizer(c) else load_tokenizer(resolve(c.teacher.path))
        tokenizer = student_tokenizer(c, teacher)
    else:
        refuse_study(directory)
        with progress.stage("load", "reading the model") as stage:
            read = load_only_model(_wide(c), mesh, stage.advance)
        model, params, tokenizer, where = read.model, read.params, read.tokenizer, read.path
    name = student_files.names(c)[-1]
    target = directory / name
    with progress.stage("write", "writing the model"):
        student_files.write_one(c, target, model, params, tokenizer)
    if jax.process_index() == 0 and of_run:
        workdir.write_exported(directory, step, name)
    elif jax.process_index() == 0:
        claim(c, directory)
    say(f"wrote {target} from {where}")


def _wide(c: ConfigDict) -> ConfigDict:
    """The config with a teacher.dtype that is no more narrow than the weights that are written."""
    c = c.copy_and_resolve_references()
    c.teacher.dtype = wide_dtype(c, c.teacher.dtype)
    return c


def _read_checkpoint(
    c: ConfigDict, directory: Path, mesh: Mesh, progress: Progress
) -> tuple[int, Model, Params, str]:
    """The step, decoder and parameters of export.checkpoint, and what it is, in words.

    Raises UserError where that checkpoint is damaged; this job only reads, and sets none aside.
    """
    manager = open_checkpoints(c, directory)
    try:
        step, where = _chosen(c, directory, manager)
        model = saved_model(c, directory)
        if model is None:
            with progress.stage("load", "reading what the student started from") as stage:
                teacher = None if c.student.path else load_only_model(c, mesh, stage.advance)
                source = student_source(c, teacher)
            model, said = rebuilt_model(c, directory, source)
            say(said)
        abstract, _ = abstract_state(model, starter(c, make_recipe(c)), mesh, c.student.shard)
        with progress.stage("load", f"reading step {step}"):
            try:
                state = checkpoint.restore(manager, abstract, step, say)
            except Damaged as error:
                remedy = "no other is good: put a copy of one back, or train again elsewhere"
                if good := ", ".join(map(str, checkpoint.good_steps(manager, abstract))):
                    remedy = f"--config.export.checkpoint=STEP exports a good one ({good})"
                raise UserError(
                    f"the checkpoint of step {step} of {directory} is damaged ({error}): {remedy}"
                ) from None
        return step, model, state.params, where
    finally:
        manager.close()


def _chosen(
    c: ConfigDict, directory: Path, manager: checkpoint.CheckpointManager
) -> tuple[int, str]:
    """The step of export.checkpoint, and what it is, in words."""
    steps, metric, asked = manager.all_steps(), c.checkpoint.metric, c.export.checkpoint
    if not steps:
        raise UserError(f"{directory} has no checkpoint yet: train first")
    if asked == "latest":
        return steps[-1], f"step {steps[-1]}"
    if asked != "best":
        if int(asked) not in steps:
            has = ", ".join(map(str, steps))
            raise UserError(
                f"config.export.checkpoint is {asked}, and {directory} has a checkpoint of no such"
                f" step: use one of {has}"
            )
        return int(asked), f"step {int(asked)}"
    for step, reason in checkpoint.flaws(manager).items():
        say(f"warning: step {step} is not looked at: its checkpoint is damaged ({reason})")
    values = checkpoint.metric_values(manager, metric)
    if not values:
        raise UserError(
            f"no checkpoint of {directory} was saved with {metric}: let eval.every divide"
            " checkpoint.every, or export the latest"
        )
    step = checkpoint.lowest(values)
    among = ", ".join(f"{value:.4g} at {other}" for other, value in sorted(values.items()))
    return step, f"step {step}, the lowest {metric} of the checkpoints with one ({among})"
