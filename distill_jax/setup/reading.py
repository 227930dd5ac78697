"""The documents of a config: read by format, split, limited, put through a template, tokenized."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.data.documents import Document, as_chat, fingerprint, place_of, split_documents
from distill_jax.data.encode import Tokenized, check_vocabulary, tokenize_documents
from distill_jax.data.formats import FORMATS
from distill_jax.data.limits import Limits, filled_by
from distill_jax.data.sources import read_documents
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.types import Advance, UserError, silent

TEMPLATES = {"plain": lambda document: document, "chat": as_chat}  # data.template

# Fixed: every seed of a study holds out the same documents.
SPLIT_SEED = 0


class Chosen(NamedTuple):
    """The documents of a text, and how many of their tokens are predicted at most (0: all).

    key: of that limit, for errors.
    """

    documents: list[Document]
    max_tokens: int
    key: str


class Text(NamedTuple):
    """Tokenized documents, what identifies them, and what should be known of how they were read."""

    tokenized: Tokenized
    documents: int
    fingerprint: str
    note: str


def training_documents(c: ConfigDict) -> tuple[Chosen, Chosen]:
    """Documents to train on and to evaluate on: two sources, or one source split by document.

    The split comes before the limits: what is held out does not depend on how much is trained on.
    """
    if not c.data.source:
        raise UserError(
            "config.data.source is empty: give a path or glob of jsonl, parquet or text,"
            " tfds:name, hub:name or python_docs"
        )
    limits, eval_limits = _limits(c)
    if c.data.eval_source:
        documents = _read(c, c.data.source, filled_by(limits))
        held_out = _read(c, c.data.eval_source, filled_by(eval_limits))
    else:
        documents, held_out = _split(c, limits, eval_limits)
    train, held = _chosen(c, documents, limits, ""), _chosen(c, held_out, eval_limits, "eval_")
    if c.data.template == "chat" and not any(d.messages for d in train.documents + held.documents):
        raise UserError(
            "config.data.template is chat and every record is a text, which has no turns: give"
            " records with prompt and completion, or leave the template out"
        )
    return train, held


def evaluation_documents(c: ConfigDict, *, own: bool) -> Chosen:
    """What a job that trains nothing measures: data.eval_source, or else data.source, limited.

    own: what a training run of this config holds out.
    """
    if own:
        return training_documents(c)[1]
    source = c.data.eval_source or c.data.source
    if not source:
        raise UserError("config.data.eval_source is empty: give a path or glob, or python_docs")
    _, limits = _limits(c)
    return _chosen(c, _read(c, source, filled_by(limits)), limits, "eval_")


def _limits(c: ConfigDict) -> tuple[Limits, Limits]:
    """Those of training and of evaluation."""
    return (
        Limits(c.data.max_documents, c.data.max_tokens),
        Limits(c.data.eval_max_documents, c.data.eval_max_tokens),
    )


def _chosen(c: ConfigDict, documents: list[Document], limits: Limits, part: str) -> Chosen:
    # After the split, so that what is held out does not depend on the template.
    template = TEMPLATES[choose("data.template", c.data.template, TEMPLATES)]
    first = [template(document) for document in documents[: limits.documents or None]]
    return Chosen(first, limits.tokens, f"config.data.{part}max_tokens")


def _split(c: ConfigDict, *limits: Limits) -> tuple[list[Document], list[Document]]:
    """data.source, read until there is enough for training and for evaluation, and split."""
    fraction, full = c.data.held_out_fraction, [False, False]
    filled = [filled_by(some) for some in limits]

    def enough(document: Document) -> bool:
        part = int(place_of(document, SPLIT_SEED) < fraction)
        full[part] = filled[part](document)
        return all(full)

    # Without a limit of both, all is read, and a place is not needed twice.
    documents = _read(c, c.data.source, enough if all(map(any, limits)) else None)
    return split_documents(documents, held_out_fraction=fraction, seed=SPLIT_SEED)


def _read(c: ConfigDict, source: str, enough: Callable[[Document], bool] | None) -> list[Document]:
    form = c.data.format and choose("data.format", c.data.format, FORMATS)
    return read_documents(source, form, enough)


def tokenized(chosen: Chosen, tokenizer: Tokenizer, vocab: int, advance: Advance = silent) -> Text:
    """Tokenizes; `vocab` is the smallest number of embedding rows among the models.

    Raises UserError where no token within the limit would be trained.
    """
    limit = chosen.max_tokens
    tokens = tokenize_documents(chosen.documents, tokenizer, max_tokens=limit, advance=advance)
    check_vocabulary(tokens, tokenizer, vocab_size=vocab)
    used = chosen.documents[: len(tokens.labels)]
    identity = fingerprint(used)
    starts = tokens.offsets[:-1][np.diff(tokens.offsets) > 0]
    predicted = np.delete(tokens.trained, starts)
    if limit and len(predicted) and not predicted.any():
        raise UserError(
            f"{chosen.key} is {limit}: all of these tokens are of prompts, which are not trained:"
            " use more"
        )
    if len(predicted) == limit:  # the last document may be cut
        identity = hashlib.sha256(f"{identity}:{limit}".encode()).hexdigest()
    note = ""
    if tokenizer.chat_template and any(document.pair for document in used):
        note = "prompts and completions are joined as they are (data.template=chat: as turns)"
    return Text(tokens, len(used), identity, note)
