"""The device mesh, and which axis of which array lives on which axis of the mesh.

Mesh axes: `data` copies the model and splits the rows of a batch, `fsdp` splits both the rows and
the parameters, `expert` both the rows and the experts of models that have some, `sequence` splits
the tokens of each row and, together with `fsdp`, the parameters, `tensor` splits the parameters
within a matrix product. One jitted program over NamedShardings does what `pmap` and `pjit` used to
do.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.quantised import Quantised, is_quantised
from distill_jax.types import Batch, UserError, path_name

AXES = ("data", "fsdp", "expert", "sequence", "tensor")
ROWS = ("data", "fsdp", "expert")  # those that split the rows of a batch
SEQUENCE = "sequence"  # the one that splits the tokens of a row
BATCH = PartitionSpec(ROWS, SEQUENCE)
Rules = Sequence[tuple[str, tuple[str | None, ...]]]


def make_mesh(data: int, fsdp: int, tensor: int, expert: int = 1, sequence: int = 1) -> Mesh:
    """A mesh over every device. One size may be -1: all remaining devices.

    Raises UserError where the product is not the number of devices: JAX would silently leave
    some idle.
    """
    given = dict(zip(AXES, (data, fsdp, expert, sequence, tensor), strict=True))
    sizes = mesh_sizes(given, jax.device_count())
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(given: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The sizes of a mesh's AXES over so many devices. One may be given as -1: all that are left.

    Raises UserError where the product is not the number of devices.
    """
    sizes = dict(given)
    free = [name for name, size in sizes.items() if size == -1]
    shown = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"{shown}: use sizes of at least 1, and -1 for at most one of them")
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if free:
        sizes[free[0]] = devices // fixed
    if int(np.prod(list(sizes.values()))) != devices:
        raise UserError(
            f"{shown}: the product must equal the {devices} device(s) here:"
            " change one of the sizes, or set one to -1 to use the remaining devices"
        )
    return tuple(sizes[axis] for axis in AXES)


def parameter_shardings(
    abstract_params: Any, rules: Rules, mesh: Mesh, shard: Sequence[str] = AXES
) -> Any:
    """A NamedSharding for each array of a parameter-like tree, by the first rule that matches.

    A rule is (regular expression over a whole path such as `blocks/attention/query`, mesh axis or
    None for each array axis). A longer path's prefix is ignored, so the same rules serve the
    optimizer's moments, and both arrays of a quantised matrix. What a rule gives to `fsdp` is split
    over `sequence` too, where both together divide it: its devices would else hold and update the
    same parameters. An axis that its mesh axis does not divide evenly and an array that no rule
    matches are replicated, and so is everything over the mesh axes that `shard` leaves out.
    """

    def place(path, leaf) -> NamedSharding:
        if is_quantised(leaf):
            return Quantised(*(place(path, part) for part in leaf))
        name = path_name(path)
        for pattern, axes in rules:
            if re.fullmatch(f"(.*/)?({pattern})", name) and len(axes) == len(leaf.shape):
                kept = [
                    _dividing(axis, size, mesh, shard)
                    for axis, size in zip(axes, leaf.shape, strict=True)
                ]
                return NamedSharding(mesh, PartitionSpec(*kept))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, abstract_params, is_leaf=is_quantised)


def _dividing(axis: str | None, size: int, mesh: Mesh, shard: Sequence[str]):
    """The mesh axes that split an array's axis of a size, where a rule names one of them."""
    if axis not in shard:
        return None
    both = (axis, SEQUENCE)
    if axis == "fsdp" and mesh.shape[SEQUENCE] > 1 and size % _ways(mesh, both) == 0:
        return both
    return axis if size % mesh.shape[axis] == 0 else None


