"""Files as streams of bytes, unpacked while they are read where they are compressed."""

import io
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from distill_jax.data.table_worker import BYTES, BYTES_PER_BYTE
from distill_jax.types import UserError
from distill_jax.untrusted import check_file
from distill_jax.words import first_line

# By the first bytes; and the suffix that says so.
PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
SUFFIXES = {".gz": "gzip", ".zst": "zstd"}


def packing_of(head: bytes) -> str:
    """How a file is compressed that begins with these bytes; empty: not at all, or otherwise."""
    return next((name for magic, name in PACKED.items() if head.startswith(magic)), "")


def plain_name(path: Path) -> Path:
    """The path without a suffix that tells of compression."""
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


def open_bytes(path: Path, most: int | None = None) -> BinaryIO:
    """A file to be read, unpacked where its first bytes are of a known kind of compression.

    most: bytes that a packed file may unfold to, if not as many as texts of its size do.
    Reading raises UserError where a packed file is damaged or cut, or unfolds to more. Memory is
    taken for what is read, and at most 128 MiB for unpacking.
    """
    check_file(path)
    file = path.open("rb")
    packing = packing_of(file.peek(4))
    if not packing:
        return file
    return io.BufferedReader(_Unpacked(path, file, packing, most))


def check_packed(path: Path) -> None:
    """Raises UserError where a packed file is damaged or unfolds to too much; looks at a GiB of it.

    A changed byte changes what is unpacked; the checksum, which stands at the end, shows it.
    """
    check_file(path)
    with path.open("rb") as file:
        if not packing_of(file.read(4)):
            return
    with open_bytes(path) as file:
        for _ in range(1024):
            if not file.read(2**20):
                return


class _Unpacked(io.RawIOBase):
    def __init__(self, path: Path, file: BinaryIO, packing: str, most: int | None):
        self._path, self._packing, self._file = path, packing, file
        self._most = BYTES + BYTES_PER_BYTE * path.stat().st_size if most is None else most
        self._given = 0
        self._stream = pa.CompressedInputStream(file, packing)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        try:
            data = self._stream.read(len(buffer))
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self._path}: its {self._packing} stream is damaged or cut"
                f" ({first_line(error)}): write or copy the file again"
            ) from None
        self._given += len(data)
        if self._given > self._most:
            raise UserError(
                f"{self._path} unfolds to more than {self._most:,} bytes: unpack it if it is as it"
                " should be, and split it into several if it is a text"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()
