"""Log-likelihoods of continuations, as benchmarks of multiple choice ask for them.

Rows are padded to a power of two, so that few programs are compiled. Shapes: types.py.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from distill_jax.evals.token_values import make_token_values
from distill_jax.models.binding import Model
from distill_jax.types import Advance, Array, Batch, Params, UserError, silent

SHORTEST = 32  # inputs of the shortest padded row

Continued = tuple[Sequence[int], Sequence[int]]  # context, continuation
ScoreStep = Callable[[Params, Batch], tuple[Array, Array]]


def make_score_step(model: Model, *, block_tokens: int = 256) -> ScoreStep:
    """Builds score(params, batch) -> (nll_BT in nats, 1 where greedy decoding gives the label)."""
    names = ("nll", "accuracy_top1")
    token_values = make_token_values(model, None, names, block_tokens=block_tokens)

    @jax.jit
    def score_step(params, batch):
        values = token_values(params, (), batch)
        return values["nll"], values["accuracy_top1"]

    return score_step


def log_likelihoods(
    score_step: ScoreStep,
    params: Params,
    pairs: Sequence[Continued],
    *,
    batch_size: int,
    max_length: int,
    advance: Advance = silent,
) -> list[tuple[float, bool]]:
    """log q(continuation | context) in nats, and whether greedy decoding would write it.

    A pair with more than max_length inputs loses tokens of its context from the left, as in the
    harness. advance: told of every batch. Raises UserError where a context is empty or a
    continuation alone is too long.
    """
    for i, (context, continuation) in enumerate(pairs):
        if not len(context) or len(continuation) > max_length:
            raise UserError(
                f"request {i} has {len(context)} context and {len(continuation)} continuation"
                f" tokens: it needs a context, and a continuation of at most {max_length}"
            )
    inputs = [min(len(a) + len(b) - 1, max_length) for a, b in pairs]
    by_length: dict[int, list[int]] = {}
    for i, count in enumerate(inputs):
        by_length.setdefault(padded(count, max_length), []).append(i)
    results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    done = 0
    for length, members in sorted(by_length.items(), reverse=True):
        for start in range(0, len(members), batch_size):
            chunk = members[start : start + batch_size]
            texts = [([*pairs[i][0], *pairs[i][1]], len(pairs[i][1])) for i in chunk]
            batch = padded_batch(texts, batch_size, length)
            nll_BT, greedy_BT = map(np.asarray, score_step(params, batch))
            counted_BT = batch.weight_BT > 0
            totals = np.where(counted_BT, nll_BT, 0).sum(-1, dtype=np.float64)
            wholly = np.all(~counted_BT | (greedy_BT > 0), -1)
            for row, i in enumerate(chunk):
                results[i] = (-float(totals[row]), bool(wholly[row]))
            done += len(chunk)
            advance("requests", done, len(pairs))
    return results


def padded(count: int, max_length: int) -> int:
    """Inputs of the row that `count` inputs go into."""
    return min(max(SHORTEST, 1 << (count - 1).bit_length()), max_length)


def padded_batch(texts: Sequence[tuple[Sequence[int], int]], rows: int, length: int) -> Batch:
    """Rows of (ids, counted): the last `counted` predictions of the last length + 1 ids count."""
    empty = lambda dtype: np.zeros((rows, length), dtype)
    tokens_BT, labels_BT, segment_BT = empty(np.int32), empty(np.int32), empty(np.int32)
    weight_BT = empty(np.float32)
    for row, (ids, counted) in enumerate(texts):
        inputs, labels = ids[-(length + 1) : -1], ids[1:][-length:]
        last = len(inputs)
        tokens_BT[row, :last], labels_BT[row, :last] = inputs, labels
        segment_BT[row, :last] = 1
        weight_BT[row, last - counted : last] = 1
    position_BT = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BT.shape)
    return Batch(tokens_BT, labels_BT, weight_BT, segment_BT, position_BT, segment_BT - 1)