def _ways(mesh: Mesh, axes: Sequence[str]) -> int:
    """The number of parts that axes of the mesh split something into."""
    return int(np.prod([mesh.shape[axis] for axis in axes]))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over `data`, `fsdp` and `expert`, the tokens of each over `sequence`."""
    return NamedSharding(mesh, BATCH)


def host_sharding(mesh: Mesh) -> NamedSharding:
    """That of arrays [B, T, ..] of which each process needs whole rows: batch_sharding where its
    devices hold them, else every device has all tokens of its rows.
    """
    process_of = np.vectorize(lambda device: device.process_index)(mesh.devices)
    # [rows, parts of a row, tensor]
    process_of = process_of.reshape(-1, mesh.shape[SEQUENCE], mesh.shape["tensor"])
    holders = [[set(part) for part in row] for row in process_of.tolist()]
    whole = all(part == row[0] for row in holders for part in row)
    return NamedSharding(mesh, BATCH if whole else PartitionSpec(ROWS))


def batch_ways(mesh: Mesh) -> int:
    """The number of parts that the mesh splits the rows of a batch into."""
    return _ways(mesh, ROWS)


def check_batch(key: str, batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises UserError where the rows do not divide over micro-batches and devices."""
    ways = batch_ways(mesh)
    if microbatches < 1 or batch_size < 1 or batch_size % (microbatches * ways):
        raise UserError(
            f"config.{key} is {batch_size}, which microbatches ({microbatches}) times {ways}"
            f" way(s) of the mesh (data x fsdp x expert) do not divide: use a multiple of"
            f" {max(1, microbatches) * ways}"
        )


def check_row(key: str, seq_len: int, mesh: Mesh) -> None:
    """Raises UserError where the tokens of a row do not divide over the mesh."""
    ways = mesh.shape[SEQUENCE]
    if seq_len % ways:
        raise UserError(
            f"config.{key} is {seq_len}, which config.mesh.sequence ({ways}) does not divide: use a"
            f" multiple of {ways}"
        )


def to_global(batch: Batch, mesh: Mesh, rows: int) -> Batch:
    """Arrays over the whole mesh from the rows of local_rows; `rows` counts those of all processes.

    A process gives its rows whole, also where its devices hold a part of their tokens.
    """
    sharding, first = batch_sharding(mesh), local_rows(mesh, rows).start

    def place(x):
        def part(index):
            start, stop, _ = index[0].indices(rows)
            return x[start - first : stop - first, *index[1:]]

        return jax.make_array_from_callback((rows, *x.shape[1:]), sharding, part)

    return jax.tree.map(place, batch)


def local_rows(mesh: Mesh, rows: int) -> slice:
    """The rows of a global batch of which this process's devices hold tokens."""
    indices = _over_rows(mesh).addressable_devices_indices_map((rows,)).values()
    bounds = [index[0].indices(rows) for index in indices]
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))


def writers_of_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """int [rows]: of the processes whose devices hold tokens of a row, the first."""
    writer_B = np.full(rows, jax.process_count())
    for device, index in _over_rows(mesh).devices_indices_map((rows,)).items():
        writer_B[index] = np.minimum(writer_B[index], device.process_index)
    return writer_B


def _over_rows(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(ROWS))


def local_part(x: jax.Array) -> np.ndarray:
    """This process's rows of an array [B, T, ..] with host_sharding, on the host."""
    bounds = [shard.index[0].indices(x.shape[0]) for shard in x.addressable_shards]
    first = min(b[0] for b in bounds)
    found = np.empty((max(b[1] for b in bounds) - first, *x.shape[1:]), x.dtype)
    # Copies of one part are read once.
    parts = {str(shard.index): shard for shard in x.addressable_shards}
    for shard in parts.values():
        rows, *others = shard.index
        start, stop, _ = rows.indices(x.shape[0])
        found[start - first : stop - first, *others] = np.asarray(shard.data)
    return found


def place_whole(tree: Any, mesh: Mesh) -> Any:
    """Host arrays onto the mesh, replicated on every device."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, whole, lambda index: np.asarray(x[index])),
        tree,
    )


def anywhere(flag: bool) -> bool:
    """Whether it is so on any process. All call it."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def told_by_first(number: int) -> int:
    """The number that process 0 gives, below 2**31. All call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def barrier(name: str) -> None:
    """Waits for all processes; files written before it are then visible to all of them."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
