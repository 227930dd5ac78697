"""The documents of a config: read by format, split, limited, put through a template, tokenized."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.data.documents import (
    Document,
    Fingerprint,
    as_chat,
    border_of,
    place_of,
)
from distill_jax.data.encode import Tokenized, check_vocabulary, encode_documents, joined
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

    documents: gives them, from the first one on at every call. count: their number. key: of the
    limit of tokens, for errors.
    """

    documents: Callable[[], Iterator[Document]]
    count: int
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
        train = _chosen(c, c.data.source, _whole(c, c.data.source, limits), limits, "")
        whole = _whole(c, c.data.eval_source, eval_limits)
        held = _chosen(c, c.data.eval_source, whole, eval_limits, "eval_")
    else:
        train, held = _split(c, limits, eval_limits)
    if c.data.template == "chat" and not any(
        document.messages for one in (train, held) for document in one.documents()
    ):
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
    return _chosen(c, source, _whole(c, source, limits), limits, "eval_")


def _limits(c: ConfigDict) -> tuple[Limits, Limits]:
    """Those of training and of evaluation."""
    return (
        Limits(c.data.max_documents, c.data.max_tokens),
        Limits(c.data.eval_max_documents, c.data.eval_max_tokens),
    )


class _Part(NamedTuple):
    """Which documents of a source: so many of the first ones that belong to it."""

    count: int
    belongs: Callable[[Document], bool]


def _chosen(c: ConfigDict, source: str, part: _Part, limits: Limits, name: str) -> Chosen:
    # After the split, so that what is held out does not depend on the template.
    template = TEMPLATES[choose("data.template", c.data.template, TEMPLATES)]
    count = min(part.count, limits.documents or part.count)

    def documents() -> Iterator[Document]:
        found = filter(part.belongs, _read(c, source))
        return map(template, itertools.islice(found, count))

    return Chosen(documents, count, limits.tokens, f"config.data.{name}max_tokens")


def _whole(c: ConfigDict, source: str, limits: Limits) -> _Part:
    """A source, read once until there is enough."""
    [count] = _counts(_read(c, source), lambda document: 0, limits)
    return _Part(count, lambda document: True)


def _split(c: ConfigDict, *limits: Limits) -> list[Chosen]:
    """data.source, read once until there is enough for training and for evaluation, and split."""
    source = c.data.source
    places = (place_of(document, SPLIT_SEED) for document in _read(c, source))
    border = border_of(places, c.data.held_out_fraction)
    held_out = lambda document: place_of(document, SPLIT_SEED) < border
    counts = _counts(_read(c, source), held_out, *limits)
    belong = (lambda document: not held_out(document), held_out)
    parts = [_Part(*part) for part in zip(counts, belong, strict=True)]
    names = zip(parts, limits, ("", "eval_"), strict=True)
    return [_chosen(c, source, part, limit, name) for part, limit, name in names]


def _counts(
    documents: Iterator[Document], part_of: Callable[[Document], int], *limits: Limits
) -> list[int]:
    """The documents of each part, up to the one with which every limit of a part is reached."""
    counts, full = [0] * len(limits), [False] * len(limits)
    filled = [filled_by(some) for some in limits]
    for document in documents:
        part = int(part_of(document))
        counts[part] += 1
        full[part] = filled[part](document)
        if all(full):
            break
    return counts


def _read(c: ConfigDict, source: str) -> Iterator[Document]:
    form = c.data.format and choose("data.format", c.data.format, FORMATS)
    return read_documents(source, form)


def tokenized(chosen: Chosen, tokenizer: Tokenizer, vocab: int, advance: Advance = silent) -> Text:
    """Tokenizes; `vocab` is the smallest number of embedding rows among the models.

    Raises UserError where no token within the limit would be trained.
    """
    limit, digest, pairs, encoded, predicted = chosen.max_tokens, Fingerprint(), False, [], 0
    for one in encode_documents(chosen.documents(), tokenizer, max_tokens=limit):
        digest.add(one.document)
        pairs |= one.document.pair is not None
        encoded.append((one.ids, one.marks, one.document.label))
        predicted += max(len(one.ids) - 1, 0)
        if limit:
            advance("tokens", predicted, limit)
        else:
            advance("documents", len(encoded), chosen.count)
    tokens, identity = joined(encoded), digest.hexdigest()
    check_vocabulary(tokens, tokenizer, vocab_size=vocab)
    starts = tokens.offsets[:-1][np.diff(tokens.offsets) > 0]
    marks = np.delete(tokens.trained, starts)
    if limit and len(marks) and not marks.any():
        raise UserError(
            f"{chosen.key} is {limit}: all of these tokens are of prompts, which are not trained:"
            " use more"
        )
    if predicted == limit:  # the last document may be cut
        identity = hashlib.sha256(f"{identity}:{limit}".encode()).hexdigest()
    note = ""
    if tokenizer.chat_template and pairs:
        note = "prompts and completions are joined as they are (data.template=chat: as turns)"
    return Text(tokens, len(encoded), identity, note)
