"""Writes a teacher cache: claimed by one process, filled by all, then marked as complete."""

import hashlib
import io
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from distill_jax.data.cache_files import (
    AGAIN,
    HEAD,
    INDEX,
    MANIFEST,
    SHARD,
    Manifest,
    check_same,
    digest_of,
    read_index,
    read_manifest,
    shard_keys,
    shard_names,
    write_sealed,
)
from distill_jax.data.cache_records import Signals, to_record
from distill_jax.files import written_whole
from distill_jax.types import OutOfRoom, UserError
from distill_jax.words import first_line


class Writer:
    """Adds pieces to a directory, from where an earlier writer stopped.

    Several processes may write, each under its own number, once process 0 has returned from
    `claim`. Raises UserError where the directory holds a cache of another manifest.
    """

    def __init__(self, directory: Path, manifest: Manifest, process: int, shard_tokens: int):
        check_same(directory, manifest)
        self.directory, self.manifest, self.process = directory, manifest, process
        self.shard_tokens = shard_tokens
        self.done = shard_keys(directory)
        self.records: dict[str, bytes] = {}
        self.tokens = 0

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """The keys that no process has committed and this one has not added."""
        return [k for k in keys if k.hex() not in self.done and k.hex() not in self.records]

    def add(self, key: bytes, signals: Signals) -> None:
        """Adds one piece; a shard is written once it is full."""
        record = to_record(self.manifest.kind, key, signals, self.manifest.form)
        self.records[key.hex()] = record
        self.tokens += len(next(iter(signals.values())))
        if self.tokens >= self.shard_tokens:
            self.commit()

    def commit(self) -> None:
        """Writes the added pieces as a new shard, completely or not at all.

        Raises UserError if that fails.
        """
        if not self.records:
            return
        mine = [n for n in shard_names(self.directory) if n.endswith(f"-{self.process:05d}")]
        name = f"shard-{1 + max((int(n.split('-')[1]) for n in mine), default=-1):05d}"
        name += f"-{self.process:05d}"
        shard = self.directory / f"{name}{SHARD}"
        try:
            with written_whole(shard) as part:
                _write_records(part, self.records.values())
                digest = digest_of(part)
                index = {"digest": digest, "keys": list(self.records), "tokens": self.tokens}
                write_sealed(self.directory / f"{name}{INDEX}", index)
        except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
            raise OutOfRoom(
                f"{shard} cannot be written ({first_line(error)}): make room and"
                f" {AGAIN}, which goes on where it stopped"
            ) from error
        self.done |= self.records.keys()
        self.records, self.tokens = {}, 0


def _write_records(path: Path, records: Iterable[bytes]) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for record in records:
        writer.write(record)
    writer.close()


def claim(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest of a new cache, or removes the partial files of a stopped job.

    Raises UserError for a cache with another manifest, or for shards without one.
    """
    if not (directory / MANIFEST).exists():
        if shard_names(directory):
            raise UserError(
                f"{directory} holds shards without {MANIFEST}, so their teacher is unknown:"
                " use another directory"
            )
        write_sealed(directory / MANIFEST, manifest._asdict())
        return
    check_same(directory, manifest)
    kept = set(shard_names(directory))
    for path in directory.glob("shard-*"):
        if path.name.split(".")[0] not in kept or path.name.endswith(".part"):
            path.unlink()


def finish(directory: Path, keys: set[bytes]) -> Manifest:
    """Marks a cache as complete. Raises UserError where one of the keys is not in it."""
    indices = [read_index(directory, name) for name in shard_names(directory)]
    held = {key for index in indices for key in index["keys"]}
    lost = {key.hex() for key in keys} - held
    if lost:
        raise UserError(f"{directory} lacks {len(lost)} of {len(keys)} pieces: {AGAIN}")
    manifest = read_manifest(directory)._replace(
        complete=True, pieces=len(held), tokens=sum(index["tokens"] for index in indices)
    )
    write_sealed(directory / MANIFEST, manifest._asdict())
    return manifest


def check_disk(directory: Path, needed: int) -> None:
    """Raises UserError if `needed` bytes would not leave a reserve on the disk."""
    disk = shutil.disk_usage(directory)
    reserve = min(disk.total // 20, 10**9)
    if needed > disk.free - reserve:
        raise UserError(
            f"the cache needs {needed / 1e9:.2f} GB and {directory} has {disk.free / 1e9:.2f} GB"
            f" free, of which {reserve / 1e9:.2f} GB are reserved: use another disk, less text or a"
            " smaller teacher.targets or cache.dtype"
        )


def head_file(weight_DV: np.ndarray, bias_V: np.ndarray | None) -> tuple[bytes, str]:
    """The teacher's head as the bytes of a file, and its digest for the manifest."""
    arrays = {"weight": weight_DV} | ({} if bias_V is None else {"bias": bias_V})
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue(), hashlib.blake2b(content.getbuffer()).hexdigest()


def write_head(directory: Path, content: bytes) -> None:
    """Writes the teacher's head beside its hidden states, once the directory is claimed."""
    with written_whole(directory / HEAD) as part:
        part.write_bytes(content)
