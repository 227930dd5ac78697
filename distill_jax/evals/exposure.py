"""The exposure gap: how much further a student is from its teacher on its own text than on data.

Shapes: types.py.
"""

from collections.abc import Callable, Sequence

import jax

from distill_jax.evals.likelihood import make_eval_step
from distill_jax.evals.log_likelihoods import padded_batch
from distill_jax.models.binding import Model
from distill_jax.objective import live_teacher
from distill_jax.sampling import PROMPT_STEP
from distill_jax.types import Batch, Mean, Params

Ids = Sequence[int]
# (student_params, teacher_params, batch) -> the divergence of student and teacher, not divided yet
DivergenceStep = Callable[[Params, Params, Batch], Mean]

# What exposure_gap gives: name -> what it is, which values are better.
EXPOSURE: dict[str, tuple[str, str]] = {
    "kl_own": ("divergence from the teacher on the model's own text, nats per token", "lower"),
    "kl_data": ("the same on the data after the same prompts", "lower"),
    "exposure_gap": ("their difference: what the model's own text costs", "lower"),
}


def make_divergence_step(student: Model, teacher: Model, *, block_tokens: int) -> DivergenceStep:
    """Builds divergence_step(params, teacher_params, batch) -> KL(teacher || student), jitted.

    At temperature 1. Both models run.
    """
    names = ("forward_kl",)
    eval_step = make_eval_step(
        student, live_teacher(teacher), names=names, block_tokens=block_tokens
    )

    @jax.jit
    def divergence_step(params, teacher_params, batch):
        return eval_step(params, (teacher_params,), batch)["forward_kl"]

    return divergence_step


def exposure_gap(
    divergence_step: DivergenceStep,
    params: Params,
    teacher_params: Params,
    *,
    prompts: Sequence[Ids],
    own: Sequence[Ids],
    data: Sequence[Ids],
    limit: int,
    batch_size: int,
) -> dict[str, float | None]:
    """Mean divergence on the model's own continuations, on the data's, and the difference.

    For each prompt the same number of positions counts for both continuations, that of the shorter
    one, so that no prompt weighs more in one mean. A generated text shorter than `limit` has
    stopped: the position of its stop token counts, too. All None where nothing counts.
    """
    places = [
        min(len(mine) + (len(mine) < limit), len(theirs))
        for mine, theirs in zip(own, data, strict=True)
    ]
    if not sum(places):
        return dict.fromkeys(EXPOSURE)
    sides = {}
    for name, texts in (("kl_own", own), ("kl_data", data)):
        total, count = 0.0, 0.0  # float64 on the host
        for batch in continuation_batches(prompts, texts, places, limit, batch_size):
            part = divergence_step(params, teacher_params, batch)
            total, count = total + float(part.total), count + float(part.count)
        sides[name] = total / count
    return sides | {"exposure_gap": sides["kl_own"] - sides["kl_data"]}


def continuation_batches(
    prompts: Sequence[Ids], texts: Sequence[Ids], places: Sequence[int], limit: int, batch_size: int
) -> list[Batch]:
    """Prompts with their texts, as rows of one shape.

    After prompt i the first places[i] predictions count. A divergence does not look at labels.
    """
    longest = max(map(len, prompts)) + limit - 1
    length = -(-longest // PROMPT_STEP) * PROMPT_STEP
    rows = [
        ([*prompt, *text[: count - 1], 0] if count else [], count)
        for prompt, text, count in zip(prompts, texts, places, strict=True)
    ]
    starts = range(0, len(rows), batch_size)
    return [padded_batch(rows[i : i + batch_size], batch_size, length) for i in starts]
