"""Parameters in files: of which any part is read when it is asked for, and what identifies them."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from distill_jax.models.architecture import ModelConfig
from distill_jax.models.family import Weight
from distill_jax.models.pieces import Piece, Source, fill, piece_of
from distill_jax.models.storage import flatten, layout, places
from distill_jax.models.stored import MOST, Box
from distill_jax.types import Array, Params, UserError

STORED = ("float32", "bfloat16", "float16", "float64")  # what weights are in files
READERS = min(4, os.cpu_count() or 1)  # threads, each with a few boxes of MOST bytes


class Checkpoint(NamedTuple):
    """A model on disk.

    params  nested dicts of Parameters, or of host arrays
    path    the local file or directory, which also has the tokenizer
    files   those of the weights
    """

    config: ModelConfig
    params: Params
    path: Path
    files: tuple[Path, ...] = ()

    def whole(self) -> "Checkpoint":
        """The same with all parameters as host arrays: of small models, for whoever needs that."""
        return self._replace(params=jax.tree.map(lambda x: x.read([_all_of(x)])[0], self.params))


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter in files: none of it is in memory. A leaf of the trees of JAX."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[Piece, ...]

    def read(
        self, parts: Sequence[Box], told: Callable[[], None] = lambda: None
    ) -> list[np.ndarray]:
        """Some boxes of it, on the host; what several of them need is read once.

        told(): called for each of the pieces. Raises UserError for numbers that are not finite in
        its dtype, and for a file that has become shorter.
        """
        found = [np.empty([end - first for first, end in part], self.dtype) for part in parts]
        with ThreadPoolExecutor(READERS) as readers:
            for _ in readers.map(lambda piece: self._read(piece, parts, found), self.pieces):
                told()
        return found

    def block(self, i: int) -> "Parameter":
        """That of one block, as a stack of one; of a parameter that blocks have."""
        mine = (piece for piece in self.pieces if piece.index[0] == i)
        pieces = tuple(piece._replace(index=(0, *piece.index[1:])) for piece in mine)
        return replace(self, shape=(1, *self.shape[1:]), pieces=pieces)

    def _read(self, piece, parts, found):
        lead, wanted = len(piece.index), []
        for part, array in zip(parts, found, strict=True):
            bounds = list(zip(piece.index, part, strict=False))
            if all(first <= i < end for i, (first, end) in bounds):
                target = array[tuple(i - first for i, (first, _) in bounds)]
                wanted.append((part[lead:], target))
        bad = fill(piece, wanted) if wanted else 0
        if bad:
            size = sum(target.size for _, target in wanted)
            here = " read here" if size < math.prod(self.shape[lead:]) else ""
            raise UserError(
                f"{piece.source.stored.path}: the weight {piece.name} has {bad} of {size} numbers"
                f"{here} that are not finite in {self.dtype.name}: use a checkpoint without them,"
                " or a wider dtype"
            )


def check_names(config: ModelConfig, present, name_of: Callable[[Weight], str], *, source) -> None:
    """Raises UserError for missing or unknown weights, naming the first three."""
    wanted = set(places(config, name_of))
    for what, names, remedy in (
        ("lacks", wanted - set(present), "use a complete checkpoint of this config.json"),
        ("has unknown", set(present) - wanted, "use a checkpoint that fits this config.json"),
    ):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise UserError(f"{source} {what} weights ({len(names)}): {first}: {remedy}")


def stack_weights(
    config: ModelConfig,
    source_of: Callable[[str, str], Source],
    name_of: Callable[[Weight], str],
    *,
    dtype,
) -> Params:
    """The parameters of a config, each out of the stored arrays that hold a part of it.

    source_of(path, stored name) -> the array as Hugging Face stores it; of several parameters in
        one array, the path is that of the first.
    name_of(weight) -> its name in these files, with {block}.
    dtype: of the result; None keeps each parameter's own.
    Raises UserError for a shape that differs from the config's or a dtype that is not STORED,
    naming the weight.
    """
    pieces, dtypes = {}, {}
    for name, place in places(config, name_of).items():
        source = source_of(place.paths[0], name)
        _check(name, source, place.shape)
        stored = np.dtype(source.stored.dtype)
        for number, path in enumerate(place.paths):
            pieces.setdefault(path, []).append(piece_of(place, number, name, source))
            if dtype is None and stored != dtypes.setdefault(path, stored):
                raise UserError(
                    f"weight {name} is stored as {stored}, the same weight of block 0 as "
                    f"{dtypes[path]}: name one dtype to load in"
                )
    flat = {
        path: Parameter(shape, np.dtype(dtype or dtypes[path]), tuple(pieces[path]))
        for path, (_, shape) in layout(config).items()
    }
    return traverse_util.unflatten_dict(flat, sep="/")


def _check(name: str, source: Source, shape: tuple[int, ...]) -> None:
    kind = source.stored.dtype
    if kind not in STORED:
        known = kind in np.sctypeDict
        reason = "whose scale is not known" if known else "which is not read"
        raise UserError(
            f"weight {name} is stored as {kind}, {reason}: use a checkpoint in one of"
            f" {', '.join(STORED)}"
        )
    if source.shape != shape:
        raise UserError(
            f"weight {name} has shape {list(source.shape)} where the config gives {list(shape)}:"
            " use a checkpoint that fits its config"
        )


def fingerprint(params: Params) -> str:
    """sha256 over names, shapes, dtypes and bytes of all parameters, in the order of the names.

    Parameters are read a part at a time.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        digest.update(f"{path} {leaf.shape} {np.dtype(leaf.dtype).name}\n".encode())
        for array in _in_parts(leaf):
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _in_parts(leaf: Array | Parameter) -> Iterable[np.ndarray]:
    """The same numbers in the same order, a few rows after another where they are in files."""
    if not isinstance(leaf, Parameter):
        return [leaf]
    rest = _all_of(leaf)[1:]
    row = leaf.dtype.itemsize * int(np.prod(leaf.shape[1:], dtype=np.int64))
    rows = max(1, MOST // row)
    ends = [(i, min(leaf.shape[0], i + rows)) for i in range(0, leaf.shape[0], rows)]
    return (leaf.read([(one, *rest)])[0] for one in ends)


def _all_of(leaf: Parameter) -> Box:
    return tuple((0, size) for size in leaf.shape)
