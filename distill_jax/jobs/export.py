"""The job export: a Hugging Face directory from a run's checkpoints, or from any model."""

from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.data.tokenizer import load_tokenizer
from distill_jax.export import export_student
from distill_jax.models.binding import Model
from distill_jax.models.load import resolve
from distill_jax.progress import Progress, say
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
    """Writes workdir/student: from this run's checkpoints, or else from student.path."""
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
            read = load_only_model(c, mesh, stage.advance)
        model, params, tokenizer, where = read.model, read.params, read.tokenizer, read.path
    target = directory / workdir.STUDENT
    with progress.stage("write", "writing the model"):
        export_student(target, model.config, params, tokenizer, dtype=c.export.dtype)
    if jax.process_index() == 0 and of_run:
        workdir.write_exported(directory, step)
    elif jax.process_index() == 0:
        claim(c, directory)
    say(f"wrote {target} from {where}")


def _read_checkpoint(
    c: ConfigDict, directory: Path, mesh: Mesh, progress: Progress
) -> tuple[int, Model, Params, str]:
    """The step, decoder and parameters of export.checkpoint, and what it is, in words."""
    manager, metric = open_checkpoints(c, directory), c.checkpoint.metric
    try:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{directory} has no checkpoint yet: train first")
        where = f"step {step}"
        if c.export.checkpoint == "best":
            values = checkpoint.metric_values(manager, metric)
            if not values:
                raise UserError(
                    f"no checkpoint of {directory} was saved with {metric}: let eval.every divide"
                    " checkpoint.every, or export the latest"
                )
            step = checkpoint.lowest(values)
            among = ", ".join(f"{value:.4g} at {other}" for other, value in sorted(values.items()))
            where = f"step {step}, the lowest {metric} of the checkpoints with one ({among})"
        model = saved_model(c, directory)
        if model is None:
            with progress.stage("load", "reading what the student started from") as stage:
                teacher = None if c.student.path else load_only_model(c, mesh, stage.advance)
                source = student_source(c, teacher, stage.advance)
            model, said = rebuilt_model(c, directory, source)
            say(said)
        abstract, _ = abstract_state(model, starter(c, make_recipe(c)), mesh)
        with progress.stage("load", f"reading step {step}"):
            return step, model, checkpoint.restore(manager, abstract, step).params, where
    finally:
        manager.close()
