"""Held-out likelihood, and how near a student is to its teacher: means over all counted tokens."""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
from jax.sharding import Mesh

from distill_jax.evals.token_values import check_counted, make_token_values
from distill_jax.losses.tokens import finish, merge, weighted_mean
from distill_jax.models.binding import Model
from distill_jax.objective import Teach
from distill_jax.types import COMPILING, Advance, Batch, Mean, Params, silent

# The values (token_values.py) that training logs, some of them only where there is a teacher.
OF_TEACHER = ("teacher_nll", "forward_kl", "reverse_kl", "agreement_top1")
LOGGED = ("nll", "accuracy_top1", *OF_TEACHER)

EvalStep = Callable[[Params, tuple[Params, ...], Batch], dict[str, Mean]]


def perplexity(nll: float) -> float:
    """exp of a mean next-token NLL in nats; of nothing else, never of a training loss."""
    return math.exp(min(nll, 700.0))


def make_eval_step(
    student: Model,
    teach: Teach | None,
    *,
    block_tokens: int,
    names: Sequence[str] = LOGGED,
    mesh: Mesh | None = None,
) -> EvalStep:
    """Builds eval_step(params, teacher_params, batch) -> means by name, jitted.

    `teach`, block_tokens and mesh as in make_token_values. Nothing is donated: the parameters are
    live.
    """
    token_values = make_token_values(student, teach, names, block_tokens=block_tokens, mesh=mesh)

    @jax.jit
    def eval_step(params, teacher_params, batch):
        values = token_values(params, teacher_params, batch)
        return {name: weighted_mean(value, batch.weight_BT) for name, value in values.items()}

    return eval_step


def evaluate(
    eval_step: EvalStep,
    params: Params,
    teacher_params: tuple[Params, ...],
    batches: Iterable[Batch],
    *,
    count: int = 0,
    advance: Advance = silent,
) -> dict[str, float]:
    """Means per token over all batches, perplexity and counted tokens, named as in metrics.jsonl.

    advance: told of every batch; count: how many there are, where it is known. Raises UserError
    where not one token counts.
    """
    total: dict[str, Mean] = {}
    for i, batch in enumerate(batches):
        if i == 0:
            advance(f"{COMPILING} the evaluation", 0, 0)
            eval_step.lower(params, teacher_params, batch).compile()
            advance("batches", 0, 0)
        means = eval_step(params, teacher_params, batch)
        # Totals of many batches are added in float64 on the host.
        means = {k: Mean(float(m.total), float(m.count)) for k, m in means.items()}
        total = {k: merge(total[k], m) for k, m in means.items()} if total else means
        advance("batches", i + 1, count)
    check_counted(round(total["nll"].count) if total else 0)
    means = {f"eval/{name}": finish(mean) for name, mean in total.items()}
    means["eval/perplexity"] = perplexity(means["eval/nll"])
    return means | {"eval/tokens": round(total["nll"].count)}
