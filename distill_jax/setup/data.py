"""The rows of a config: packed, with the signals of a cache, and brought onto the mesh."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.data.cache import Cache, CachedRows, check_match
from distill_jax.data.cache_files import Manifest
from distill_jax.data.cleaning import Removed
from distill_jax.data.pack import Rows, describe, empty_row, mixed, pack
from distill_jax.data.pipeline import batch_at, eval_batches, train_batches, train_rows
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.setup.cleaning import removed_line
from distill_jax.setup.identity import as_known
from distill_jax.setup.models import Loaded
from distill_jax.setup.storing import Part, Text
from distill_jax.sharding import local_rows, to_global
from distill_jax.types import Batch, UserError


class Data(NamedTuple):
    """Packed rows, what identifies the documents they come from, and a line on each source.

    parts: of each source. removed: as that of Text.
    """

    rows: Rows
    documents: int
    fingerprint: str
    note: str
    read: tuple[str, ...]
    parts: tuple[Part, ...]
    removed: dict[str, Removed]


def packed(c: ConfigDict, text: Text, *, seed: int | None) -> Data:
    """The rows of a text; without a seed in the order of its documents, for evaluation."""
    if c.data.seq_len < 1:
        raise UserError(f"config.data.seq_len is {c.data.seq_len}: use at least 1")
    parts = [pack(part.tokenized, seq_len=c.data.seq_len, seed=seed) for part in text.parts]
    rows = mixed(parts, () if seed is None else c.data.weights)
    of_text = (text.documents, text.fingerprint, text.note, text.read, text.parts, text.removed)
    return Data(rows, *of_text)


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
    hashes = cache_hashes(teacher, tokenizer, cache.manifest)
    check_match(cache.manifest, path, hashes, c.data.seq_len)
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
    return train_rows(rows, c.steps, batch_size=c.data.batch_size, seed=c.seed)


def cache_hashes(
    teacher: Loaded | None, tokenizer: Tokenizer, manifest: Manifest | None
) -> dict[str, str | None]:
    """What a cache must share with a run; the teacher only where its weights are at hand.

    manifest: of the cache that there is; it may know the teacher as former versions did.
    """
    known = {"tokenizer": tokenizer.fingerprint, "chat template": template_hash(tokenizer)}
    if teacher is None:
        return known
    of_cache = manifest and manifest.hashes.get("teacher")
    return known | {"teacher": as_known(of_cache, teacher.fingerprint, teacher.former)}


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
    """From update `start` on: host rows of each batch, and the whole on the mesh.

    Process 0 has all rows on the host, so that what it writes of a batch does not depend on how
    many processes share it; the others have theirs.
    """
    part = local_rows(mesh, c.data.batch_size)
    first = jax.process_index() == 0
    batches = train_batches(
        rows,
        batch_size=c.data.batch_size,
        seed=c.seed,
        start_step=start,
        stop_step=c.steps,
        prefetch=c.data.prefetch,
        row_slice=slice(None) if first else part,
    )
    for host in batches:
        own = jax.tree.map(lambda x: x[part], host) if first else host
        yield host, to_global(own, mesh, c.data.batch_size)


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


def tokens_by_source(part: Data, host: Batch) -> dict[str, int]:
    """How many trained tokens of a batch on the host are of each source; empty if there is one."""
    if len(part.parts) == 1:
        return {}
    ends = np.cumsum([source.documents for source in part.parts])
    document_n = np.asarray(host.document_BT)[np.asarray(host.weight_BT) > 0]
    count_n = np.bincount(np.searchsorted(ends, document_n, "right"), minlength=len(ends))
    names = (source.name for source in part.parts)
    return dict(zip(names, count_n.tolist(), strict=True))


def description(part: Data) -> str:
    """A line about packed text, and some on each of its sources."""
    epoch, rows = describe(plain(part.rows)), part.rows
    trained = f" ({epoch.trained_tokens:,} of them trained)"
    line = (
        f"{part.documents:,} documents, {epoch.tokens:,} tokens"
        f"{trained if epoch.trained_tokens < epoch.tokens else ''},"
        f" {epoch.rows:,} rows of {rows.seq_len} ({epoch.fill:.1%} filled)"
        f"{part.note and f'; {part.note}'}"
    )
    weights = rows.weights or rows.sizes
    lines = [
        f"  {source.name}: {source.documents:,} documents, {size:,} rows,"
        f" {weight / sum(weights):.1%} of those that are read"
        for source, size, weight in zip(part.parts, rows.sizes, weights, strict=True)
    ]
    of_reading = [f"  {line}" for line in (*part.read, removed_line(part.removed)) if line]
    return "\n".join([line, *of_reading, *(lines if len(lines) > 1 else ())])
