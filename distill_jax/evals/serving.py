"""What a model costs to serve: size, latency to the first token, tokens per second, money.

Several models are timed in one run, turn by turn in a shuffled order, so that a machine that slows
down slows all of them; ratios are medians over turns, not quotients of medians.

Shapes: types.py; R counts turns and M the values of each turn: milliseconds to the first token,
then tokens per second at each batch size.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses.vocabulary import head_logits
from distill_jax.models.binding import Model
from distill_jax.types import COMPILING, Advance, Array, Params, UserError, silent


class Cost(NamedTuple):
    """What serving one model costs, or the ratios of two models. Speeds add up all rows.

    parameters, bytes        numbers in the model, and what they take as they are held
    first_token_ms           from the prompt of one row to its first token
    tokens_per_s             greedy, by batch size
    cost_per_million_tokens  at the largest batch size, in the currency of the price, if any
    """

    parameters: float
    bytes: float
    first_token_ms: float
    tokens_per_s: Mapping[int, float]
    cost_per_million_tokens: float | None

    def json(self) -> dict[str, float | None]:
        """As a row of the part `cost` of report.json."""
        values = self._asdict()
        speeds = values.pop("tokens_per_s").items()
        return values | {f"decode_tokens_per_s_{size}": speed for size, speed in speeds}


class Serving(NamedTuple):
    """Every model's cost by its name, and the student's divided by the teacher's."""

    models: Mapping[str, Cost]
    ratio: Cost | None
    price_per_hour: float | None

    def json(self) -> dict[str, Any]:
        """The part `cost` of report.json."""
        return {
            "models": [{"model": name} | cost.json() for name, cost in self.models.items()],
            "ratio": self.ratio and self.ratio.json(),
            "price_per_hour": self.price_per_hour,
        }


class ServingPrograms(NamedTuple):
    """prefill(params, prompts_BT) -> (token_B, cache); decode(params, token_B, cache) -> new_BT."""

    prefill: Callable[[Params, Array], tuple[Array, Any]]
    decode: Callable[[Params, Array, Any], Array]


def serving_programs(
    model: Model, *, prompt_tokens: int, new_tokens: int, cache_dtype: str
) -> ServingPrograms:
    """Greedy generation in two halves that can be timed apart. Nothing stops early.

    prefill reads the prompt and gives the first new token; decode gives the new_tokens after it.
    A text that becomes long for LongRoPE is not read again here, as it is once in generation: such
    texts are timed, and their later tokens are others.
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

    return ServingPrograms(prefill, decode)


def compare_serving(
    models: dict[str, tuple[Model, Params]],
    *,
    prompt_tokens: int,
    new_tokens: int,
    price_per_hour: float | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    repeats: int = 5,
    cache_dtype: str = "float32",
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    advance: Advance = silent,
) -> Serving:
    """Times every model, and divides the model "student" by "teacher" where both are given.

    price_per_hour: of the machine that this runs on. Times are medians over `repeats`, their ratios
    medians of the ratios of a turn, in which both ran one after the other; nothing is compiled
    while it is timed. advance: told of every turn. Raises UserError where prompt and new tokens do
    not fit a model's positions.
    """
    turns = _turns(
        models, prompt_tokens, new_tokens, batch_sizes, repeats, cache_dtype, seed, clock, advance
    )
    fastest = max(batch_sizes)

    def cost(numbers: float, size: float, values_RM: np.ndarray, price: float | None) -> Cost:
        first, *rates = np.median(values_RM, axis=0).tolist()
        speeds = dict(zip(batch_sizes, rates, strict=True))
        return Cost(
            numbers, size, first, speeds, None if price is None else price / speeds[fastest]
        )

    # What a second costs, times a million tokens.
    price = None if price_per_hour is None else price_per_hour / 3600 * 1e6
    rows = {name: cost(*sizes(models[name][1]), turns[name], price) for name in models}
    ratio = None
    if rows.keys() >= {"teacher", "student"}:
        big, small = rows["teacher"], rows["student"]
        share, size = small.parameters / big.parameters, small.bytes / big.bytes
        # At one price per hour, the cost of a token is proportional to its time.
        ratio = cost(share, size, turns["student"] / turns["teacher"], price and 1.0)
    return Serving(rows, ratio, price_per_hour)


def sizes(params: Params) -> tuple[int, int]:
    """Numbers in a parameter tree, and the bytes they take as they are held."""
    leaves = jax.tree.leaves(params)
    return sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves)


def _turns(
    models, prompt_tokens, new_tokens, batch_sizes, repeats, cache_dtype, seed, clock, advance
) -> dict[str, np.ndarray]:
    """The values_RM of each model."""
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
        programs[name] = serving_programs(
            model, prompt_tokens=prompt_tokens, new_tokens=new_tokens, cache_dtype=cache_dtype
        )
    vocab = min(model.config.vocab for model, _ in models.values())
    shape = (max(batch_sizes), prompt_tokens)
    prompts_BT = np.random.default_rng(seed).integers(0, vocab, shape, np.int32)
    order, shuffle = list(models), random.Random(seed).shuffle
    turns: dict[str, list[list[float]]] = {name: [] for name in models}
    advance(f"{COMPILING} what is timed", 0, 0)
    for turn in range(repeats + 1):
        shuffle(order)
        for name in order:
            params = models[name][1]
            turns[name].append(
                _turn(programs[name], params, prompts_BT, new_tokens, batch_sizes, clock)
            )
        advance("turns", turn, repeats)
    # The first turn compiles.
    return {name: np.array(values[1:]) for name, values in turns.items()}


def _turn(programs, params, prompts_BT, new_tokens, batch_sizes, clock) -> list[float]:
    values = [1000 * _timed(clock, programs.prefill, params, prompts_BT[:1])]
    for size in batch_sizes:
        token_B, cache = programs.prefill(params, prompts_BT[:size])
        jax.block_until_ready((token_B, cache))
        seconds = _timed(clock, programs.decode, params, token_B, cache)
        values.append(size * new_tokens / seconds)
    return values


def _timed(clock, run, *arguments) -> float:
    began = clock()
    jax.block_until_ready(run(*arguments))
    return clock() - began
