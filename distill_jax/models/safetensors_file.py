"""safetensors files: where their arrays lie, and written with one array in memory at a time.

The safetensors package checks a header; it reads whole arrays, and writes whole files at once.
Layout: https://github.com/huggingface/safetensors#format
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from distill_jax.models.stored import Stored
from distill_jax.types import UserError
from distill_jax.untrusted import check_file, parse_json

_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_DTYPES = {stored: name for name, stored in _NAMES.items()}
_ALIGNMENT = 8  # bytes, of where the arrays begin


class NewArray(NamedTuple):
    """An array to be written. values: makes it, of that shape and dtype, in C order."""

    shape: tuple[int, ...]
    dtype: np.dtype
    values: Callable[[], np.ndarray]


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Where each array of a file lies; of a dtype that numpy lacks, the file's name for it.

    Raises UserError for a file that is not complete.
    """
    check_file(path)
    try:
        with safe_open(path, framework="np") as checked:  # the header against itself and the size
            names = set(checked.keys())
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            text = file.read(length)
    except (SafetensorError, OSError, struct.error) as error:
        raise UserError(
            f"{path} is not a complete safetensors file ({error}): copy it again"
        ) from None
    header = parse_json(text, str(path), "copy the file again")
    return {name: _stored(path, header[name], 8 + length) for name in names}


def make_all(arrays: Mapping[str, NewArray]) -> None:
    """Makes one array after another in the order of write_safetensors, and keeps none."""
    for name in arrays:
        arrays[name].values()


def write_safetensors(files: Mapping[Path, Sequence[str]], arrays: Mapping[str, NewArray]) -> None:
    """Writes files of the named arrays as the safetensors package does.

    The arrays are made one after another in their order, whichever file they are of, so that other
    processes can take part in making them.
    """
    with ExitStack() as opened:
        places = {}
        for path, names in files.items():
            file = opened.enter_context(path.open("wb"))
            places |= _write_header(file, {name: arrays[name] for name in names})
        for name, array in arrays.items():
            file, at = places[name]
            file.seek(at)
            file.write(np.ascontiguousarray(array.values()).reshape(-1).view(np.uint8))


def _write_header(file, arrays):
    """Gives the file and the byte of it where each array begins."""
    # Wide numbers first, so that all are aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, ends = {"__metadata__": {"format": "pt"}}, [0]
    for name in names:
        shape, dtype, _ = arrays[name]
        ends.append(ends[-1] + math.prod(shape) * dtype.itemsize)
        place = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": ends[-2:]}
        header[name] = place
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start = file.write(struct.pack("<Q", len(text)) + text)
    return {name: (file, start + at) for name, at in zip(names, ends, strict=False)}


def _stored(path: Path, place: dict, start: int) -> Stored:
    kind, shape = place["dtype"], tuple(place["shape"])
    dtype = _DTYPES.get(kind, kind)
    width = np.dtype(dtype).itemsize if kind in _DTYPES else 1
    decode = lambda data: data.view(dtype)
    return Stored(path, start + place["data_offsets"][0], shape, dtype, (1, width), decode)
