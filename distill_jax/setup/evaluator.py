"""The teacher, held-out text and prompts that every model of a study is measured with."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from distill_jax.config import flatten
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.diagnosis.overrides import AdviceInputs
from distill_jax.evals import continuations
from distill_jax.evals.lm_eval_model import make_lm_eval_model
from distill_jax.evals.lm_eval_tasks import TaskScores, evaluate_tasks
from distill_jax.evals.prompts import Prompts, prompts_of
from distill_jax.evals.records import collect, make_record_step
from distill_jax.evals.records_file import Records
from distill_jax.evals.slices import add_slices, registered, training_counts
from distill_jax.evals.text_measures import Ngrams, index_ngrams
from distill_jax.setup import data, samples, teachers
from distill_jax.setup.inputs import Inputs, held_out_of
from distill_jax.setup.loss import terms_of
from distill_jax.setup.models import Loaded
from distill_jax.setup.scorer import Scorer, load_scorer
from distill_jax.setup.teachers import Teachers
from distill_jax.types import Advance, silent


class Continuation(NamedTuple):
    """A prompt, the model's continuation, the data's continuation, and the scorer's score."""

    prompt: str
    text: str
    reference: str
    score: float | None = None


class Written(NamedTuple):
    """What a model wrote after the prompts: measures by name, and the texts themselves."""

    metrics: Mapping[str, float | None] = {}
    texts: tuple[Continuation, ...] = ()

    def json(self) -> dict[str, Any]:
        """As behaviour.json has it."""
        return {"metrics": dict(self.metrics), "texts": [text._asdict() for text in self.texts]}


def read_written(path: Path) -> Written:
    """What was written as Written.json; nothing where there is no such file."""
    if not path.exists():
        return Written()
    values = json.loads(path.read_text())
    return Written(values["metrics"], tuple(Continuation(**text) for text in values["texts"]))


class Evaluator(NamedTuple):
    """What models are measured with; programs: compiled ones, by purpose and architecture."""

    inputs: Inputs
    teachers: Teachers  # those of the inputs, or a cache of them
    held_out: data.Data
    counts_V: np.ndarray  # of training labels
    slices: tuple[str, ...]
    prompts: Prompts | None
    training: Ngrams
    scorer: Scorer | None
    programs: dict[Any, Any]


def evaluator_of(c: ConfigDict, inputs: Inputs) -> Evaluator:
    """Everything that does not depend on the model that is measured."""
    found, text, training = inputs.teachers, inputs.held_out.tokenized, inputs.training.tokenized
    counts_V, prompts = training_counts(training), None
    if c.study.prompts:
        prompts = prompts_of(
            text,
            count=c.study.prompts,
            prompt_tokens=c.study.prompt_tokens,
            new_tokens=c.study.new_tokens,
            stop_ids=inputs.stop_ids,
            max_positions=inputs.source.config.max_positions,
        )
    taught = teachers.measure_of(c, found)[0] is not None
    return Evaluator(
        inputs,
        found,
        held_out_of(c, inputs, found),
        counts_V,
        registered(text, training_counts_V=counts_V, with_teacher=taught),
        prompts,
        index_ngrams(np.asarray(training.tokens), training.offsets),
        load_scorer(c.study.scorer) if c.study.scorer else None,
        {},
    )


def with_cache(c: ConfigDict, evaluator: Evaluator, cache: str) -> Evaluator:
    """The same evaluator, which reads the teacher's outputs from a cache where there is one."""
    if not cache:
        return evaluator
    mine, inputs = c.copy_and_resolve_references(), evaluator.inputs
    mine.teacher.cache = cache
    found = teachers.read_cache(mine, evaluator.teachers, terms_of(mine), inputs.mesh)
    return evaluator._replace(teachers=found, held_out=held_out_of(mine, inputs, found))


