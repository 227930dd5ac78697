"""A model writes after held-out prompts, and is measured by what it writes. Shapes: types.py."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from distill_jax.evals.exposure import EXPOSURE, DivergenceStep, exposure_gap, make_divergence_step
from distill_jax.evals.prompts import Prompts
from distill_jax.evals.text_measures import TEXT_MEASURES, Ids, Ngrams, Sample, text_metrics
from distill_jax.models.binding import Model
from distill_jax.sampling import Continue, generate, make_continue
from distill_jax.types import Params


class ContinuationPrograms(NamedTuple):
    """What an architecture compiles once; models that differ in parameters alone share it.

    write            greedy, the texts that are measured
    draw             texts at temperature 1, for the exposure gap
    divergence_step  None without a teacher
    """

    write: Continue
    draw: Continue
    divergence_step: DivergenceStep | None


class MeasuredTexts(NamedTuple):
    """Measures by name (None where absent), the texts as token ids, and the verifier's scores."""

    metrics: dict[str, float | None]
    generated: list[list[int]]
    scores: list[float] | None


def make_continuation_programs(
    model: Model,
    teacher: Model | None,
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    cache_dtype: str = "float32",
    block_tokens: int = 256,
) -> ContinuationPrograms:
    """The programs that measure_continuations runs. `teacher`: for the exposure gap, or None."""
    write, draw = (
        make_continue(
            model,
            max_new_tokens=max_new_tokens,
            temperature=t,
            stop_ids=stop_ids,
            cache_dtype=cache_dtype,
        )
        for t in (0.0, 1.0)
    )
    step = teacher and make_divergence_step(model, teacher, block_tokens=block_tokens)
    return ContinuationPrograms(write, draw, step)


def measure_continuations(
    programs: ContinuationPrograms,
    params: Params,
    teacher_params: Params | None = None,
    *,
    prompts: Prompts,
    training: Ngrams | None = None,
    verify: Callable[[int, Ids], float] | None = None,
    batch_size: int = 8,
    seed: int = 0,
) -> MeasuredTexts:
    """Everything in TEXT_MEASURES, and what is in EXPOSURE where there is a teacher.

    verify(index of the prompt, generated ids) -> score from 0 to 1. The same seed gives the same
    texts, whatever the batch size. Raises UserError where a prompt does not fit the model.
    """
    write_key, draw_key = (jax.random.fold_in(jax.random.key(seed), i) for i in range(2))
    texts = lambda program, key: generate(
        program, params, prompts.prompts, key, batch_size=batch_size
    )
    generated, limit = texts(programs.write, write_key), programs.write.max_new_tokens
    scores = None if verify is None else [verify(i, ids) for i, ids in enumerate(generated)]
    sample = Sample(
        generated=generated,
        limit=limit,
        references=prompts.references,
        answers=prompts.answers,
        scores=scores,
        training=training,
    )
    exposure = dict.fromkeys(EXPOSURE)
    if programs.divergence_step is not None and teacher_params is not None:
        exposure = exposure_gap(
            programs.divergence_step,
            params,
            teacher_params,
            prompts=prompts.prompts,
            own=texts(programs.draw, draw_key),
            data=prompts.references,
            limit=limit,
            batch_size=batch_size,
        )
    return MeasuredTexts(text_metrics(sample) | exposure, generated, scores)


def data_metrics(prompts: Prompts, limit: int, training: Ngrams | None) -> dict[str, float | None]:
    """The same measures of the references: the values that data of this kind has."""
    data = prompts.references
    return text_metrics(Sample(data, limit, data, prompts.answers, training=training))


def behaviour_section(
    measured: dict[str, dict[str, float | None]], *, prompts: int, new_tokens: int
) -> dict[str, Any]:
    """The part `behaviour` of report.json: one line per model, and what each measure means.

    A measure that no model has is left out of both.
    """
    known = {name: (m.what, m.better) for name, m in TEXT_MEASURES.items()} | EXPOSURE
    present = [
        name for name in known if any(row.get(name) is not None for row in measured.values())
    ]
    return {
        "models": [
            {"model": model} | {name: row.get(name) for name in present}
            for model, row in measured.items()
        ],
        "metrics": [
            dict(zip(("name", "what", "better"), (name, *known[name]), strict=True))
            for name in present
        ],
        "prompts": prompts,
        "new_tokens": new_tokens,
    }
