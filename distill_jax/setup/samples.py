"""The same prompts continued by several models, and how fast each model writes."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax.config import at_least
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.sampling import generate, make_continue
from distill_jax.types import Params, UserError


def check(c: ConfigDict) -> None:
    """Raises UserError for settings without a meaning."""
    at_least("generate.max_new_tokens", c.generate.max_new_tokens, 1)
    at_least("generate.temperature", c.generate.temperature, 0)
    at_least("generate.batch_size", c.generate.batch_size, 1)


def check_room(c: ConfigDict, tokenizer: Tokenizer, models: Mapping[str, ModelConfig]) -> None:
    """Raises UserError where a prompt and its continuation do not fit a model's positions."""
    new = c.generate.max_new_tokens
    longest = max((len(prompt_ids(tokenizer, text)) for text in c.generate.prompts), default=None)
    for name, config in models.items():
        if longest is not None and longest + new > config.max_positions:
            raise UserError(
                f"config.generate.max_new_tokens is {new}, the longest prompt has {longest} tokens"
                f" and {name} {config.max_positions} positions: use at most"
                f" {max(0, config.max_positions - longest)} new tokens, or shorter prompts"
            )


def sample(
    c: ConfigDict,
    name: str,
    step: int,
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    stop_ids: tuple[int, ...],
    *,
    time_it: bool,
) -> list[dict[str, Any]]:
    """Continues config.generate.prompts: one line per prompt, for samples.jsonl.

    With `time_it` it runs twice; tokens_per_s are those of the second, compiled run, all prompts.
    """
    texts = list(c.generate.prompts)
    if not texts:
        return []
    prompts = [prompt_ids(tokenizer, text) for text in texts]
    program = make_continue(
        model,
        max_new_tokens=c.generate.max_new_tokens,
        temperature=c.generate.temperature,
        stop_ids=stop_ids,
        cache_dtype=c.model.compute_dtype,
    )
    key, size = jax.random.key(c.seed), c.generate.batch_size
    once = lambda: generate(program, params, prompts, key, batch_size=size)
    new, speed = once(), None
    if time_it:
        began = time.monotonic()
        tokens = sum(len(ids) for ids in once())
        speed = tokens / (time.monotonic() - began)
    decode = tokenizer.backend.decode
    return [
        {"step": step, "model": name, "prompt": p, "text": decode(ids), "tokens_per_s": speed}
        for p, ids in zip(texts, new, strict=True)
    ]


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a generated text: the tokenizer's and those of the generation config."""
    ids = tokenizer.settings.generation.get("eos_token_id", tokenizer.eos_id)
    return tuple(dict.fromkeys([tokenizer.eos_id, *(ids if isinstance(ids, list) else [ids])]))


def prompt_ids(tokenizer: Tokenizer, text: str) -> Sequence[int]:
    """A text to be continued: with BOS where the tokenizer adds one, never with EOS."""
    ids = tokenizer.backend.encode(text).ids
    return ids[:-1] if tokenizer.adds_eos else ids
