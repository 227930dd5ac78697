"""One pass over held-out rows: jitted per-token metrics, averaged over all counted tokens."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax

from distill_jax.evals.metrics import token_metrics
from distill_jax.losses.tokens import finish, merge, weighted_mean
from distill_jax.models.binding import Model
from distill_jax.objective import Teach
from distill_jax.types import Array, Batch, Mean, Params, UserError

EvalStep = Callable[[Params, tuple[Params, ...], Batch], tuple[dict[str, Mean], dict[str, Array]]]


class Likelihood(NamedTuple):
    """Averages a token by metric name, the counted tokens, and what exp(nll) makes of them."""

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


def make_eval_step(student: Model, teach: Teach | None, *, block_tokens: int) -> EvalStep:
    """Builds eval_step(params, teacher_params, batch) -> (means, per-token records), jitted.

    `teach` gives the whole distribution of a teacher. Nothing is donated: the parameters are live
    ones.
    """

    @jax.jit
    def eval_step(params, teacher_params, batch):
        hidden = student.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
        # Evaluation compares with whole distributions, so nothing is drawn.
        targets = teach and teach(teacher_params, batch, jax.random.key(0))
        records = token_metrics(
            hidden.last_BTD,
            student.unembed(params),
            targets,
            batch.labels_BT,
            block_tokens=block_tokens,
        )
        means = {name: weighted_mean(x, batch.weight_BT) for name, x in records.items()}
        return means, records

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
        means, _ = eval_step(params, teacher_params, batch)
        # Totals of many batches are added in float64 on the host.
        means = {k: Mean(float(m.total), float(m.count)) for k, m in means.items()}
        total = {k: merge(total[k], m) for k, m in means.items()} if total else means
    if not total or not total["nll"].count:
        raise UserError(
            "the evaluation data holds 0 counted tokens:"
            " give data.eval_source documents of at least two tokens"
        )
    return Likelihood({k: finish(m) for k, m in total.items()}, round(total["nll"].count))
