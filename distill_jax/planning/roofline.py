"""The least time of a step: operations, bytes of memory and bytes between chips by their speeds.

Everything is taken to overlap and every unit to run at its published speed, so a real step is
slower; what takes longest bounds it.
"""

from typing import NamedTuple

from distill_jax.planning.chips import Topology
from distill_jax.planning.layout import CACHED, Facts, Layout, Model
from distill_jax.planning.traced import Operations
from distill_jax.sharding import AXES

NOTHING = Operations(0, 0, 0)
COMPUTE, MEMORY = "matrix products", "memory"
WAITED = ("tensor", "expert")  # axes over which activations travel
LOGIT_PASSES = 8  # times that a float32 number of a token's logits is written or read in a step


class Roof(NamedTuple):
    """Seconds of a step on the chips of a topology, each at least; None: no figure is known.

    links   bytes that come into a chip over each axis of the mesh
    times   seconds by what takes them: COMPUTE, MEMORY and the axes
    """

    flops: dict[str, float]  # per token, by owner
    traffic: float  # bytes between a chip and its memory
    links: dict[str, float]
    times: dict[str, float] | None

    @property
    def seconds(self) -> float | None:
        """Of a step."""
        return max(self.times.values()) if self.times else None

    @property
    def waiting(self) -> float | None:
        """Of a step whose products wait for the activations that other chips send.

        Weights are fetched ahead, activations are not there before they are computed.
        """
        if self.times is None:
            return None
        return max(self.seconds, sum(self.times.get(key, 0.0) for key in (COMPUTE, *WAITED)))

    @property
    def bound(self) -> str | None:
        """What takes longest."""
        return max(self.times, key=self.times.get) if self.times else None


def roofline(facts: Facts, layout: Layout, topology: Topology) -> Roof:
    """The least time of a step in a layout."""
    flops = token_operations(facts, layout)
    traffic, links = memory_traffic(facts, layout), link_bytes(facts, layout)
    return Roof(flops, traffic, links, _times(facts, topology, flops, traffic, links, layout))


def run_seconds(
    facts: Facts, layout: Layout, topology: Topology, *, waiting: bool = False
) -> float | None:
    """The least time of a step together with what its tokens cost to be cached, once.

    A teacher that no step runs has run before, over the same tokens. waiting: as Roof.waiting has
    it, by which layouts are compared. None as of Roof.
    """
    roof = roofline(facts, layout, topology)
    seconds = roof.waiting if waiting else roof.seconds
    if seconds is None or layout.teacher != CACHED:
        return seconds
    each = facts.operations(None).forward * facts.rows / topology.chips
    return seconds + each / _peak(facts, topology)


def _peak(facts, topology):
    return topology.chip.flops.get(facts.compute_dtype, topology.chip.flops["float32"])


def _times(facts, topology, flops, traffic, links, layout):
    chip = topology.chip
    if chip.flops is None:
        return None
    each = sum(flops.values()) * facts.rows * facts.length / topology.chips
    times = {COMPUTE: each / _peak(facts, topology), MEMORY: traffic / chip.bandwidth}
    speeds = link_speeds(topology, layout)
    return times | {axis: size / speeds[axis] for axis, size in links.items() if size}


def token_operations(facts: Facts, layout: Layout) -> dict[str, float]:
    """Operations per token by owner, as the traced programs have them."""
    runs = {"student": facts.operations(layout.remat)}
    if facts.teachers:
        runs["teacher"] = facts.operations(None) if facts.live(layout) else NOTHING
    counts = {name: of.forward + of.backward - of.attention for name, of in runs.items()}
    counts["attention"] = sum(of.attention for of in runs.values())
    counts["head"] = facts.head
    return {owner: count / facts.length for owner, count in counts.items()}


