"""What a stored array holds of one parameter, and any part of that read into arrays."""

from typing import NamedTuple

import numpy as np

from distill_jax.models.storage import Place, outputs_of
from distill_jax.models.stored import Box, Stored, boxes, read_box


class Source(NamedTuple):
    """An array as Hugging Face stores it, in whichever file.

    turned  the last two axes lie the other way round in the file
    order   for each row of the file's array, which row of Hugging Face's it is; None: the same one
    minus   what is taken from every number, in its stored dtype
    """

    stored: Stored
    turned: bool = False
    order: np.ndarray | None = None
    minus: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """As Hugging Face stores it."""
        return tuple(_turned(self.stored.shape, self.turned))


class Piece(NamedTuple):
    """One parameter's part of a stored array.

    index    which part of the parameter: (block,), (block, expert), or () for all of it
    name     of the stored array
    flipped  the last two axes of the parameter lie the other way round in the file
    axis     of the file's array along which `rows` lie
    rows     for each place of the parameter along that axis, the place in the file's array; None:
             the same one
    """

    index: tuple[int, ...]
    name: str
    source: Source
    flipped: bool
    axis: int
    rows: np.ndarray | None


def piece_of(place: Place, number: int, name: str, source: Source) -> Piece:
    """The piece of the place's parameter of that number. Its source has the place's shape."""
    axis, rows = outputs_of(place, number)
    if source.turned and len(place.shape) > 1:
        axis = {len(place.shape) - 1: axis - 1, len(place.shape) - 2: axis + 1}[axis]
    if source.order is not None:  # families order outputs alone, which such files have first
        places, axis = np.argsort(source.order), 0
        rows = places if rows is None else places[rows]
    return Piece(place.index, name, source, place.transpose != source.turned, axis, rows)


def fill(piece: Piece, wanted: list[tuple[Box, np.ndarray]]) -> int:
    """Writes boxes of the piece into arrays of their shapes, in the dtypes of these.

    Gives how many numbers are not finite there. Raises UserError as read_box does.
    """
    stored, minus, bad = piece.source.stored, piece.source.minus, 0
    wanted = [
        (_turned(box, piece.flipped), array.swapaxes(-1, -2) if piece.flipped else array)
        for box, array in wanted
    ]
    ends = [[_ends(piece, axis, *of) for axis, of in enumerate(box)] for box, _ in wanted]
    hull = tuple(
        (min(first for first, _ in of), max(end for _, end in of)) for of in zip(*ends, strict=True)
    )
    with stored.path.open("rb") as file, np.errstate(over="ignore"):  # they are counted
        for box in boxes(stored, hull):
            values = read_box(stored, file.fileno(), box)
            values = values - values.dtype.type(minus) if minus else values
            for bounds, array in wanted:
                bad += _copy(piece, values, box, bounds, array)
    return bad


def _copy(piece, values, box, bounds, array):
    """What a box of the file has of the wanted bounds; gives how much of it is not finite."""
    to, out_of = [], []
    for axis, ((first, end), (low, high)) in enumerate(zip(bounds, box, strict=True)):
        if axis == piece.axis and piece.rows is not None:
            rows = piece.rows[first:end]
            here = np.flatnonzero((rows >= low) & (rows < high))
            to.append(_as_slice(here))
            out_of.append(_as_slice(rows[here] - low))
        else:
            start, stop = max(first, low), min(end, high)
            to.append(slice(start - first, max(start, stop) - first))
            out_of.append(slice(start - low, max(start, stop) - low))
    array[tuple(to)] = values[tuple(out_of)]
    return _not_finite(array[tuple(to)])


def _not_finite(array: np.ndarray) -> int:
    """By the exponent, which is full in NaN and infinity: isfinite takes long in two bytes."""
    bits = np.dtype(f"u{array.dtype.itemsize}")
    full = np.array(np.inf, array.dtype).view(bits)
    return int(np.count_nonzero((array.view(bits) & full) == full))


def _ends(piece, axis, first, end):
    """Where in the file's array lies what is wanted along an axis."""
    if axis != piece.axis or piece.rows is None:
        return first, end
    rows = piece.rows[first:end]
    return int(rows.min()), int(rows.max()) + 1


def _as_slice(places: np.ndarray) -> slice | np.ndarray:
    """Equal steps upwards as a slice, which needs no copy."""
    if not len(places):
        return slice(0, 0)
    step = int(places[1] - places[0]) if len(places) > 1 else 1
    if step > 0 and np.all(np.diff(places) == step):
        return slice(int(places[0]), int(places[-1]) + 1, step)
    return places


def _turned(of: tuple, turned: bool) -> tuple:
    return (*of[:-2], of[-1], of[-2]) if turned and len(of) > 1 else of
