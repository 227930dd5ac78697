"""Prompts from held-out documents, and the data's own continuations."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.data.encode import Tokenized
from distill_jax.types import UserError


class Prompts(NamedTuple):
    """Prompts of held-out documents.

    prompts     token ids of each
    references  the document's continuation, without a stop token
    answers     whether the reference is a complete answer, so that it may be matched exactly
    documents   the index of its document
    """

    prompts: list[list[int]]
    references: list[list[int]]
    answers: list[bool]
    documents: list[int]


def prompts_of(
    tokenized: Tokenized,
    *,
    count: int,
    prompt_tokens: int,
    new_tokens: int,
    stop_ids: Sequence[int],
    max_positions: int,
) -> Prompts:
    """Prompts of up to `count` documents, spread evenly over all that can give one.

    A text gives its first prompt_tokens and what follows them. A document with a prompt gives all
    of that prompt, whatever its length, and the completion or the assistant's first turn; those
    that leave no room for new_tokens among max_positions are skipped. References are cut at
    new_tokens. Raises UserError where no document can give a prompt.
    """
    splits = {}
    for document in range(len(tokenized.offsets) - 1):
        part = slice(*tokenized.offsets[document : document + 2])
        split = _split(tokenized.tokens[part], tokenized.trained[part], prompt_tokens, stop_ids)
        if split and len(split[0]) + new_tokens <= max_positions:
            splits[document] = split
    if not splits:
        raise UserError(
            f"none of {len(tokenized.offsets) - 1} held-out documents gives a prompt: texts need"
            f" more than {prompt_tokens} tokens, and a prompt with {new_tokens} new tokens must"
            f" fit {max_positions} positions: use fewer prompt tokens or new tokens"
        )
    able = list(splits)
    chosen = [able[i * len(able) // count] for i in range(count)] if count < len(able) else able
    picked = [splits[document] for document in chosen]
    return Prompts(
        prompts=[prompt for prompt, _, _ in picked],
        references=[reference[:new_tokens] for _, reference, _ in picked],
        answers=[answer and len(reference) <= new_tokens for _, reference, answer in picked],
        documents=chosen,
    )


def _split(tokens, trained, prompt_tokens, stop_ids):
    """(prompt, reference without stop token, whether it is an answer), or None."""
    answer = not trained.all()
    if answer:
        begins = np.flatnonzero((trained[1:] > 0) & (trained[:-1] == 0)) + 1
        start = begins[0] if len(begins) else len(tokens)
        rest = np.flatnonzero(trained[start:] == 0)
        end = start + rest[0] if len(rest) else len(tokens)
    else:
        start, end = prompt_tokens, len(tokens)
    reference = tokens[start:end].tolist()
    stops = [i for i, token in enumerate(reference) if token in stop_ids]
    if stops:
        reference = reference[: stops[0]]
    return (tokens[:start].tolist(), reference, answer) if reference else None
