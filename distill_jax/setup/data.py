"""The rows of a config: read, split, tokenized, packed, and brought onto the mesh."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.config import at_least, choose
from distill_jax.data.cache import Cache, CachedRows, check_match
from distill_jax.data.documents import Document, fingerprint, place_of, split_documents
from distill_jax.data.encode import Tokenized, check_vocabulary, tokenize_documents
from distill_jax.data.formats import FORMATS
from distill_jax.data.limits import Limits, filled_by
from distill_jax.data.pack import Rows, describe, empty_row, pack
from distill_jax.data.pipeline import batch_at, eval_batches, train_batches, train_rows
from distill_jax.data.sources import read_documents
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.setup.models import Loaded
from distill_jax.sharding import local_rows, to_global
from distill_jax.types import Advance, Batch, UserError, silent

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
    """Tokenized documents and what identifies them."""

    tokenized: Tokenized
    documents: int
    fingerprint: str


class Data(NamedTuple):
    """Packed rows and what identifies the documents they come from."""

    rows: Rows
    documents: int
    fingerprint: str


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
    return _chosen(documents, limits, ""), _chosen(held_out, eval_limits, "eval_")


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
    return _chosen(_read(c, source, filled_by(limits)), limits, "eval_")


def _limits(c: ConfigDict) -> tuple[Limits, Limits]:
    """Those of training and of evaluation."""
    for key in ("max_documents", "max_tokens", "eval_max_documents", "eval_max_tokens"):
        at_least(f"data.{key}", c.data[key], 0)
    return (
        Limits(c.data.max_documents, c.data.max_tokens),
        Limits(c.data.eval_max_documents, c.data.eval_max_tokens),
    )


def _chosen(documents: list[Document], limits: Limits, part: str) -> Chosen:
    first = documents[: limits.documents or None]
    return Chosen(first, limits.tokens, f"config.data.{part}max_tokens")


def _split(c: ConfigDict, *limits: Limits) -> tuple[list[Document], list[Document]]:
    """data.source, read until there is enough for training and for evaluation, and split."""
    fraction, full = c.data.held_out_fraction, [False, False]
    filled = [filled_by(some) for some in limits]

    def enough(document: Document) -> bool:
        part = int(place_of(document, SPLIT_SEED) < fraction)
        full[part] = filled[part](document) or full[part]
        return all(full)

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
    if chosen.max_tokens:
        starts = tokens.offsets[:-1][np.diff(tokens.offsets) > 0]
        predicted = np.delete(tokens.trained, starts)
        if len(predicted) and not predicted.any():
            raise UserError(
                f"{chosen.key} is {chosen.max_tokens}: all of these tokens are of prompts, which"
                " are not trained: use more"
            )
        # The last document may be cut.
        identity = hashlib.sha256(f"{identity}:{len(tokens.tokens)}".encode()).hexdigest()
    return Text(tokens, len(used), identity)


def packed(c: ConfigDict, text: Text, *, seed: int | None) -> Data:
    """The rows of a text; without a seed in the order of its documents, for evaluation."""
    if c.data.seq_len < 1:
        raise UserError(f"config.data.seq_len is {c.data.seq_len}: use at least 1")
    rows = pack(text.tokenized, seq_len=c.data.seq_len, seed=seed)
    return Data(rows, text.documents, text.fingerprint)


def with_cache(
    c: ConfigDict,
    cache: Cache,
    tokenizer: Tokenizer,
    teacher: Loaded | None,
    part: Data,
    read: Iterable[int],
) -> Data:
    """The same text with the signals of a cache; read: the rows that will be asked for.

    Raises UserError where the cache is of another teacher, tokenizer or window, or lacks a piece.
    """
    path = Path(c.teacher.cache)
    check_match(cache.manifest, path, cache_hashes(teacher, tokenizer), c.data.seq_len)
    lacking, pieces = cache.missing(part.rows[i] for i in read)
    if lacking:
        raise UserError(
            f"config.teacher.cache {path} lacks {lacking} of {pieces} pieces of this text:"
            " run the job cache again with this config"
        )
    return part._replace(rows=CachedRows(part.rows, cache))


def plain(rows: Rows | CachedRows) -> Rows:
    """The rows alone, without the signals of a cache."""
    return rows.rows if isinstance(rows, CachedRows) else rows


def rows_read(c: ConfigDict, rows: Rows) -> list[int]:
    """The rows that config.steps updates read, each once."""
    if c.steps * c.data.batch_size >= len(rows):
        return list(range(len(rows)))
    return train_rows(len(rows), c.steps, batch_size=c.data.batch_size, seed=c.seed)


def cache_hashes(teacher: Loaded | None, tokenizer: Tokenizer) -> dict[str, str | None]:
    """What a cache must share with a run; the teacher only where its weights are at hand."""
    known = {"tokenizer": tokenizer.fingerprint, "chat template": template_hash(tokenizer)}
    return known | ({"teacher": teacher.fingerprint} if teacher else {})


def template_hash(tokenizer: Tokenizer) -> str | None:
    """What identifies a chat template; None where there is none."""
    template = tokenizer.chat_template
    return template and hashlib.sha256(template.encode()).hexdigest()


def batch_of(chosen: list[Batch], size: int, mesh: Mesh, padding: Callable | None = None) -> Batch:
    """Up to `size` host rows on the mesh, filled up with rows of nothing."""
    length = len(chosen[0].tokens_BT)
    empty = empty_row(length)._replace(targets=padding and padding(length))
    rows = [*chosen, *[empty] * (size - len(chosen))][local_rows(mesh, size)]
    return to_global(jax.tree.map(lambda *x: np.stack(x), *rows), mesh, size)


def training_batches(
    c: ConfigDict, rows: Rows, mesh: Mesh, start: int
) -> Iterator[tuple[Batch, Batch]]:
    """From update `start` on: this process's host rows of each batch, and the whole on the mesh."""
    batches = train_batches(
        rows,
        batch_size=c.data.batch_size,
        seed=c.seed,
        start_step=start,
        stop_step=c.steps,
        prefetch=c.data.prefetch,
        row_slice=local_rows(mesh, c.data.batch_size),
    )
    for host in batches:
        yield host, to_global(host, mesh, c.data.batch_size)


def calibration_batches(c: ConfigDict, rows: Rows, mesh: Mesh) -> list[Batch]:
    """Training text for student.prune.calibration_tokens: the batches that follow the last step.

    A refit fits its own tokens better than any others, so the first updates use others.
    """
    size = c.data.batch_size
    count = max(1, round(c.student.prune.calibration_tokens / (size * c.data.seq_len)))
    part = local_rows(mesh, size)
    load = lambda step: batch_at(rows, step, batch_size=size, seed=c.seed, row_slice=part)
    return [to_global(load(c.steps + i), mesh, size) for i in range(count)]


def held_out_batches(c: ConfigDict, rows: Rows, mesh: Mesh) -> Iterator[Batch]:
    """All rows once, in order, on the mesh."""
    size, part = c.eval.batch_size, local_rows(mesh, c.eval.batch_size)
    for host in eval_batches(rows, batch_size=size, prefetch=c.data.prefetch, row_slice=part):
        yield to_global(host, mesh, size)


def description(part: Data) -> str:
    """One line about packed text."""
    epoch = describe(plain(part.rows))
    trained = f" ({epoch.trained_tokens:,} of them trained)"
    return (
        f"{part.documents:,} documents, {epoch.tokens:,} tokens"
        f"{trained if epoch.trained_tokens < epoch.tokens else ''},"
        f" {epoch.rows:,} rows of {part.rows.seq_len} ({epoch.fill:.1%} filled)"
    )
