"""Generation with a key/value cache: batched, greedy or by temperature. Shapes: types.py.

make_continue compiles the continuation of a padded batch, one token per iteration of a while loop.
generate runs it over any number of prompts, whose texts do not depend on the batch size.
Imports models and losses; evals and jobs call it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses.partial_targets import draw
from distill_jax.losses.vocabulary import head_logits
from distill_jax.models.binding import Model
from distill_jax.types import Array, Params, UserError

# Prompts are padded to a multiple of this many tokens, so that few shapes are compiled.
PROMPT_STEP = 32


class Continue(NamedTuple):
    """run(params, prompts_BT, length_B, keys_B) -> [B, max_new_tokens], jitted, and its limits."""

    run: Callable[[Params, Array, Array, Array], Array]
    max_new_tokens: int
    max_positions: int
    stop_ids: tuple[int, ...]


def make_continue(
    model: Model,
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: tuple[int, ...],
    cache_dtype: str,
) -> Continue:
    """What generate runs, with the room that the model has.

    Prompts are padded on the right. After its first stop token a row holds only stop tokens. Token
    i of a row is drawn with fold_in(key, i), one key per row, so that a row's text does not depend
    on the other rows of its batch.
    """
    stops = jnp.asarray(stop_ids, jnp.int32)

    @jax.jit
    def run(params, prompts_BT, length_B, keys_B):
        rows, padded = prompts_BT.shape
        unembed = model.unembed(params)
        cache = model.new_cache(rows, padded + max_new_tokens, cache_dtype)
        position_BT = jnp.broadcast_to(jnp.arange(padded), (rows, padded))
        hidden, cache = model.decode(params, prompts_BT, position_BT, cache)
        last_BD = hidden.last_BTD[jnp.arange(rows), length_B - 1]

        def more(carry):
            index, _, _, done_B, _ = carry
            return (index < max_new_tokens) & ~jnp.all(done_B)

        def one(carry):
            index, last_BD, cache, done_B, new_BT = carry
            token_B = _draw(head_logits(last_BD, unembed), temperature, keys_B, index)
            token_B = jnp.where(done_B, stops[0], token_B)
            new_BT = new_BT.at[:, index].set(token_B)
            position_B1 = (length_B + index)[:, None]
            hidden, cache = model.decode(params, token_B[:, None], position_B1, cache)
            done_B |= jnp.isin(token_B, stops)
            return index + 1, hidden.last_BTD[:, 0], cache, done_B, new_BT

        done_B = length_B <= 0
        new_BT = jnp.full((rows, max_new_tokens), stops[0], jnp.int32)
        return jax.lax.while_loop(more, one, (0, last_BD, cache, done_B, new_BT))[-1]

    return Continue(run, max_new_tokens, model.config.max_positions, stop_ids)


def _draw(logits_BV, temperature, keys_B, index):
    if temperature == 0:
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)
    # One uniform per row: a categorical draw of a large vocabulary costs as much as the head.
    keys_B = jax.vmap(partial(jax.random.fold_in, data=index))(keys_B)
    uniform_B1 = jax.vmap(lambda key: jax.random.uniform(key, (1,)))(keys_B)
    return draw(logits_BV / temperature, uniform_B1)[:, 0]


def generate(
    program: Continue,
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: Array,
    *,
    batch_size: int,
) -> list[list[int]]:
    """New tokens of each prompt, up to but without its stop token.

    The last batch is filled up, so that no other program is compiled for it. Raises UserError for
    an empty prompt, or one that leaves no room in the model's positions.
    """
    room = program.max_positions - program.max_new_tokens
    for i, prompt in enumerate(prompts):
        if not 1 <= len(prompt) <= room:
            raise UserError(
                f"prompt {i} has {len(prompt)} tokens and generate.max_new_tokens is"
                f" {program.max_new_tokens}: together they must fit"
                f" {program.max_positions} positions,"
                " and a prompt needs at least 1 token"
            )
    if not prompts:
        return []
    size = min(batch_size, len(prompts))
    filled = [*prompts, *[prompts[0]] * (-len(prompts) % size)]
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(filled)))
    texts: list[list[int]] = []
    for start in range(0, len(filled), size):
        chunk = filled[start : start + size]
        padded = -(-max(map(len, chunk)) // PROMPT_STEP) * PROMPT_STEP
        rows = np.zeros((len(chunk), padded), np.int32)
        for row, prompt in zip(rows, chunk, strict=True):
            row[: len(prompt)] = prompt
        lengths = np.array([len(prompt) for prompt in chunk], np.int32)
        new = np.asarray(program.run(params, rows, lengths, keys[start : start + size]))
        goes_on = lambda token: token not in program.stop_ids
        texts += [list(takewhile(goes_on, row)) for row in new.tolist()]
    return texts[: len(prompts)]
