"""What a training run reads: teachers, tokenizer and text. Runs of one study share it."""

from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.data.documents import Document
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.setup import data, samples, student, teachers
from distill_jax.setup.loss import Recipe, make_recipe
from distill_jax.setup.models import (
    Source,
    check_tokenizers,
    student_source,
    student_tokenizer,
)
from distill_jax.setup.teachers import Teachers
from distill_jax.sharding import check_batch, make_mesh

# Keys that change how a run is shown and guarded, and not what it computes.
UNCOUNTED = {"log.every", "log.tensorboard", "log.wandb_project", "watchdog_s", "data.prefetch"}


class Inputs(NamedTuple):
    """All that does not depend on the seed or on the terms of the loss."""

    mesh: Mesh
    teachers: Teachers
    source: Source  # of the student
    tokenizer: Tokenizer
    training: data.Text
    held_out: data.Text

    @property
    def token_ids(self) -> dict[str, Any]:
        """The student's special tokens, or else the teacher's."""
        first = self.teachers.first
        return self.source.read.token_ids if self.source.read else first.token_ids if first else {}


class Setting(NamedTuple):
    """What the parts of one training run share.

    teachers are those that teach; references are what held-out text is compared with.
    """

    config: ConfigDict
    directory: Path
    mesh: Mesh
    recipe: Recipe
    teachers: Teachers
    references: Teachers
    source: Source
    tokenizer: Tokenizer
    token_ids: dict[str, Any]
    stop_ids: tuple[int, ...]
    training: data.Data
    held_out: data.Data


def check(c: ConfigDict) -> tuple[Recipe, Mesh]:
    """The loss and optimizer of a run, and its mesh.

    Raises UserError for what is cheap to see before anything is read.
    """
    recipe = make_recipe(c)
    student.check(c)
    samples.check(c)
    teachers.check(c, recipe.terms)
    mesh = make_mesh(c.mesh.data, c.mesh.fsdp, c.mesh.tensor)
    check_batch("data.batch_size", c.data.batch_size, c.data.microbatches, mesh)
    check_batch("eval.batch_size", c.eval.batch_size, 1, mesh)
    return recipe, mesh


def inputs_of(
    c: ConfigDict,
    mesh: Mesh,
    found: Teachers,
    documents: list[Document],
    held_out: list[Document],
) -> Inputs:
    """Reads the student's architecture and tokenizer, checks all models, tokenizes the text."""
    source = student_source(c, found.first)
    tokenizer = student_tokenizer(c, found.first)
    for one in found.loaded[1:]:
        check_tokenizers(tokenizer, one)
    vocab = min(m.vocab for m in (source.config, *(t.model.config for t in found.loaded)))
    texts = [data.tokenized(some, tokenizer, vocab) for some in (documents, held_out)]
    return Inputs(mesh, found, source, tokenizer, *texts)


def setting_of(
    c: ConfigDict,
    recipe: Recipe,
    directory: Path,
    inputs: Inputs,
    references: Teachers | None = None,
) -> Setting:
    """The rows of a run's seed with what a cache has for them; references: the teachers by default.

    Raises UserError where a cache lacks a row that the run reads.
    """
    references, ids = references or inputs.teachers, inputs.token_ids
    training = data.packed(c, inputs.training, seed=c.seed)
    if inputs.teachers.cache is not None:
        read = data.rows_read(c, training.rows)
        training = data.with_cache(
            c, inputs.teachers.cache, inputs.tokenizer, inputs.teachers.first, training, read
        )
    held_out = held_out_of(c, inputs, references)
    return Setting(
        c, directory, inputs.mesh, recipe, inputs.teachers, references, inputs.source,
        inputs.tokenizer, ids, samples.stop_ids(inputs.tokenizer, ids), training, held_out,
    )  # fmt: skip


def held_out_of(c: ConfigDict, inputs: Inputs, references: Teachers) -> data.Data:
    """The held-out rows, with what a cache of the references has for them."""
    held_out = data.packed(c, inputs.held_out, seed=None)
    if references.cache is None:
        return held_out
    every = range(len(held_out.rows))
    return data.with_cache(c, references.cache, inputs.tokenizer, references.first, held_out, every)


def description(setting: Setting) -> str:
    """What a run will read, in lines."""
    lines = [
        f"training text: {data.description(setting.training)}",
        f"held-out text: {data.description(setting.held_out)}",
    ]
    if setting.teachers.cache is not None:
        lines.insert(0, f"teacher cache: {setting.teachers.cache.manifest.kind} signals")
    return "\n".join(lines)
