"""Writes a store (store.py) document by document, in parts: one that was stopped goes on.

parts.jsonl has a line for each part that is on disk. What was written after the last of them is
cut off when the writing goes on.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from distill_jax.data.documents import Fingerprint, content_hash
from distill_jax.data.encode import Encoded
from distill_jax.data.store import BLOCK, BLOCKS, CHECKS, FILES, INDEX, VERSION, WHOLE
from distill_jax.files import opened, remove, sealed, write_json

PARTS = "parts.jsonl"
PART_TOKENS = 2**22  # of a part, at least
_BUFFER = 2**20  # bytes
# What an index tells of the documents; all are sums but `highest`, the largest token.
_COUNTS = {"documents": 0, "tokens": 0, "predicted": 0, "trained": 0, "pairs": 0, "highest": 0}


class StoreWriter:
    """A store that is being written. counts: of what is in it, as in the index.

    Nobody else writes there: whoever makes one holds a lock.
    """

    def __init__(self, directory: Path, dtype: np.dtype):
        directory.mkdir(parents=True, exist_ok=True)
        remove(directory / INDEX)
        self.directory, self.type, self.counts, names = directory, dtype, dict(_COUNTS), []
        size = 0  # of what is whole of PARTS
        for line, part in _parts(directory / PARTS):
            size, names = size + len(line) + 1, [*names, *part.pop("labels")]
            self.counts = part
        if not all(_whole(directory / name, size) for name, size in self._sizes().items()):
            size, self.counts, names = 0, dict(_COUNTS), []
        self.labels = {name: code for code, name in enumerate(names)}
        self._told = len(names)  # of the labels, those that PARTS has
        self._file = {name: _Numbers(directory / name, n) for name, n in self._sizes().items()}
        self._fingerprint = self._of_before(names)
        self._lines = _cut(directory / PARTS, size)
        self._since = 0

    def add(self, one: Encoded) -> None:
        """One more document."""
        label, counts = one.document.label, self.counts
        code, digest = self.labels.setdefault(label, len(self.labels)), content_hash(one.document)
        self._fingerprint.add_hash(digest, label)
        self._file["tokens"].write(one.ids.astype(self.type).tobytes())
        self._file["trained"].write(one.marks.tobytes())
        self._file["lengths"].write(len(one.ids).to_bytes(4, "little"))
        self._file["labels"].write(code.to_bytes(4, "little"))
        self._file["hashes"].write(digest)
        counts["documents"] += 1
        counts["tokens"] += len(one.ids)
        counts["predicted"] += max(len(one.ids) - 1, 0)
        counts["trained"] += int(np.count_nonzero(one.marks[1:]))
        counts["pairs"] += one.document.pair is not None
        counts["highest"] = max(counts["highest"], int(one.ids.max(initial=0)))
        self._since += len(one.ids)
        if self._since >= PART_TOKENS:
            self._commit()

    def finish(self) -> None:
        """Completes the store."""
        for file in self._file.values():
            file.finish()
        self.close()
        sizes, crc = {}, {}
        for name in (*FILES, *(f"{name}{CHECKS}" for name in BLOCKS)):
            path = self.directory / name
            sizes[name] = path.stat().st_size
            if name in WHOLE:
                crc[name] = zlib.crc32(path.read_bytes())
        index = {"version": VERSION, "type": self.type.str, **self.counts, "bytes": sizes}
        index |= {"crc": crc, "labels": [*self.labels], "sha256": self._fingerprint.hexdigest()}
        write_json(self.directory / INDEX, sealed(index))
        remove(self.directory / PARTS)

    def close(self) -> None:
        """Closes the files; a store that is not finished goes on from its last part."""
        for file in self._file.values():
            file.close()
        self._lines.close()

    def _sizes(self) -> dict[str, int]:
        documents, tokens = self.counts["documents"], self.counts["tokens"]
        sizes = (tokens * self.type.itemsize, tokens, 4 * documents, 4 * documents, 32 * documents)
        return dict(zip(FILES, sizes, strict=True))

    def _commit(self) -> None:
        for file in self._file.values():
            file.commit()
        line = {**self.counts, "labels": [*self.labels][self._told :]}
        self._lines.write(json.dumps(sealed(line)).encode() + b"\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())
        self._since, self._told = 0, len(self.labels)

    def _of_before(self, names: list[str]) -> Fingerprint:
        found = Fingerprint()
        hashes = (self.directory / "hashes").read_bytes()
        codes = np.frombuffer((self.directory / "labels").read_bytes(), "<u4")
        for document, code in enumerate(codes.tolist()):
            found.add_hash(hashes[32 * document : 32 * document + 32], names[code])
        return found


class _Numbers:
    """A file that is written on from a size, and the CRC of each of its blocks beside it."""

    def __init__(self, path: Path, size: int):
        self._data = _cut(path, size)
        self._checks = _cut(path.with_name(f"{path.name}{CHECKS}"), 4 * (size // BLOCK))
        with path.open("rb") as file:
            file.seek(size // BLOCK * BLOCK)
            self._open = bytearray(file.read())  # of the block that is not full

    def write(self, data: bytes) -> None:
        self._data.write(data)
        self._open += data
        if len(self._open) >= _BUFFER:
            self._check(len(self._open) // BLOCK * BLOCK)

    def commit(self) -> None:
        """Puts on disk what is written."""
        self._check(len(self._open) // BLOCK * BLOCK)
        for file in (self._data, self._checks):
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """The same, with the last block, which may be shorter."""
        self._check(len(self._open))
        self.commit()

    def close(self) -> None:
        for file in (self._data, self._checks):
            file.close()

    def _check(self, size: int) -> None:
        with memoryview(self._open) as view:
            blocks = [zlib.crc32(view[i : min(i + BLOCK, size)]) for i in range(0, size, BLOCK)]
        self._checks.write(np.array(blocks, "<u4").tobytes())
        del self._open[:size]


def _cut(path: Path, size: int) -> BinaryIO:
    """A file of a size, to be written on."""
    path.touch()
    os.truncate(path, size)
    return path.open("ab", buffering=_BUFFER)


def _whole(path: Path, size: int) -> bool:
    """Whether a file begins with what was written of it, as far as that is whole blocks."""
    checks, blocks = path.with_name(f"{path.name}{CHECKS}"), size // BLOCK
    if not path.is_file() or not checks.is_file() or path.stat().st_size < size:
        return False
    known = checks.read_bytes()[: 4 * blocks]
    with path.open("rb") as file:
        seen = [zlib.crc32(file.read(BLOCK)) for _ in range(blocks)]
    return known == np.array(seen, "<u4").tobytes()


def _parts(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines that are whole, with what they say; what follows one that is not is no part."""
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        try:
            part = opened(json.loads(line))
        except ValueError:
            return
        if part is None:
            return
        yield line, part
