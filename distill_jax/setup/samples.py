"""What models write after the prompts of a config, and how fast each model writes."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.data.chat import turn_end
from distill_jax.data.prompts import (
    Prompt,
    conversation,
    encode_prompt,
    read_conversations,
    read_prompts,
    shown,
)
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model
from distill_jax.sampling import generate, make_continue
from distill_jax.types import Advance, Params, UserError

# Entries of a generation_config.json that say how to draw tokens; the first two are keys as well.
_DRAWING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def check(c: ConfigDict) -> None:
    """Raises UserError for settings without a meaning, and for prompts that cannot be read."""
    choose("generate.chat", c.generate.chat, ("", "true", "false"))
    prompts_of(c)


def prompts_of(c: ConfigDict) -> list[Prompt]:
    """All prompts of a config, with those of the files that it names."""
    conversations = read_conversations(c.generate.messages, "config.generate.messages")
    return read_prompts(c.generate.prompts) + conversations


def are_turns(c: ConfigDict, tokenizer: Tokenizer) -> bool:
    """Whether the job generate takes texts as a user's turns. Raises UserError if it cannot."""
    if c.generate.chat == "true" and tokenizer.chat_template is None:
        raise UserError(
            "config.generate.chat is true and the model has no chat template: leave it out, and"
            " the texts are continued"
        )
    return c.generate.chat != "false" and tokenizer.chat_template is not None


def unlike_advice(c: ConfigDict, tokenizer: Tokenizer) -> str:
    """How the model's own settings would draw tokens, where this config does not; else empty."""
    advised = tokenizer.settings.generation
    if not advised.get("do_sample"):
        return ""
    said = {name: advised[name] for name in _DRAWING if advised.get(name) is not None}
    keys = {name: said.get(name, 1.0) for name in ("temperature", "top_p")}
    if all(c.generate[name] == value for name, value in keys.items()):
        return ""
    flags = " ".join(f"--config.generate.{name}={value}" for name, value in keys.items())
    listed = ", ".join(f"{name} {value}" for name, value in said.items())
    return f"the model's files ask to draw tokens ({listed}); nearest to that here: {flags}"


def check_room(c: ConfigDict, tokenizer: Tokenizer, models: Mapping[str, ModelConfig]) -> None:
    """Raises UserError where a prompt and its continuation do not fit a model's positions."""
    new = c.generate.max_new_tokens
    lengths = (len(encode_prompt(tokenizer, prompt, chat=False)) for prompt in prompts_of(c))
    longest = max(lengths, default=None)
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
    chat: bool = False,
    show: Callable[[int, list[int], bool], None] | None = None,
    advance: Advance | None = None,
) -> list[dict[str, Any]]:
    """What a model writes after each prompt: one line per prompt, for samples.jsonl.

    chat: texts are a user's turns, too; conversations always are. show, advance: as of
    sampling.generate.
    With `time_it` it runs twice; tokens_per_s are those of the second, compiled run, all prompts.
    """
    prompts = prompts_of(c)
    if not prompts:
        return []
    encoded = [encode_prompt(tokenizer, prompt, chat=chat) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if max(ids) >= model.config.vocab:
            raise UserError(
                f"{prompt.name}: token {max(ids)} is outside the model's vocabulary of"
                f" {model.config.vocab}: use the tokenizer of this model"
            )
    answered = next((p for p in prompts if chat or p.messages is not None), None)
    if answered is not None:
        end = turn_end(tokenizer, conversation(answered), where=answered.name)
        stop_ids = tuple(dict.fromkeys([*stop_ids, *([] if end is None else [end])]))
    program = make_continue(
        model,
        max_new_tokens=c.generate.max_new_tokens,
        temperature=c.generate.temperature,
        top_p=c.generate.top_p,
        stop_ids=stop_ids,
        cache_dtype=c.model.compute_dtype,
    )
    key, size = jax.random.key(c.seed), c.generate.batch_size
    once = partial(generate, program, params, encoded, key, batch_size=size, show=show)
    new, speed = once(advance=advance), None
    if time_it:
        began = time.monotonic()
        tokens = sum(len(ids) for ids in once())
        speed = tokens / (time.monotonic() - began)
    decode = tokenizer.backend.decode
    return [
        {
            "step": step,
            "model": name,
            "prompt": shown(p),
            "text": decode(ids),
            "tokens_per_s": speed,
        }
        for p, ids in zip(prompts, new, strict=True)
    ]


def stop_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end a generated text: the tokenizer's and those of the generation config."""
    ids = tokenizer.settings.generation.get("eos_token_id", tokenizer.eos_id)
    return tuple(dict.fromkeys([tokenizer.eos_id, *(ids if isinstance(ids, list) else [ids])]))
