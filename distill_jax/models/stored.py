"""Arrays in files, read box by box: no more of a file is in memory than one box.

Read by pread and not through a memory map, whose pages would stay in the memory of the process.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distill_jax.types import UserError

MOST = 2**24  # bytes of the numbers that are read at a time
RUN = 2**10  # bytes: shorter pieces of a file are read together with what lies between them
Box = tuple[tuple[int, int], ...]  # of every axis: the first place, and the one after the last


class Stored(NamedTuple):
    """An array in a file, in C order from `offset` on.

    dtype   name of that of the numbers, as `decode` gives them
    block   numbers of the last axis that are stored together, and the bytes of these
    decode  bytes, uint8 [.., bytes] -> numbers [.., numbers]
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: str
    block: tuple[int, int]
    decode: Callable[[np.ndarray], np.ndarray]


def boxes(stored: Stored, hull: Box) -> Iterator[Box]:
    """Boxes of at most MOST bytes that cover a hull, and more where pieces of it are short."""
    return _split(stored, _widened(stored, hull))


def read_box(stored: Stored, file: int, box: Box) -> np.ndarray:
    """The numbers of one of its `boxes`; file: the open descriptor of its path.

    Raises UserError where the file ends before them, or cannot be read.
    """
    numbers, size = stored.block
    in_bytes = lambda ends: tuple(end // numbers * size for end in ends)
    bounds = (*box[:-1], in_bytes(box[-1]))
    shape = (*stored.shape[:-1], stored.shape[-1] // numbers * size)
    extents = [end - first for first, end in bounds]
    cut = [i for i, size in enumerate(shape) if extents[i] != size]
    axis = cut[-1] if cut else 0  # all of the axes after it is read
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    start = sum(first * stride for (first, _), stride in zip(bounds, strides, strict=True))
    data = np.empty(extents, np.uint8)
    rows = data.reshape(math.prod(extents[:axis]), -1)
    for row, index in zip(rows, np.ndindex(*extents[:axis]), strict=True):
        more = sum(i * stride for i, stride in zip(index, strides[:axis], strict=True))
        _read_into(row, file, stored.offset + start + more, stored.path)
    return stored.decode(data)


def read_whole(stored: Stored) -> np.ndarray:
    """All of a small array. Raises as read_box does."""
    with stored.path.open("rb") as file:
        return read_box(stored, file.fileno(), tuple((0, size) for size in stored.shape))


def same_bytes(one: Stored, other: Stored) -> bool:
    """Whether two arrays are equal in shape, dtype and every bit. Raises as read_box does."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    raw = [stored._replace(decode=lambda data: data) for stored in (one, other)]
    with one.path.open("rb") as first, other.path.open("rb") as second:
        files = [(raw[0], first.fileno()), (raw[1], second.fileno())]
        return all(
            np.array_equal(*(read_box(*of, box) for of in files))
            for box in boxes(one, tuple((0, size) for size in one.shape))
        )


def _read_into(row: np.ndarray, file: int, at: int, path: Path) -> None:
    view = memoryview(row)
    while view:
        try:
            count = os.preadv(file, [view], at)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}): copy it to another disk"
            ) from None
        if not count:
            raise UserError(f"{path} has become shorter while it was read: copy it again")
        view, at = view[count:], at + count


def _widened(stored: Stored, hull: Box) -> Box:
    """The same with whole blocks, and with whole axes where less is too short a piece."""
    numbers, size = stored.block
    first, end = hull[-1]
    box = [*hull[:-1], (first // numbers * numbers, -(-end // numbers) * numbers)]
    run = size / numbers  # bytes that lie together
    for axis in reversed(range(len(box))):
        first, end = box[axis]
        whole = (0, stored.shape[axis])
        if (first, end) != whole and run * (end - first) >= RUN:
            break
        box[axis] = whole
        run *= stored.shape[axis]
    return tuple(box)


def _split(stored: Stored, box: Box, axis: int = 0) -> Iterator[Box]:
    """Boxes of at most MOST bytes: cut along the first axis whose rows are small enough."""
    width = np.dtype(stored.dtype).itemsize
    row = width * math.prod(end - first for first, end in box[axis + 1 :])
    step, last = MOST // row, axis == len(box) - 1
    step = max(stored.block[0], step // stored.block[0] * stored.block[0]) if last else step
    first, end = box[axis]
    for at in range(first, end, max(1, step)):
        part = (*box[:axis], (at, min(end, at + max(1, step))), *box[axis + 1 :])
        if step:
            yield part
        else:
            yield from _split(stored, part, axis + 1)
