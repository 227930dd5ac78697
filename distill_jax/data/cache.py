"""A teacher's signals on disk, one record per piece of text, keyed by a hash of its tokens.

Rows are packed from pieces (data/pack.py). Attention stays in a piece and its positions start at 0,
so a teacher's signals for a piece depend only on its tokens. A cache therefore does not depend on
packing, order, batch size or seed, and a piece of another text, tokenizer or window is not in it.

A directory holds ArrayRecord shards, each with an index of keys and a digest, and manifest.json.
Every file is read and checked when the cache is opened, and every record again when it is used.
"""

import hashlib
import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from distill_jax.data.cache_files import (
    AGAIN,
    HEAD,
    SHARD,
    Manifest,
    damaged,
    digest_of,
    read_index,
    read_manifest,
    shard_names,
    short,
)
from distill_jax.data.cache_records import KEY_BYTES, KINDS, Signals, from_record
from distill_jax.data.pack import Rows
from distill_jax.types import Batch, UserError
from distill_jax.words import first_line

READERS = 128  # shards open at a time: some systems allow only 256 files per process


def piece_key(tokens_T: np.ndarray) -> bytes:
    """The name of a piece: a hash of its input tokens."""
    little = np.ascontiguousarray(tokens_T, "<i4")
    return hashlib.blake2b(little.tobytes(), digest_size=KEY_BYTES).digest()


def pieces_of(row: Batch) -> Iterator[tuple[slice, bytes]]:
    """The places and keys of the pieces of one row of [T] arrays."""
    segment = np.asarray(row.segment_BT)
    starts = np.flatnonzero(np.diff(segment, prepend=0))
    for start, stop in itertools.pairwise([*starts, len(segment)]):
        if segment[start]:
            yield slice(start, stop), piece_key(row.tokens_BT[start:stop])


class Cache:
    """A complete cache, to read from any thread."""

    def __init__(self, directory: Path, manifest: Manifest, places: dict[bytes, tuple[str, int]]):
        self.directory, self.manifest, self.places = directory, manifest, places
        self.readers: dict[str, ArrayRecordReader] = {}
        self.lock = threading.Lock()

    def missing(self, rows: Iterable[Batch]) -> tuple[int, int]:
        """(number of absent pieces, number of pieces) of some rows."""
        keys = [key for row in rows for _, key in pieces_of(row)]
        return sum(key not in self.places for key in keys), len(keys)

    def attach(self, row: Batch) -> Batch:
        """A row of [T] arrays with `targets`. Raises UserError for an absent piece."""
        length = len(row.tokens_BT)
        targets: Signals | None = None
        for place, key in pieces_of(row):
            signals = self._read(key)
            if targets is None:
                targets = self._padding(length, signals)
            for name, value in signals.items():
                targets[name][place] = value
        return row._replace(targets=self.padding(length) if targets is None else targets)

    def padding(self, length: int) -> Signals:
        """The targets of positions that hold no token."""
        key = next(iter(self.places))
        return self._padding(length, self._read(key))

    def _padding(self, length, like):
        fill = KINDS[self.manifest.kind].padding
        return {n: np.full((length, *x.shape[1:]), fill[n], x.dtype) for n, x in like.items()}

    def _read(self, key):
        if key not in self.places:
            raise UserError(
                f"{self.directory} has no signals for a piece of this text: it was made from other"
                f" documents, another tokenizer or another data.seq_len: {AGAIN} with this config"
            )
        name, number = self.places[key]
        path = self.directory / f"{name}{SHARD}"
        # ArrayRecord raises RuntimeError or IndexError if a file changed after it was opened.
        try:
            with self.lock:
                (record,) = self._reader(path).read([number])
            return from_record(self.manifest.kind, key, record, self.manifest.form)
        except (ValueError, RuntimeError, IndexError) as error:
            raise damaged(path, first_line(error)) from None

    def _reader(self, path):
        """The reader of a shard; the READERS most recently used ones stay open."""
        options = "readahead_buffer_size:0,max_parallelism:0"
        reader = self.readers.pop(path.name, None) or ArrayRecordReader(str(path), options)
        self.readers[path.name] = reader
        if len(self.readers) > READERS:
            del self.readers[next(iter(self.readers))]
        return reader

    def head(self) -> tuple[np.ndarray, np.ndarray | None] | None:
        """(weight_DV, bias_V) of the teacher; None for kinds that need none."""
        if self.manifest.kind != "hidden":
            return None
        path = self.directory / HEAD
        if not path.exists() or digest_of(path) != self.manifest.hashes["head"]:
            raise damaged(path, "digest")
        with np.load(path) as stored:
            return stored["weight"], stored.get("bias")


def open_cache(directory: Path) -> Cache:
    """Opens a cache and checks every file. Raises UserError if it is damaged or incomplete."""
    manifest = read_manifest(directory)
    if not manifest.complete:
        raise UserError(f"{directory} is not complete: {AGAIN}, which goes on where it stopped")
    places: dict[bytes, tuple[str, int]] = {}
    indices = {name: read_index(directory, name) for name in shard_names(directory)}
    # Two processes may both have stored a piece: the choice must not depend on file names.
    for name, index in sorted(indices.items(), key=lambda item: item[1]["digest"]):
        if digest_of(directory / f"{name}{SHARD}") != index["digest"]:
            raise damaged(directory / f"{name}{SHARD}", "digest")
        places |= {bytes.fromhex(key): (name, i) for i, key in enumerate(index["keys"])}
    if len(places) != manifest.pieces:
        raise UserError(
            f"{directory} has {len(places)} pieces of {manifest.pieces}: shards are absent or"
            f" duplicated: {AGAIN}"
        )
    return Cache(directory, manifest, places)


def check_match(manifest: Manifest, path: Path, hashes: dict[str, str | None], seq_len: int):
    """Raises UserError if a cache has another teacher, tokenizer or window.

    hashes: the known ones; absent names are not compared.
    """
    for name, value in hashes.items():
        if manifest.hashes.get(name) != value:
            raise UserError(
                f"config.teacher.cache {path} was made with another {name}"
                f" ({short(manifest.hashes.get(name))} there, {short(value)} here):"
                f" use a matching cache, or {AGAIN}"
            )
    if manifest.seq_len != seq_len:
        raise UserError(
            f"config.teacher.cache {path} has windows of {manifest.seq_len} tokens and"
            f" config.data.seq_len is {seq_len}: use {manifest.seq_len}, or {AGAIN}"
        )


class CachedRows:
    """Rows with targets from a cache; the same interface as Rows."""

    def __init__(self, rows: Rows, cache: Cache):
        self.rows, self.cache = rows, cache
        self.seq_len, self.sizes, self.weights = rows.seq_len, rows.sizes, rows.weights

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Batch:
        return self.cache.attach(self.rows[i])

    def padding(self) -> Batch:
        """An empty row, to fill up a batch."""
        return self.cache.attach(self.rows.padding())
