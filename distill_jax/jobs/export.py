"""The job export: a Hugging Face directory from a run's checkpoints, or from any model."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.data.tokenizer import load_tokenizer
from distill_jax.export import export_student
from distill_jax.models.load import resolve
from distill_jax.progress import Progress, say
from distill_jax.setup.early import check_read
from distill_jax.setup.loss import make_recipe
from distill_jax.setup.models import load_only_model, mesh_of, own_tokenizer, student_tokenizer
from distill_jax.setup.owner import claim
from distill_jax.setup.training import (
    ARCHITECTURE,
    abstract_state,
    open_checkpoints,
    saved_model,
    starter,
)
from distill_jax.types import UserError


def export_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Writes workdir/student: from this run's checkpoints, or else from student.path."""
    mesh = mesh_of(c)
    check_read(c)
    of_run = (directory / ARCHITECTURE).exists()
    if of_run:
        manager = open_checkpoints(c, directory)
        step, metric = manager.latest_step(), c.checkpoint.metric
        if step is None:
            raise UserError(f"{directory} has no checkpoint yet: train first")
        if c.export.checkpoint == "best":
            step = checkpoint.best_step(manager, metric)
        if step is None:
            raise UserError(
                f"no checkpoint of {directory} was saved with {metric}: let eval.every divide"
                " checkpoint.every, or export the latest"
            )
        model = saved_model(c, directory)
        abstract, _ = abstract_state(model, starter(c, make_recipe(c)), mesh)
        with progress.stage("load", f"reading step {step}"):
            params = checkpoint.restore(manager, abstract, step).params
        teacher = None if own_tokenizer(c) else load_tokenizer(resolve(c.teacher.path))
        tokenizer, where = student_tokenizer(c, teacher), f"step {step}"
    else:
        with progress.stage("load", "reading the model") as stage:
            read = load_only_model(c, mesh, stage.advance)
        model, params, tokenizer, where = read.model, read.params, read.tokenizer, read.path
    target = directory / workdir.STUDENT
    with progress.stage("write", "writing the model"):
        export_student(target, model.config, params, tokenizer, dtype=c.export.dtype)
    if jax.process_index() == 0 and not of_run:
        claim(c, directory)
    say(f"wrote {target} from {where}")
