"""What a run may choose of how it lies on its chips, and the facts that do not depend on it."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from distill_jax.models.architecture import ModelConfig
from distill_jax.planning.traced import Kept, Operations
from distill_jax.quantised import array_bytes
from distill_jax.sharding import AXES, ROWS, SEQUENCE, Rules, parameter_shardings

CACHED = "cached"  # in the place of a teacher's dtype: its hidden states are read from a cache


class Layout(NamedTuple):
    """What the search may change.

    mesh     chips along each of sharding.AXES
    teacher  dtype of the teacher's parameters, or CACHED
    """

    mesh: tuple[int, ...]
    microbatches: int
    remat: str
    block_tokens: int
    teacher: str

    def along(self, axis: str) -> int:
        """Chips along an axis of the mesh."""
        return self.mesh[AXES.index(axis)]

    @property
    def ways(self) -> int:
        """Parts that the rows of a batch are split into."""
        return prod(self.along(axis) for axis in ROWS)

    @property
    def token_ways(self) -> int:
        """Parts that the tokens of a batch are split into."""
        return self.ways * self.along(SEQUENCE)

    @property
    def weight_ways(self) -> int:
        """Parts that `fsdp` and `sequence` split parameters into together."""
        return self.along("fsdp") * self.along(SEQUENCE)


class Arrays(NamedTuple):
    """Of a tree of arrays, by the sizes of a mesh: what a chip has of it.

    held      bytes
    gathered  bytes, once it is gathered over the axes fsdp and sequence
    numbers   numbers, gathered in the same way
    """

    held: Callable[[tuple[int, ...]], int]
    gathered: Callable[[tuple[int, ...]], int]
    numbers: Callable[[tuple[int, ...]], int]


class Model(NamedTuple):
    """A model's sizes, all its parameters, and those of its blocks among them."""

    config: ModelConfig
    params: Arrays
    blocks: Arrays


class Facts(NamedTuple):
    """What of a run is the same in every layout.

    rows, length  of a batch, and tokens per row
    item          bytes of a number in the compute dtype
    optimizer     everything in the training state but the parameters
    teachers      by what Layout.teacher may be, CACHED apart; empty: no term asks for a teacher
    kept          (tensor, remat) -> what a block of the student keeps
    teacher_kept  tensor -> what a block of the teacher would, without recomputing: its work
    operations    remat -> of the student, for one row; None: of the teacher
    head          operations of the loss for one row
    """

    rows: int
    length: int
    item: int
    compute_dtype: str
    student: Model
    optimizer: Arrays
    teachers: Mapping[str, Model]
    kept: Callable[[int, str], Kept]
    teacher_kept: Callable[[int], Kept]
    operations: Callable[[str | None], Operations]
    head: int

    def live(self, layout: Layout) -> Model | None:
        """The teacher that runs in the step; None where none does."""
        return self.teachers.get(layout.teacher)

    @property
    def teacher_config(self) -> ModelConfig | None:
        """The teacher's sizes, wherever it runs."""
        return next((one.config for one in self.teachers.values()), None)


def arrays(tree: Any, rules: Rules, shard: Sequence[str]) -> Arrays:
    """A tree of shapes that rules split over the axes `shard` of a mesh, as sharding.py does."""

    def parts(mesh: tuple[int, ...]) -> list[tuple[tuple[int, ...], Any]]:
        shardings = parameter_shardings(tree, rules, AbstractMesh(mesh, AXES), shard)
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True)
        return [(s.shard_shape(x.shape), x.dtype) for x, s in pairs]

    size = lambda mesh: sum(array_bytes(*part) for part in parts(mesh))

    whole = lambda mesh: tuple(
        1 if axis in ("fsdp", SEQUENCE) else size for axis, size in zip(AXES, mesh, strict=True)
    )
    return Arrays(
        held=cache(size),
        gathered=cache(lambda mesh: size(whole(mesh))),
        numbers=cache(lambda mesh: sum(prod(shape) for shape, _ in parts(whole(mesh)))),
    )
