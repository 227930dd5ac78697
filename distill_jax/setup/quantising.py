"""What quantising a teacher costs: its KL from the weights as they were, on held-out text.

The wide weights are read again and pass through the mesh one block at a time, so that both models
are never there at once: beside the quantised teacher there are one wide block and the hidden states
of the text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.data.pack import Rows
from distill_jax.files import read_sealed
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import Term
from distill_jax.models.binding import Model
from distill_jax.models.context import block_kinds
from distill_jax.models.families import FAMILIES
from distill_jax.models.load import load_checkpoint
from distill_jax.setup import data
from distill_jax.setup.bits import wide_dtype
from distill_jax.setup.models import RANDOM, Cost, Loaded, bind_config
from distill_jax.setup.placing import block_of, placed
from distill_jax.sharding import parameter_shardings
from distill_jax.types import Advance, Array, Batch, Params, Projected, silent
from distill_jax.workdir import PROVENANCE


class _Wide(NamedTuple):
    """Embedding, final norm and head of the wide model, and its last residual stream."""

    model: Model
    ends: Params
    streams: list[Array]


def measured(
    c: ConfigDict,
    loaded: Sequence[Loaded],
    rows: Rows,
    size: int,
    mesh: Mesh,
    advance: Advance = silent,
    known: Sequence[Cost | None] = (),
) -> tuple[Loaded, ...]:
    """The same models, the quantised ones with what that costs on the first teacher.kl_tokens.

    size: rows of a batch. known: costs that were measured before, which are not measured again.
    """
    known = [*known, *[None] * (len(loaded) - len(known))]
    batches: list[Batch] = []
    costs = []
    for one, before in zip(loaded, known, strict=True):
        wanted = one.model.bits is not None and not one.fingerprint.startswith(RANDOM)
        if before is None and wanted and c.teacher.kl_tokens:
            batches = batches or _first(c, rows, size, mesh)
            before = cost_of(c, one, batches, mesh, advance)
        costs.append(before if wanted else None)
    return tuple(one._replace(cost=cost) for one, cost in zip(loaded, costs, strict=True))


def known_costs(directory: Path) -> list[Cost | None]:
    """What a run measured of its teachers when it began, in their order; nothing if it is new."""
    before, found = read_sealed(directory / PROVENANCE) or {}, []
    while (key := f"{_name(len(found))}.dtype.kl") in before:
        found.append(Cost(before[key], before[f"{key}_tokens"]))
    return found


def _name(i):
    return f"teacher.{i + 1}" if i else "teacher"


def noted(loaded: Sequence[Loaded]) -> dict[str, str | float]:
    """What provenance says of quantised teachers."""
    found: dict[str, str | float] = {}
    for i, one in enumerate(loaded):
        name = _name(i)
        if one.model.bits is not None:
            found[f"{name}.dtype"] = one.model.bits.dtype
        if one.cost is not None:
            found |= {f"{name}.dtype.kl": one.cost.kl, f"{name}.dtype.kl_tokens": one.cost.tokens}
    return found


def quantised_of(loaded: Loaded) -> tuple[str, float, int] | None:
    """A teacher's dtype and its cost, as report/taught.py words them."""
    return loaded.cost and (loaded.model.bits.dtype, *loaded.cost)


def told(loaded: Sequence[Loaded]) -> list[str]:
    """A line on each teacher whose cost is known."""
    return [
        f"teacher in {one.model.bits.dtype}: KL(teacher || {one.model.bits.dtype})"
        f" {one.cost.kl:.2g} nats per token over {one.cost.tokens:,} held-out tokens"
        for one in loaded
        if one.cost is not None
    ]


def cost_of(
    c: ConfigDict, loaded: Loaded, batches: Sequence[Batch], mesh: Mesh, advance: Advance = silent
) -> Cost:
    """KL(wide || quantised) of a quantised model over the counted tokens of some batches."""
    wide = _through_blocks(c, loaded, batches, mesh, advance)

    @jax.jit
    def divergence(params, ends, x_BTD, batch):
        of = batch.tokens_BT, batch.segment_BT, batch.position_BT
        return linear_divergence(
            loaded.model.apply(params, *of).last_BTD,
            loaded.model.unembed(params),
            Projected(wide.model.finish(ends, x_BTD), wide.model.unembed(ends)),
            batch.labels_BT,
            batch.weight_BT,
            terms=(Term("forward_kl", 1.0),),
            block_tokens=c.model.block_tokens,
            mesh=mesh,
        )[1]["forward_kl"]

    pairs = zip(wide.streams, batches, strict=True)
    means = [divergence(loaded.params, wide.ends, x_BTD, batch) for x_BTD, batch in pairs]
    total, count = (float(sum(map(float, of))) for of in zip(*means, strict=True))
    return Cost(total / max(count, 1.0), round(count))


def _first(c: ConfigDict, rows: Rows, size: int, mesh: Mesh) -> list[Batch]:
    """Held-out batches, until they have teacher.kl_tokens counted tokens."""
    batches, seen = [], 0.0
    for start in range(0, len(rows), size):
        chosen = [rows[i] for i in range(start, min(start + size, len(rows)))]
        batches.append(data.batch_of(chosen, size, mesh))
        seen += float(sum(row.weight_BT.sum() for row in chosen))
        if seen >= c.teacher.kl_tokens:
            break
    return batches


def _through_blocks(c, loaded, batches, mesh, advance) -> _Wide:
    config, dtype = loaded.model.config, wide_dtype(c, c.teacher.dtype)
    params = load_checkpoint(loaded.path, dtype=jnp.dtype(dtype)).params
    model, rules = bind_config(c, config, dtype), FAMILIES[config.family].sharding
    put = lambda some: placed(some, parameter_shardings(some, rules, mesh, c.teacher.shard))
    ends = put({name: values for name, values in params.items() if name != "blocks"})

    @jax.jit
    def through(stack, x_BTD, batch, kind):
        block = model.block(jax.tree.map(lambda w: w[0], stack))
        return block(x_BTD, model.context(batch.segment_BT, batch.position_BT), kind)

    embed = jax.jit(lambda ends, batch: model.embed(ends, batch.tokens_BT, batch.position_BT))
    streams = [embed(ends, batch) for batch in batches]
    for i, kind in enumerate(block_kinds(config)):
        # One block as a stack of one: the rules are those of stacks.
        one = jax.tree.map(lambda w, i=i: block_of(w, i), params["blocks"])
        stack = put({"blocks": one})["blocks"]
        streams = [
            through(stack, x, batch, kind) for x, batch in zip(streams, batches, strict=True)
        ]
        jax.block_until_ready(streams)
        advance("KL of the quantised teacher, block", i + 1, config.blocks)
    return _Wide(model, ends, streams)
