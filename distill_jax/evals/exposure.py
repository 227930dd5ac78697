"""The exposure gap: how much further a student is from its teacher on its own text than on data.

Shapes: types.py.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from distill_jax.evals.likelihood import make_eval_step
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

    After prompt i the first places[i] predictions count. Labels are left at 0: a divergence does
    not look at them.
    """
    longest = max(map(len, prompts)) + limit - 1
    length = -(-longest // PROMPT_STEP) * PROMPT_STEP
    rows = -(-len(prompts) // batch_size) * batch_size
    tokens_BT = np.zeros((rows, length), np.int32)
    segment_BT = np.zeros((rows, length), np.int32)
    weight_BT = np.zeros((rows, length), np.float32)
    for row, (prompt, text, count) in enumerate(zip(prompts, texts, places, strict=True)):
        if count:
            ids = [*prompt, *text[: count - 1]]
            tokens_BT[row, : len(ids)] = ids
            segment_BT[row, : len(ids)] = 1
            weight_BT[row, len(ids) - count : len(ids)] = 1
    position_BT = np.ascontiguousarray(
        np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    )
    labels_BT = np.zeros_like(tokens_BT)
    whole = Batch(tokens_BT, labels_BT, weight_BT, segment_BT, position_BT, segment_BT - 1)
    cut = lambda start: jax.tree.map(lambda x: x[start : start + batch_size], whole)
    return [cut(start) for start in range(0, rows, batch_size)]
