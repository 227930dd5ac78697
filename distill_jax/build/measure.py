"""What every arm is measured by: one teacher, one held-out text, one set of prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.build import data, samples, teachers
from distill_jax.build.inputs import Inputs, held_out_of
from distill_jax.build.models import Loaded, count, load_model
from distill_jax.build.teachers import Teachers
from distill_jax.build.terms import terms_of
from distill_jax.evals.behaviour import Ngrams, index_ngrams
from distill_jax.evals.fidelity import aggregate
from distill_jax.evals.records import collect, make_record_step
from distill_jax.evals.records_file import Records, write_records
from distill_jax.evals.slices import add_slices, registered, training_counts
from distill_jax.sharding import batch_ways
from distill_jax.study import behaviour
from distill_jax.study.harness import make_harness_model, score
from distill_jax.study.prompts import Prompts, prompts_of

TOKENS, BEHAVIOUR = "tokens.parquet", "behaviour.json"


class Judge(NamedTuple):
    """What the models of a study, or one model alone, are measured by.

    programs: compiled once by what they measure and the shape of the model.
    """

    mesh: Mesh
    teachers: Teachers
    held_out: data.Data
    counts_V: np.ndarray  # of training labels
    lengths: np.ndarray  # tokens of each held-out document
    labels: tuple[str, ...]
    slices: tuple[str, ...]
    prompts: Prompts | None
    training: Ngrams
    stop_ids: tuple[int, ...]
    programs: dict[Any, Any]


def judge_of(c: ConfigDict, inputs: Inputs) -> Judge:
    """Everything that does not depend on the model that is measured."""
    found, text = inputs.teachers, inputs.held_out.tokenized
    counts_V = training_counts(inputs.training.tokenized)
    lengths = np.diff(text.offsets)
    stop_ids = samples.stop_ids(inputs.tokenizer, inputs.token_ids)
    prompts = None
    if c.study.prompts:
        prompts = prompts_of(
            text,
            count=c.study.prompts,
            prompt_tokens=c.study.prompt_tokens,
            new_tokens=c.study.new_tokens,
            stop_ids=stop_ids,
            max_positions=inputs.source.config.max_positions,
        )
    names = registered(
        text, training_counts_V=counts_V, with_teacher=teachers.measure_of(c, found)[0] is not None
    )
    training = inputs.training.tokenized
    return Judge(
        inputs.mesh,
        found,
        held_out_of(c, inputs, found),
        counts_V,
        lengths,
        text.labels,
        tuple(names),
        prompts,
        index_ngrams(training.tokens, training.offsets),
        stop_ids,
        {},
    )


def read_cache(c: ConfigDict, judge: Judge, inputs: Inputs, cache: str) -> Judge:
    """The same judge, whose teacher does not run any more because a cache has what it says."""
    if not cache:
        return judge
    mine = c.copy_and_resolve_references()
    mine.teacher.cache = cache
    found = teachers.read_cache(mine, judge.teachers, terms_of(mine), judge.mesh)
    return judge._replace(teachers=found, held_out=held_out_of(mine, inputs, found))


def measure_arm(c: ConfigDict, where: Path, judge: Judge) -> Iterator[str]:
    """Measures the exported student of an arm's workdir, as it would be served.

    Writes the per-token records and the behaviour; yields a line and returns the numbers.
    """
    student = load_model(c, str(where / workdir.STUDENT), c.student.dtype, judge.mesh)
    records = measure_tokens(c, student, judge)
    written = measure_texts(c, student, judge)
    if jax.process_index() == 0:
        write_records(where / TOKENS, records)
        workdir.write_json(where / BEHAVIOUR, written)
    metrics = aggregate(records.columns) | benchmarks(c, student)
    yield "held-out: " + "  ".join(
        f"{name} {metrics[name]:.4g}"
        for name in ("nll", "forward_kl", "agreement_top1", "ece")
        if metrics.get(name) is not None
    )
    return {
        "parameters": count(student.params),
        "metrics": metrics,
        "behaviour": written["metrics"],
    }


def measure_tokens(c: ConfigDict, subject: Loaded, judge: Judge) -> Records:
    """One pass over the held-out text: the records of every counted token."""
    key = ("tokens", subject.model.config)
    if key not in judge.programs:
        teach, _ = teachers.measure_of(c, judge.teachers)
        size = c.model.block_tokens * batch_ways(judge.mesh)
        judge.programs[key] = make_record_step(subject.model, teach, block_tokens=size)
    _, teacher_params = teachers.measure_of(c, judge.teachers)
    columns = collect(
        judge.programs[key],
        subject.params,
        teacher_params,
        data.held_out_batches(c, judge.held_out.rows, judge.mesh),
        judge.held_out.rows,
    )
    return add_slices(
        columns,
        training_counts_V=judge.counts_V,
        document_lengths=judge.lengths,
        document_labels=judge.labels,
    )


def measure_texts(c: ConfigDict, subject: Loaded, judge: Judge) -> dict[str, Any]:
    """What a model writes after the prompts, and its measures; no prompts, no measures."""
    if judge.prompts is None:
        return {"metrics": {}, "texts": []}
    teacher = judge.teachers.first
    if teacher is not None and teacher.params is subject.params:
        teacher = None
    key = ("texts", subject.model.config, teacher is not None)
    if key not in judge.programs:
        judge.programs[key] = behaviour.make_programs(
            subject.model,
            teacher and teacher.model,
            max_new_tokens=c.study.new_tokens,
            stop_ids=judge.stop_ids,
            cache_dtype=c.model.compute_dtype,
            block_tokens=c.model.block_tokens,
        )
    measured = behaviour.measure_behaviour(
        judge.programs[key],
        subject.params,
        teacher and teacher.params,
        prompts=judge.prompts,
        training=judge.training,
        batch_size=c.generate.batch_size,
        seed=c.seed,
    )
    decode = subject.tokenizer.backend.decode
    texts = [
        {"prompt": decode(prompt), "text": decode(text), "reference": decode(reference)}
        for prompt, text, reference in zip(
            judge.prompts.prompts, measured.generated, judge.prompts.references, strict=True
        )
    ]
    return {"metrics": measured.metrics, "texts": texts}


def benchmarks(c: ConfigDict, subject: Loaded) -> dict[str, float]:
    """What lm-evaluation-harness gives for config.eval.tasks, by `TASK/METRIC`.

    Raises UserError where the harness is not installed or does not know a task.
    """
    if not c.eval.tasks:
        return {}
    runs = make_harness_model(
        subject.model,
        subject.params,
        subject.tokenizer,
        batch_size=c.eval.batch_size,
        stop_ids=samples.stop_ids(subject.tokenizer, subject.token_ids),
        cache_dtype=c.model.compute_dtype,
        block_tokens=c.model.block_tokens,
    )
    return score(
        runs,
        tuple(c.eval.tasks),
        include_path=c.eval.task_path or None,
        limit=c.eval.task_limit or None,
    )