def memory_traffic(facts: Facts, layout: Layout) -> float:
    """Bytes that a chip reads and writes in a step: weights, moments, what is kept, logits."""
    passes = 2 if layout.remat == "none" else 3
    student, teacher = facts.student, facts.live(layout)
    weights = passes * facts.item * student.params.numbers(layout.mesh)
    if teacher is not None:
        weights += _travelling(teacher, layout, facts.item)
    tokens = facts.rows * facts.length / layout.token_ways
    kept = facts.kept(layout.along("tensor"), layout.remat)
    stored = sum(kept.row.values()) + kept.copies * layout.along("expert")
    stored *= student.config.blocks * tokens / facts.length
    logits = 4 * LOGIT_PASSES * tokens * student.config.vocab / layout.along("tensor")
    update = student.params.held(layout.mesh) + facts.optimizer.held(layout.mesh)
    return weights * layout.microbatches + 2 * stored + logits + 2 * update


def link_bytes(facts: Facts, layout: Layout) -> dict[str, float]:
    """Bytes that come into a chip over each axis of the mesh in a step."""
    student, teacher = facts.student, facts.live(layout)
    micro, item = layout.microbatches, facts.item
    tokens = facts.rows * facts.length / layout.token_ways  # of a chip, over all micro-batches
    size = dict(zip(AXES, layout.mesh, strict=True))
    share = {axis: (n - 1) / n for axis, n in size.items()}
    own = item * student.params.numbers(layout.mesh)
    blocks, width = student.config.blocks, student.config.width
    links = dict.fromkeys(AXES, 0.0)
    # Weights are gathered for each pass, gradients scattered, that of the head in float32: over
    # `sequence`, then over `fsdp`.
    more = (4 - item) * width * student.config.vocab / size["tensor"]
    later = share["sequence"] / size["fsdp"]
    links["fsdp"] = share["fsdp"] * (3 * own + more) * micro
    links["sequence"] = later * (3 * own + more) * micro
    links["data"] = 2 * share["data"] * (own + more) / layout.weight_ways * micro
    # Each half of a block is summed over `tensor`, in both passes; so are the rows of the embedding
    # and the gradient that the head gives.
    passes = 2 if layout.remat == "none" else 3
    halves = 2 * passes * blocks * width + 2 * width
    # An expert half gathers its rows and scatters their sums.
    sent = passes * blocks * width * bool(student.config.experts)
    # Keys and values are gathered for each pass, their gradients scattered.
    keys = passes * _key_numbers(student)
    if teacher is not None:
        links["fsdp"] += share["fsdp"] * micro * _travelling(teacher, layout, item)
        links["sequence"] += later * micro * _travelling(teacher, layout, item)
        keys += _key_numbers(teacher)
        halves += (2 * teacher.config.blocks + 1) * teacher.config.width
        sent += teacher.config.blocks * teacher.config.width * bool(teacher.config.experts)
    links["tensor"] = 2 * share["tensor"] * tokens * item * halves
    links["expert"] = 2 * (size["expert"] - 1) * tokens * item * sent
    links["sequence"] += (size["sequence"] - 1) * tokens * item * keys / size["tensor"]
    links["expert"] += 2 * share["expert"] * own / layout.weight_ways * micro * bool(not sent)
    return links


def _key_numbers(model: Model) -> int:
    """Of keys and values per token, over all blocks."""
    config = model.config
    return 2 * config.blocks * config.kv_heads * config.head_width


def _travelling(model: Model, layout: Layout, item: int) -> int:
    """Bytes of weights that travel as they lie, or in the compute dtype where that is smaller."""
    params = model.params
    return min(params.gathered(layout.mesh), item * params.numbers(layout.mesh))


def link_speeds(topology: Topology, layout: Layout) -> dict[str, float]:
    """Bytes per second into a chip over each axis of the mesh.

    On a torus an axis has the links of the dimensions that it spans: the last axes lie along the
    last dimensions. In a node every chip reaches every other; an axis beyond it has the network.
    """
    chip, speeds, inner = topology.chip, {}, 1
    left = list(topology.sizes)
    for axis, size in reversed(list(zip(AXES, layout.mesh, strict=True))):
        if chip.node is not None:
            speeds[axis] = chip.link if inner * size <= chip.node else chip.network
            inner *= size
            continue
        spanned, covered = 0, 1
        while left and covered < size:
            covered *= left[-1]
            spanned += 1
            if covered <= size:
                left.pop()
            else:  # the rest of this dimension is the next axis's
                left[-1] = covered // size
        speeds[axis] = chip.link * max(1, spanned)
    return speeds
