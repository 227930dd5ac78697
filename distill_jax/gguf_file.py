"""Reads GGUF files within bounds, and writes them; the gguf package knows the types of tensors.

Its own reader follows whatever a file says: counts up to 2**64, arrays in arrays, tensors over each
other; and it makes an array of every number.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGML_QUANT_VERSION,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
)

from distill_jax.files import lack_of, written_whole
from distill_jax.types import UserError
from distill_jax.untrusted import check_file

# Real files have 150 keys, 2,000 tensors and 1.3 million elements in the arrays of a vocabulary.
MOST_KEYS = 2**14
MOST_TENSORS = 2**17
MOST_ELEMENTS = 2**23
LONGEST_TEXT = 2**24  # bytes
_DIMENSIONS = 4

# Types of values by their number; all are little-endian.
_SCALARS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?")))
_SCALARS |= {10: "<u8", 11: "<i8", 12: "<f8"}
_TEXT, _ARRAY = 8, 9
_VALUE_TYPES = {
    bool: GGUFValueType.BOOL,
    int: GGUFValueType.UINT32,
    float: GGUFValueType.FLOAT32,
    str: GGUFValueType.STRING,
}
_VERSION = {"general.quantization_version": GGML_QUANT_VERSION}


class Tensor(NamedTuple):
    """A tensor as it is stored.

    shape   as the file counts it, the fastest dimension first
    offset  byte of the file at which it begins
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int


class File(NamedTuple):
    """What a GGUF file holds, by name; its values are Python's."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class NewTensor(NamedTuple):
    """A tensor to be written.

    shape   the slowest dimension first, in numbers
    values  makes the data: float32, float16, or the bytes of blocks
    """

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]


class _Bad(Exception):
    """What is wrong with a file."""


def read_gguf(path: Path) -> File:
    """The metadata, and where the tensors lie.

    Raises UserError for a file that ends early, counts more than any model has, repeats a name,
    has arrays in arrays or types that are not known, or tensors outside of it or over each other.
    """
    check_file(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            walk = _Walk(data)
            metadata, infos = walk.header()
            start = walk.start_of_tensors(metadata)
        _check_places(infos, start, path.stat().st_size)
    except (_Bad, ValueError, OSError) as error:  # ValueError: an empty file
        raise UserError(f"{path} is not a complete GGUF file ({error}): copy it again") from None
    tensors = {i.name: Tensor(i.name, i.kind, i.shape, start + i.offset) for i in infos}
    return File(metadata, tensors)


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Sequence[NewTensor]
) -> None:
    """Writes a file, completely or not at all, with one tensor's data in memory at a time.

    metadata: whole numbers are written as uint32, others as float32, those of a list as int32 and
    float32; an empty list is left out. Raises UserError where it cannot be written.
    """
    try:
        with written_whole(path) as part:
            _write(GGUFWriter(part, architecture), metadata, tensors)
    except OSError as error:
        if lack_of(error, path.parent):
            raise
        raise UserError(f"cannot write {path} ({error.strerror}): choose another place") from None


def _write(writer, metadata, tensors):
    try:
        for key, value in {**metadata, **_VERSION}.items():
            if not isinstance(value, list):
                writer.add_key_value(key, value, _VALUE_TYPES[type(value)])
            elif value:
                writer.add_array(key, value)
        for tensor in tensors:
            per_block, size = GGML_QUANT_SIZES[tensor.kind]
            size = math.prod(tensor.shape) // per_block * size
            of = (tensor.name, tensor.shape, np.dtype(np.float32), size)
            writer.add_tensor_info(*of, raw_dtype=tensor.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor.values())
    finally:
        writer.close()


class _Info(NamedTuple):
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size: int  # bytes


class _Walk:
    """Goes through a header once."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at, self.elements = data, 0, 0

    def header(self) -> tuple[dict[str, Any], list[_Info]]:
        if self.take(4) != b"GGUF":
            raise _Bad("it does not begin with GGUF")
        version = self.number("<u4")
        if version not in (2, 3):  # the byte order is part of it
            raise _Bad(f"its version is {version}, and little-endian 2 and 3 are read")
        tensors = _limited(self.number("<u8"), MOST_TENSORS, "tensors")
        keys = _limited(self.number("<u8"), MOST_KEYS, "keys")
        metadata = {}
        for _ in range(keys):
            name = self.new_name(metadata)
            metadata[name] = self.value(self.number("<u4"), name)
        infos = {}
        for _ in range(tensors):
            name = self.new_name(infos)
            infos[name] = self.info(name)
        return metadata, list(infos.values())

    def start_of_tensors(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment.bit_count() != 1:
            raise _Bad(f"its alignment is {str(alignment)[:60]}, not a power of 2")
        return -(-self.at // alignment) * alignment

    def value(self, kind: int, name: str) -> Any:
        if kind != _ARRAY:
            return self.values(kind, 1, name)[0]
        kind = self.number("<u4")
        count = _limited(self.number("<u8"), MOST_ELEMENTS, f"elements of {name!r}")
        self.elements = _limited(self.elements + count, MOST_ELEMENTS, "elements of arrays")
        return self.values(kind, count, name)

    def values(self, kind: int, count: int, name: str) -> list[Any]:
        if kind == _TEXT:
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise _Bad(f"{name!r} is of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize * count), dtype).tolist()

    def info(self, name: str) -> _Info:
        dimensions = _limited(self.number("<u4"), _DIMENSIONS, f"dimensions of {name!r}")
        shape = tuple(self.values(10, dimensions, name))
        kind, offset = self.number("<u4"), self.number("<u8")
        if kind not in GGML_QUANT_SIZES:
            raise _Bad(f"tensor {name!r} is of the unknown type {kind}")
        per_block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or not all(shape) or shape[0] % per_block:
            raise _Bad(f"tensor {name!r} has the shape {shape}")
        size = math.prod(shape) // per_block * size
        return _Info(name, GGMLQuantizationType(kind), shape, offset, size)

    def new_name(self, others: dict[str, Any]) -> str:
        name = self.text()
        if name in others:
            raise _Bad(f"{name[:60]!r} is in it twice")
        return name

    def text(self) -> str:
        length = _limited(self.number("<u8"), LONGEST_TEXT, "bytes of a text")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _Bad(f"a text before byte {self.at} is not UTF-8") from None

    def number(self, dtype: str) -> int:
        return int(np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0])

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise _Bad(f"it ends after {len(self.data):,} bytes, within its header")
        self.at += count
        return self.data[self.at - count : self.at]


def _limited(count: int, most: int, what: str) -> int:
    if count > most:
        raise _Bad(f"it counts {count} {what}, and at most {most} are read")
    return count


def _check_places(infos: list[_Info], start: int, size: int) -> None:
    """Raises _Bad for tensors that are not in the file, or that share bytes."""
    end = 0
    for info in sorted(infos, key=lambda info: info.offset):
        if start + info.offset + info.size > size:
            raise _Bad(f"it has {size:,} bytes, and tensor {info.name!r} goes beyond them")
        if info.offset < end:
            raise _Bad(f"tensor {info.name!r} overlaps another")
        end = info.offset + info.size
