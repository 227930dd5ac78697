"""Tokenized documents on disk, read piece by piece: a text needs no more memory than its rows.

A directory holds numbers, little-endian, one file for each of FILES, and index.json, which is
written last. tokens and trained are read in blocks, each of which is checked against its CRC as it
is read: a flipped byte ends a run instead of teaching it. The others are read and checked whole.
Files are read by pread and not mapped: what a map has touched counts as memory of the process.
"""

import bisect
import itertools
import os
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill_jax.data.encode import Tokenized
from distill_jax.files import read_sealed, remove
from distill_jax.types import ChangedOnDisk

VERSION = 1
INDEX = "index.json"
BLOCK = 2**14  # bytes with one CRC
CHECKS = ".crc"  # after the name of a file of blocks: uint32 for each, the last may be shorter
BLOCKS = ("tokens", "trained")
# trained: uint8. lengths, labels: uint32, of each document its tokens and the number of its label.
# hashes: 32 bytes of each document, so that a writer that goes on knows what it has.
FILES = (*BLOCKS, "lengths", "labels", "hashes")
WHOLE = ("lengths", "labels", *(f"{name}{CHECKS}" for name in BLOCKS))  # their CRC is in the index


class Damaged(Exception):
    """A store is not whole; the message says what is wrong."""


class Store(NamedTuple):
    """A complete store. index: what store_writer.py writes of it."""

    tokenized: Tokenized
    index: dict[str, Any]


class Blocks(Sequence):
    """A file of blocks as an array of which slices are read from disk; from any thread."""

    def __init__(self, path: Path, dtype: np.dtype, checks: np.ndarray):
        self.path, self.dtype, self._checks = path, np.dtype(dtype), checks
        self._file = os.open(path, os.O_RDONLY)
        self._bytes = os.fstat(self._file).st_size
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return self._bytes // self.dtype.itemsize

    def __getitem__(self, part: slice) -> np.ndarray:
        """Raises ChangedOnDisk where a block is not what was written."""
        start, stop, _ = part.indices(len(self))
        if stop <= start:
            return np.zeros(0, self.dtype)
        begin, end = start * self.dtype.itemsize, stop * self.dtype.itemsize
        first = begin // BLOCK
        size = min(-(-end // BLOCK) * BLOCK, self._bytes) - first * BLOCK
        data = memoryview(self._read(size, first * BLOCK))
        for number, place in enumerate(range(0, size, BLOCK), first):
            if zlib.crc32(data[place : place + BLOCK]) != self._checks[number]:
                self._refuse(number)
        return np.frombuffer(data, self.dtype, stop - start, begin - first * BLOCK)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _read(self, size: int, place: int) -> bytearray:
        data, done = bytearray(size), 0
        with memoryview(data) as view:
            # One call of the system gives at most 2 GiB.
            while done < size and (got := os.preadv(self._file, [view[done:]], place)):
                done, place = done + got, place + got
        return data

    def _refuse(self, number: int) -> None:
        remove(self.path.parent / INDEX)  # so that the next run writes all of it again
        raise ChangedOnDisk(
            f"{self.path} has changed on disk since it was written (block {number}): run the same"
            " command again, which tokenises this text again; look after that disk"
        )


class Joined(Sequence):
    """Several arrays, of which slices are taken as if they were one."""

    def __init__(self, parts: Sequence[Sequence]):
        self.parts = tuple(parts)
        self.ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, part: slice) -> np.ndarray:
        start, stop, _ = part.indices(len(self))
        found = []
        for i in range(bisect.bisect_right(self.ends, start), len(self.parts)):
            begin = self.ends[i] - len(self.parts[i])
            if stop <= begin:
                break
            found.append(self.parts[i][max(0, start - begin) : stop - begin])
        return found[0] if len(found) == 1 else np.concatenate(found or [self.parts[0][:0]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate([np.asarray(part) for part in self.parts])
        return whole.astype(dtype or whole.dtype, copy=False)


class Labels(Sequence):
    """The label of each document, by its number among the different ones."""

    def __init__(self, names: Sequence[str], codes: np.ndarray):
        self.names, self.codes = tuple(names), codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, document):
        if isinstance(document, slice):
            return tuple(self.names[code] for code in self.codes[document])
        return self.names[self.codes[document]]

    def __iter__(self) -> Iterator[str]:
        return (self.names[code] for code in self.codes.tolist())


def token_type(vocab: int) -> np.dtype:
    """How the tokens of a vocabulary are stored."""
    return np.dtype("<u2" if vocab <= 2**16 else "<u4")


def open_store(directory: Path) -> Store | None:
    """A store; None where there is none yet. Raises Damaged where it is not whole."""
    if not (directory / INDEX).exists():
        return None
    index = read_sealed(directory / INDEX)
    if index is None or index.get("version") != VERSION:
        raise Damaged(f"{INDEX} is damaged")
    for name, size in index["bytes"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != size:
            raise Damaged(f"{name} is lost or cut")
    wholes = {name: (directory / name).read_bytes() for name in WHOLE}
    for name, data in wholes.items():
        if zlib.crc32(data) != index["crc"][name]:
            raise Damaged(f"{name} has changed")
    arrays = {name: np.frombuffer(data, "<u4") for name, data in wholes.items()}
    offsets = np.zeros(index["documents"] + 1, np.int64)
    np.cumsum(arrays["lengths"], out=offsets[1:])
    types = {"tokens": np.dtype(index["type"]), "trained": np.dtype("u1")}
    tokens, trained = (
        Blocks(directory / name, types[name], arrays[f"{name}{CHECKS}"]) for name in BLOCKS
    )
    labels = Labels(index["labels"], arrays["labels"])
    return Store(Tokenized(tokens, trained, offsets, labels, index["trained"]), index)


def join(texts: Sequence[Tokenized]) -> Tokenized:
    """Several texts as one, in their order."""
    if len(texts) == 1:
        return texts[0]
    lengths = np.concatenate([np.diff(text.offsets) for text in texts])
    names = {name: None for text in texts for name in text.labels.names}
    number = {name: code for code, name in enumerate(names)}
    codes = [np.array([number[n] for n in t.labels.names])[t.labels.codes] for t in texts]
    return Tokenized(
        tokens=Joined([text.tokens for text in texts]),
        trained=Joined([text.trained for text in texts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=Labels([*names], np.concatenate(codes)),
        trained_tokens=sum(text.trained_tokens for text in texts),
    )
