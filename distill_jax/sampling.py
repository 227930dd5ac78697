"""Generation with a key/value cache: batched, greedy or by temperature. Shapes: types.py.

make_continue compiles the continuation of a padded batch, one token per iteration of a while loop
that may be left and gone on with, so that texts can be shown as they are written.
generate runs it over any number of prompts, whose texts do not depend on the batch size.
Imports models and losses; evals and jobs call it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.losses.partial_targets import draw
from distill_jax.losses.vocabulary import head_logits
from distill_jax.models.binding import Model
from distill_jax.models.context import short_texts
from distill_jax.types import COMPILING, Advance, Array, Params, UserError

# Prompts are padded to a multiple of this many tokens, so that few shapes are compiled.
PROMPT_STEP = 32


# Tokens of each row that are written before they are shown, where somebody looks on.
SHOWN_STEP = 4


class Written(NamedTuple):
    """Texts being written: the tokens so far, and what the next one depends on.

    index    new tokens of each row
    done_B   rows that have ended
    new_BT   [B, max_new_tokens]; stop tokens from index on
    """

    index: Array
    last_BD: Array
    cache: Any
    done_B: Array
    new_BT: Array


class Continue(NamedTuple):
    """What generate runs: two jitted functions, and their limits.

    begin(params, prompts_BT, length_B) -> Written, with nothing written yet
    go_on(params, written, prompts_BT, length_B, keys_B, until) -> Written, up to index `until` or
    the last row's end; takes the buffers of `written`
    """

    begin: Callable[[Params, Array, Array], Written]
    go_on: Callable[[Params, Written, Array, Array, Array, int], Written]
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
    top_p: float = 1.0,
) -> Continue:
    """What generate runs, with the room that the model has.

    temperature: divides the logits before a token is drawn; 0: the likeliest token. top_p: tokens
    are drawn from the likeliest that have this probability together (1904.09751).
    Prompts are padded on the right. After its first stop token a row holds only stop tokens. Token
    i of a row is drawn with fold_in(key, i), one key per row, so that a row's text does not depend
    on the other rows of its batch.
    A model that turns long texts otherwise than short ones (LongRoPE) reads a text again when it
    becomes long, as transformers does.
    """
    short = short_texts(model.config)
    stops = jnp.asarray(stop_ids, jnp.int32)

    @jax.jit
    def begin(params, prompts_BT, length_B):
        rows, padded = prompts_BT.shape
        cache = model.new_cache(rows, padded + max_new_tokens, cache_dtype)
        position_BT = jnp.broadcast_to(jnp.arange(padded), (rows, padded))
        hidden, cache = model.decode(params, prompts_BT, position_BT, cache, length_B)
        last_BD = hidden.last_BTD[jnp.arange(rows), length_B - 1]
        new_BT = jnp.full((rows, max_new_tokens), stops[0], jnp.int32)
        return Written(jnp.int32(0), last_BD, cache, length_B <= 0, new_BT)

    @partial(jax.jit, donate_argnums=1)
    def go_on(params, written, prompts_BT, length_B, keys_B, until):
        unembed = model.unembed(params)

        def more(so_far):
            return (so_far.index < until) & ~jnp.all(so_far.done_B)

        def one(so_far):
            index, last_BD, cache, done_B, new_BT = so_far
            token_B = _draw(head_logits(last_BD, unembed), temperature, top_p, keys_B, index)
            token_B = jnp.where(done_B, stops[0], token_B)
            new_BT = new_BT.at[:, index].set(token_B)
            position_B1 = (length_B + index)[:, None]
            hidden, cache = model.decode(params, token_B[:, None], position_B1, cache)
            last_BD = hidden.last_BTD[:, 0]
            done_B |= jnp.isin(token_B, stops)
            if short is not None and cache["key"].shape[2] > short:
                again_B = ~done_B & (position_B1[:, 0] == short)
                text_BT = _beginnings(prompts_BT, length_B, new_BT, short + 1)
                read = partial(_read_again, model, params, text_BT, again_B)
                keep = lambda *as_they_are: as_they_are
                last_BD, cache = jax.lax.cond(jnp.any(again_B), read, keep, last_BD, cache)
            return Written(index + 1, last_BD, cache, done_B, new_BT)

        return jax.lax.while_loop(more, one, written)

    return Continue(begin, go_on, max_new_tokens, model.config.max_positions, stop_ids)


def _beginnings(prompts_BT, length_B, new_BT, tokens):
    """The first `tokens` tokens of each row's prompt and new tokens."""
    place_T, length_B1 = jnp.arange(tokens), length_B[:, None]
    after_prompt = place_T - length_B1 + prompts_BT.shape[1]
    source_BT = jnp.where(place_T < length_B1, place_T, after_prompt)
    both_BS = jnp.concatenate([prompts_BT, new_BT], axis=1)
    return jnp.take_along_axis(both_BS, source_BT, axis=1, mode="clip")


