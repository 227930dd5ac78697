"""What a model costs to serve: size, latency to the first token, tokens a second, money.

Several models are timed in one run, turn by turn in a shuffled order, so that a machine that slows
down slows all of them; ratios are medians over turns, not quotients of medians. Shapes: types.py.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses.vocabulary import head_logits
from distill_jax.models.binding import Model
from distill_jax.types import Array, Params, UserError

FIRST_TOKEN = "first_token_ms"


class Programs(NamedTuple):
    """prefill(params, prompts_BT) -> (token_B, cache); decode(params, token_B, cache) -> new_BT."""

    prefill: Callable[[Params, Array], tuple[Array, Any]]
    decode: Callable[[Params, Array, Any], Array]


def speed_key(batch_size: int) -> str:
    """The name of tokens a second, all rows together, at a batch size."""
    return f"decode_tokens_per_s_{batch_size}"


def make_programs(
    model: Model, *, prompt_tokens: int, new_tokens: int, cache_dtype: str
) -> Programs:
    """Greedy generation in two halves that can be timed apart. Nothing stops early.

    prefill reads the prompt and gives the first new token; decode gives the new_tokens after it.
    """
    slots = prompt_tokens + new_tokens

    def next_token(hidden_BD, unembed):
        return jnp.argmax(head_logits(hidden_BD, unembed), -1).astype(jnp.int32)

    @jax.jit
    def prefill(params, prompts_BT):
        cache = model.new_cache(prompts_BT.shape[0], slots, cache_dtype)
        position_BT = jnp.broadcast_to(jnp.arange(prompt_tokens), prompts_BT.shape)
        hidden, cache = model.decode(params, prompts_BT, position_BT, cache)
        return next_token(hidden.last_BTD[:, -1], model.unembed(params)), cache

    @jax.jit
    def decode(params, token_B, cache):
        rows, unembed = token_B.shape[0], model.unembed(params)

        def one(index, carry):
            token_B, cache, new_BT = carry
            position_B1 = jnp.full((rows, 1), prompt_tokens + index)
            hidden, cache = model.decode(params, token_B[:, None], position_B1, cache)
            token_B = next_token(hidden.last_BTD[:, 0], unembed)
            return token_B, cache, new_BT.at[:, index].set(token_B)

        new_BT = jnp.zeros((rows, new_tokens), jnp.int32)
        return jax.lax.fori_loop(0, new_tokens, one, (token_B, cache, new_BT))[-1]

    return Programs(prefill, decode)


def measure_serving(model: Model, params: Params, **options: Any) -> dict[str, float]:
    """One model's row of compare_serving, whose options it takes, without a price."""
    (row,) = compare_serving({"model": (model, params)}, **options)["models"]
    return {key: row[key] for key in row if key not in ("model", "cost_per_million_tokens")}


def compare_serving(
    models: dict[str, tuple[Model, Params]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    price_per_hour: float | None = None,
    teacher: str = "teacher",
    student: str = "student",
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 5,
    cache_dtype: str = "float32",
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The part `cost` of report.json: every model, and `student` divided by `teacher`.

    price_per_hour: of the machine that this runs on; without it no cost is given. The cost of a
    million tokens is at the largest batch size. Without both of the two models there is no ratio
    (None). Times are medians over `repeats`, their ratios over turns, in which both ran one after
    the other; compilation is over before the first. Raises UserError where prompt and new tokens do
    not fit a model's positions.
    """
    turns = _turns(
        models,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        batch_sizes=batch_sizes,
        repeats=repeats,
        cache_dtype=cache_dtype,
        seed=seed,
        clock=clock,
    )
    fastest = speed_key(max(batch_sizes))
    rows = {}
    for name, (_, params) in models.items():
        row = sizes(params) | _medians(turns[name])
        rows[name] = row | {"cost_per_million_tokens": _cost(price_per_hour, row[fastest])}
    ratio = None
    if teacher in models and student in models:
        big, small = rows[teacher], rows[student]
        ratio = {key: small[key] / big[key] for key in sizes(models[teacher][1])}
        for key in turns[teacher]:
            pairs = zip(turns[student][key], turns[teacher][key], strict=True)
            ratio[key] = statistics.median(a / b for a, b in pairs)
        # At one price an hour, what a token costs is as its time is.
        ratio["cost_per_million_tokens"] = None if price_per_hour is None else 1 / ratio[fastest]
    return {
        "models": [{"model": name} | row for name, row in rows.items()],
        "ratio": ratio,
        "price_per_hour": price_per_hour,
    }


def sizes(params: Params) -> dict[str, int]:
    """Numbers in a parameter tree, and the bytes they take as they are held."""
    leaves = jax.tree.leaves(params)
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
    }


def _cost(price_per_hour: float | None, tokens_per_s: float) -> float | None:
    return None if price_per_hour is None else price_per_hour / (tokens_per_s * 3600) * 1e6


def _turns(
    models: dict[str, tuple[Model, Params]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    batch_sizes: Sequence[int],
    repeats: int,
    cache_dtype: str,
    seed: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, list[float]]]:
    """model -> measure -> its value in each turn."""
    if min(prompt_tokens, new_tokens, repeats, *batch_sizes) < 1:
        raise UserError(
            f"serving is measured with {prompt_tokens} prompt tokens, {new_tokens} new tokens,"
            f" batch sizes {tuple(batch_sizes)} and {repeats} repeats: use at least 1 of each"
        )
    programs = {}
    for name, (model, _) in models.items():
        room = model.config.max_positions
        if prompt_tokens + new_tokens > room:
            raise UserError(
                f"serving is measured with {prompt_tokens} + {new_tokens} tokens and {name} has"
                f" {room} positions: use fewer prompt tokens or new tokens"
            )
        programs[name] = make_programs(
            model, prompt_tokens=prompt_tokens, new_tokens=new_tokens, cache_dtype=cache_dtype
        )
    vocab = min(model.config.vocab for model, _ in models.values())
    shape = (max(batch_sizes), prompt_tokens)
    prompts_BT = np.random.default_rng(seed).integers(0, vocab, shape, np.int32)
    order, shuffle = list(models), random.Random(seed).shuffle
    turns: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for repeat in range(repeats + 1):
        shuffle(order)
        for name in order:
            values = _once(
                programs[name], models[name][1], prompts_BT, new_tokens, batch_sizes, clock
            )
            if repeat:  # the first turn compiles
                for key, value in values.items():
                    turns[name].setdefault(key, []).append(value)
    return turns


def _once(programs, params, prompts_BT, new_tokens, batch_sizes, clock) -> dict[str, float]:
    seconds = _timed(clock, programs.prefill, params, prompts_BT[:1])
    values = {FIRST_TOKEN: 1000 * seconds}
    for size in batch_sizes:
        token_B, cache = programs.prefill(params, prompts_BT[:size])
        jax.block_until_ready((token_B, cache))
        seconds = _timed(clock, programs.decode, params, token_B, cache)
        values[speed_key(size)] = size * new_tokens / seconds
    return values


def _timed(clock, run, *arguments) -> float:
    began = clock()
    jax.block_until_ready(run(*arguments))
    return clock() - began


def _medians(turns: dict[str, list[float]]) -> dict[str, float]:
    return {key: statistics.median(values) for key, values in turns.items()}
