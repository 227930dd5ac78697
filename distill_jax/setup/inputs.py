"""What a training run reads: teachers, tokenizer and text. Runs of one study share it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.data.tokenizer import Tokenizer
from distill_jax.export import check_gguf
from distill_jax.setup import data, early, reading, samples, storing, student, teachers, writing
from distill_jax.setup.hearing import DEAF, Hear
from distill_jax.setup.loss import Recipe, check_experts, make_recipe, terms_of
from distill_jax.setup.models import (
    Source,
    check_tokenizers,
    mesh_of,
    student_tokenizer,
)
from distill_jax.setup.steps import Fit, describe_steps, fit_to_steps, with_steps
from distill_jax.setup.teachers import Teachers


class Inputs(NamedTuple):
    """All that does not depend on the seed or on the terms of the loss."""

    mesh: Mesh
    teachers: Teachers
    source: Source  # of the student
    tokenizer: Tokenizer
    training: storing.Text
    held_out: storing.Text

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a text of the student's."""
        return samples.stop_ids(self.tokenizer)


class Setting(NamedTuple):
    """What the parts of one training run share.

    inputs.teachers teach; references are what held-out text is compared with.
    """

    config: ConfigDict  # with its steps, also where epochs were given
    adapted: tuple[str, ...]  # a line on every default that was made smaller for them
    directory: Path
    recipe: Recipe
    inputs: Inputs
    references: Teachers
    training: data.Data
    held_out: data.Data


def check(c: ConfigDict) -> Mesh:
    """The mesh of a run.

    Raises UserError for what is cheap to see before anything is read.
    """
    recipe = make_recipe(c)
    student.check(c, recipe.terms)
    samples.check(c)
    writing.check(c)
    teachers.check(c, recipe.terms)
    early.check_read(c)
    compares = {c.teacher.path, *c.teacher.more, c.teacher.cache} - {"", teachers.AVERAGE}
    early.check_metric(c, compares=bool(compares))
    return mesh_of(c, "data", "eval")


def inputs_of(
    c: ConfigDict,
    mesh: Mesh,
    found: Teachers,
    source: Source,
    documents: Sequence[reading.Chosen],
    held_out: Sequence[reading.Chosen],
    hear: Hear = DEAF,
) -> Inputs:
    """Reads the student's tokenizer, checks all models, tokenizes the text.

    hear: told how far the tokenizing is.
    """
    student.check_pruned(c, source)
    check_experts(c, terms_of(c), source.config)
    tokenizer = student_tokenizer(c, found.first and found.first.tokenizer)
    models = {"the student": source.config} | {t.path: t.model.config for t in found.loaded[:1]}
    samples.check_room(c, tokenizer, models)
    if c.export.format == "gguf":  # said now, not after the training
        check_gguf(student.student_config(c, source), tokenizer)
    for one in found.loaded[1:]:
        check_tokenizers(tokenizer, one.tokenizer)
    vocab = min(m.vocab for m in (source.config, *(t.model.config for t in found.loaded)))
    texts = [storing.tokenized(some, tokenizer, vocab, hear) for some in (documents, held_out)]
    return Inputs(mesh, found, source, tokenizer, *texts)


def setting_of(
    c: ConfigDict,
    directory: Path,
    inputs: Inputs,
    references: Teachers | None = None,
    fit: Fit = fit_to_steps,
) -> Setting:
    """Packs the rows of a run's seed, with cached signals if any, and makes the recipe.

    references: default the teachers. fit: what fits defaults to the steps of config.epochs. Raises
    UserError where a cache lacks a row that the run reads.
    """
    found, references = inputs.teachers, references or inputs.teachers
    training = data.packed(c, inputs.training, seed=c.seed)
    c, adapted = with_steps(c, len(training.rows), fit)
    if found.cache is not None:
        read = data.rows_read(c, training.rows)
        training = data.with_cache(c, found.cache, inputs.tokenizer, found.first, training, read)
    held_out = held_out_of(c, inputs, references)
    return Setting(c, adapted, directory, make_recipe(c), inputs, references, training, held_out)


def held_out_of(c: ConfigDict, inputs: Inputs, references: Teachers) -> data.Data:
    """The held-out rows, with the signals of the references' cache if they have one."""
    held_out = data.packed(c, inputs.held_out, seed=None)
    if references.cache is None:
        return held_out
    every = range(len(held_out.rows))
    return data.with_cache(c, references.cache, inputs.tokenizer, references.first, held_out, every)


def description(setting: Setting) -> str:
    """What a run will read, in lines."""
    c, cache = setting.config, setting.inputs.teachers.cache
    lines = [f"teacher cache: {cache.manifest.kind} signals"] if cache else []
    lines += [
        f"training text: {data.description(setting.training)}",
        describe_steps(c, len(setting.training.rows)),
        *setting.adapted,
        f"held-out text: {data.description(setting.held_out)}",
    ]
    if not c.optim.learning_rate and (c.optim.name == "adamw" or not c.optim.muon_learning_rate):
        lines.append("config.optim.learning_rate is 0: the student stays as it is")
    return "\n".join(lines)
