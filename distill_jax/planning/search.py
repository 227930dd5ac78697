"""Other layouts of the same run: which fit, which is the smallest change, which the fastest.

Only what a config can say is tried, and the batch and its tokens stay the same. Meshes,
micro-batches, what is recomputed and the tokens of a block leave the numbers of a run as they are
but for rounding; the teacher's dtype does not, and a cached teacher takes a job of its own. So
changes have a rank.
"""

import itertools
from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from distill_jax.models.binding import REMAT
from distill_jax.planning.chips import Topology
from distill_jax.planning.layout import CACHED, Facts, Layout
from distill_jax.planning.owners import chip_bytes
from distill_jax.planning.roofline import run_seconds
from distill_jax.sharding import AXES, ROWS, SEQUENCE

BLOCKS = (64, 128, 256, 512, 1024)  # values of model.block_tokens that are tried
SAME, OTHER_TEACHER, CACHE = 0, 1, 2  # ranks


class Tried(NamedTuple):
    """A layout with what the model of memory and time says of it.

    rank     SAME, OTHER_TEACHER or CACHE
    changes  keys that differ from the given layout
    seconds  of a step that waits for activations (roofline.py), by which layouts are compared
    """

    layout: Layout
    rank: int
    changes: tuple[str, ...]
    bytes: float
    seconds: float | None


def changed_keys(layout: Layout, given: Layout) -> tuple[str, ...]:
    """The keys of a config in which two layouts differ."""
    pairs = {f"mesh.{axis}": i for i, axis in enumerate(AXES)}
    keys = [key for key, i in pairs.items() if layout.mesh[i] != given.mesh[i]]
    names = {
        "microbatches": "data.microbatches",
        "remat": "model.remat",
        "block_tokens": "model.block_tokens",
    }
    keys += [key for name, key in names.items() if getattr(layout, name) != getattr(given, name)]
    if layout.teacher != given.teacher:
        keys.append("teacher.cache" if layout.teacher == CACHED else "teacher.dtype")
    return tuple(keys)


def rank_of(layout: Layout, given: Layout) -> int:
    """How much of a run another layout changes."""
    if layout.teacher == given.teacher:
        return SAME
    return CACHE if layout.teacher == CACHED else OTHER_TEACHER


def layouts(facts: Facts, given: Layout, may_cache: bool = True) -> Iterator[Layout]:
    """Every layout that a run of these facts may have on as many chips."""
    config, other = facts.student.config, facts.teacher_config
    experts = [one.experts for one in (config, other) if one is not None and one.experts]
    teachers = [given.teacher, *(name for name in facts.teachers if name != given.teacher)]
    if facts.teachers and may_cache and given.teacher != CACHED:
        teachers.append(CACHED)
    heads = [one.kv_heads for one in (config, other) if one is not None]
    blocks = sorted({*BLOCKS, given.block_tokens})
    for mesh in meshes(prod(given.mesh)):
        size = dict(zip(AXES, mesh, strict=True))
        unused = size["expert"] > 1 and not experts
        uneven = any(count % size["expert"] for count in experts)
        # A tensor axis that does not divide the heads computes them again on every chip.
        whole = size["tensor"] > 1 and any(count % size["tensor"] for count in heads)
        # Rows split at less cost than tokens; both lower the bytes of a chip alike.
        n = size[SEQUENCE]
        whole |= n > 1 and (facts.rows % prod(mesh) == 0 or facts.length % n > 0)
        if (unused or uneven or whole) and mesh != given.mesh:
            continue
        ways = prod(size[axis] for axis in ROWS)
        parts = [n for n in range(1, facts.rows + 1) if facts.rows % (n * ways) == 0]
        for choice in itertools.product(parts, REMAT, blocks, teachers):
            yield Layout(mesh, *choice)


def meshes(chips: int) -> Iterator[tuple[int, ...]]:
    """Every way to split a number of chips over the axes of a mesh."""

    def split(left, axes):
        if axes == 1:
            yield (left,)
            return
        for size in (n for n in range(1, left + 1) if left % n == 0):
            yield from ((size, *rest) for rest in split(left // size, axes - 1))

    yield from split(chips, len(AXES))


def tried(facts: Facts, layout: Layout, given: Layout, topology: Topology) -> Tried:
    """What the model says of a layout."""
    return Tried(
        layout,
        rank_of(layout, given),
        changed_keys(layout, given),
        chip_bytes(facts, layout).total,
        run_seconds(facts, layout, topology, waiting=True),
    )


def search(
    facts: Facts, given: Layout, topology: Topology, limit: float, *, may_cache: bool = True
) -> list[Tried]:
    """All layouts that fit by the model of memory. limit: bytes of a chip."""
    of = (tried(facts, layout, given, topology) for layout in layouts(facts, given, may_cache))
    return [one for one in of if one.bytes <= limit]


def smallest_change(found: list[Tried]) -> list[Tried]:
    """The smallest change first: by rank, by how many keys change, by time, then by bytes."""
    return sorted(found, key=lambda one: (one.rank, len(one.changes), one.seconds or 0, one.bytes))


def fastest(found: list[Tried]) -> list[Tried]:
    """The least time first, and of equal ones the smaller change."""
    return sorted(found, key=lambda one: (one.seconds or 0, one.rank, len(one.changes), one.bytes))