def _read_again(model, params, text_BT, again_B, last_BD, cache):
    """The cache and last hidden states, of the rows `again_B` those of the whole `text_BT`."""
    place_T = jnp.arange(text_BT.shape[1])
    # The other rows' places lie beyond the last slot, where nothing is stored.
    position_BT = jnp.where(again_B[:, None], place_T, place_T + cache["key"].shape[2])
    hidden, cache = model.decode(params, text_BT, position_BT, cache)
    return jnp.where(again_B[:, None], hidden.last_BTD[:, -1], last_BD), cache


def _draw(logits_BV, temperature, top_p, keys_B, index):
    if temperature == 0:
        return jnp.argmax(logits_BV, -1).astype(jnp.int32)
    logits_BV = logits_BV / temperature
    if top_p < 1:
        logits_BV = _likeliest(logits_BV, top_p)
    # One uniform per row: a categorical draw of a large vocabulary costs as much as the head.
    keys_B = jax.vmap(partial(jax.random.fold_in, data=index))(keys_B)
    uniform_B1 = jax.vmap(lambda key: jax.random.uniform(key, (1,)))(keys_B)
    return draw(logits_BV, uniform_B1)[:, 0]


def _likeliest(logits_BV, top_p):
    """The logits, those outside the likeliest tokens of this probability at -infinity."""
    sorted_BV = jnp.flip(jnp.sort(logits_BV, -1), -1)
    p_BV = jax.nn.softmax(sorted_BV, -1)
    kept_BV = jnp.cumsum(p_BV, -1) - p_BV < top_p  # the likeliest always
    least_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), -1, keepdims=True)
    return jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)


def generate(
    program: Continue,
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: Array,
    *,
    batch_size: int,
    show: Callable[[int, list[int], bool], None] | None = None,
    advance: Advance | None = None,
) -> list[list[int]]:
    """New tokens of each prompt, up to but without its stop token.

    The last batch is filled up, so that no other program is compiled for it.
    show(i, tokens, ended): called with the tokens of prompt i so far, for every prompt of a batch
    each few steps. What is written does not depend on whether somebody looks on.
    advance: told of compiling and of every batch.
    Raises UserError for an empty prompt, or one that leaves no room in the model's positions.
    """
    room = program.max_positions - program.max_new_tokens
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise UserError(f"prompt {number} has no tokens: give it at least 1")
        if len(prompt) > room:
            left = program.max_positions - len(prompt)
            use = f"at most {left} new tokens" if left > 0 else "a shorter prompt"
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens and generate.max_new_tokens is"
                f" {program.max_new_tokens}: together they must fit {program.max_positions}"
                f" positions: use {use}"
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
        row_keys, step = keys[start : start + size], SHOWN_STEP if show else program.max_new_tokens
        if advance is not None:
            # Compiled first, where somebody waits: the calls below find the programs.
            advance(f"{COMPILING} what writes", 0, 0)
            program.begin.lower(params, rows, lengths).compile()
        written = program.begin(params, rows, lengths)
        if advance is not None:
            program.go_on.lower(params, written, rows, lengths, row_keys, step).compile()
            advance("prompts", start, len(prompts))
        for until in range(step, program.max_new_tokens + step, step):
            until = min(until, program.max_new_tokens)
            written = program.go_on(params, written, rows, lengths, row_keys, until)
            if show:
                done = np.asarray(written.done_B) | (until == program.max_new_tokens)
                for i, text in enumerate(_texts(program, written)[: len(prompts) - start]):
                    show(start + i, text, bool(done[i]))
                if done.all():
                    break
        texts += _texts(program, written)
    return texts[: len(prompts)]


def _texts(program, written):
    """The tokens of each row so far, without stop tokens."""
    new = np.asarray(written.new_BT)[:, : int(written.index)]
    goes_on = lambda token: token not in program.stop_ids
    return [list(takewhile(goes_on, row)) for row in new.tolist()]
