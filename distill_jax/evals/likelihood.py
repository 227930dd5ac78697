"""Held-out likelihood, and how near a student is to its teacher: means over all counted tokens."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax

from distill_jax.evals.token_values import make_token_values
from distill_jax.losses.tokens import finish, merge, weighted_mean
from distill_jax.models.binding import Model
from distill_jax.objective import Teach
from distill_jax.types import Batch, Mean, Params, UserError

# The values (token_values.py) that training logs; the last four where there is a teacher.
LOGGED = ("nll", "accuracy_top1", "teacher_nll", "forward_kl", "reverse_kl", "agreement_top1")

EvalStep = Callable[[Params, tuple[Params, ...], Batch], dict[str, Mean]]


class Likelihood(NamedTuple):
    """Means per token by name, and the counted tokens; `named` adds exp(nll)."""

    means: dict[str, float]
    tokens: int

    def named(self, prefix: str = "eval/") -> dict[str, float]:
        """Flat metric names as metrics.jsonl has them."""
        named = {prefix + name: value for name, value in self.means.items()}
        named[prefix + "perplexity"] = perplexity(self.means["nll"])
        return named | {prefix + "tokens": self.tokens}


def perplexity(nll: float) -> float:
    """exp of a mean next-token NLL in nats; of nothing else, never of a training loss."""
    return math.exp(min(nll, 700.0))


def make_eval_step(
    student: Model, teach: Teach | None, *, block_tokens: int, names: Sequence[str] = LOGGED
) -> EvalStep:
    """Builds eval_step(params, teacher_params, batch) -> means by name, jitted.

    `teach` and block_tokens as in make_token_values. Nothing is donated: the parameters are live.
    """
    token_values = make_token_values(student, teach, names, block_tokens=block_tokens)

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
) -> Likelihood:
    """Averages over all batches. Raises UserError where not one token counts."""
    total: dict[str, Mean] = {}
    for batch in batches:
        means = eval_step(params, teacher_params, batch)
        # Totals of many batches are added in float64 on the host.
        means = {k: Mean(float(m.total), float(m.count)) for k, m in means.items()}
        total = {k: merge(total[k], m) for k, m in means.items()} if total else means
    if not total or not total["nll"].count:
        raise UserError(
            "the evaluation data holds 0 counted tokens:"
            " give data.eval_source documents of at least two tokens"
        )
    return Likelihood({k: finish(m) for k, m in total.items()}, round(total["nll"].count))