def measure_tokens(
    c: ConfigDict, subject: Loaded, evaluator: Evaluator, advance: Advance = silent
) -> Records:
    """One pass over the held-out text: the records of every counted token."""
    key = ("tokens", subject.model.config)
    teach, teacher_params = teachers.measure_of(c, evaluator.teachers)
    mesh, text = evaluator.inputs.mesh, evaluator.inputs.held_out.tokenized
    if key not in evaluator.programs:
        of = {"block_tokens": c.model.block_tokens, "mesh": mesh}
        evaluator.programs[key] = make_record_step(subject.model, teach, **of)
    columns = collect(
        evaluator.programs[key],
        subject.params,
        teacher_params,
        data.held_out_batches(c, evaluator.held_out.rows, mesh),
        evaluator.held_out.rows,
        advance=advance,
    )
    return add_slices(
        columns,
        training_counts_V=evaluator.counts_V,
        document_lengths=np.diff(text.offsets),
        document_labels=text.labels,
    )


def measure_texts(c: ConfigDict, subject: Loaded, evaluator: Evaluator) -> Written:
    """What a model writes after the prompts, with its measures; nothing without prompts."""
    if evaluator.prompts is None:
        return Written()
    teacher = evaluator.teachers.first
    if teacher is not None and teacher.params is subject.params:
        teacher = None
    key = ("texts", subject.model.config, teacher is not None)
    if key not in evaluator.programs:
        evaluator.programs[key] = continuations.make_continuation_programs(
            subject.model,
            teacher and teacher.model,
            max_new_tokens=c.study.new_tokens,
            stop_ids=evaluator.inputs.stop_ids,
            cache_dtype=c.model.compute_dtype,
            block_tokens=c.model.block_tokens,
        )
    decode, prompts = subject.tokenizer.backend.decode, evaluator.prompts
    shown = [
        tuple(map(decode, pair)) for pair in zip(prompts.prompts, prompts.references, strict=True)
    ]

    def verify(i: int, ids: Sequence[int]) -> float:
        prompt, reference = shown[i]
        return evaluator.scorer(prompt, decode(ids), reference)

    measured = continuations.measure_continuations(
        evaluator.programs[key],
        subject.params,
        teacher and teacher.params,
        prompts=prompts,
        verify=verify if evaluator.scorer else None,
        training=evaluator.training,
        batch_size=c.generate.batch_size,
        seed=c.seed,
    )
    scores = measured.scores or [None] * len(shown)
    texts = tuple(
        Continuation(prompt, decode(ids), reference, score)
        for (prompt, reference), ids, score in zip(shown, measured.generated, scores, strict=True)
    )
    return Written(measured.metrics, texts)


def task_scores(c: ConfigDict, subject: Loaded, advance: Advance = silent) -> TaskScores:
    """What lm-evaluation-harness gives for config.eval.tasks: numbers, and each example's score.

    Raises UserError where the harness is not installed or does not know a task.
    """
    if not c.eval.tasks:
        return TaskScores({}, ())
    runs = make_lm_eval_model(
        subject.model,
        subject.params,
        subject.tokenizer,
        batch_size=c.eval.batch_size,
        stop_ids=samples.stop_ids(subject.tokenizer),
        cache_dtype=c.model.compute_dtype,
        block_tokens=c.model.block_tokens,
        advance=advance,
    )
    return evaluate_tasks(
        runs,
        tuple(c.eval.tasks),
        include_path=c.eval.task_path or None,
        limit=c.eval.task_limit or None,
    )


def text_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    """The text of one token, special ones as they are written."""
    return lambda token: tokenizer.backend.decode([token], skip_special_tokens=False)


def advice_inputs(
    c: ConfigDict, evaluator: Evaluator, steps: int, flops_per_step: float | None
) -> AdviceInputs:
    """What advice depends on beside a report. steps, flops_per_step: of the distilled student."""
    cache, first = evaluator.teachers.cache, evaluator.teachers.first
    return AdviceInputs(
        config=flatten(c),
        steps=steps,
        flops_per_step=flops_per_step,
        targets=cache.manifest.kind if cache else c.teacher.targets,
        cache_dtype=cache and cache.manifest.form["dtype"],
        teacher_blocks=first and first.model.config.blocks,
        teacher_neurons=first and first.model.config.neurons,
    )
