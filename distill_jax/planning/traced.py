"""What the traced programs of a model compute for a row, and what they keep for the backward pass.

A trace has the shapes of one chip: rows of its own, and its part of the heads and neurons. So what
is counted here follows the programs as they are, not a formula beside them.
"""

import dataclasses
from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import Term
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import Model, bind
from distill_jax.study.flops import matrix_flops, of_attention, program_flops
from distill_jax.types import Batch, Projected, Unembed

ACTIVATIONS, ATTENTION, WEIGHTS = "activations", "attention", "weights"


class Kept(NamedTuple):
    """Bytes that one block keeps between the two passes.

    row      per row of the batch, by owner: activations, attention
    copies   per row, of the copies of tokens that go to experts
    weights  of its matrices in another dtype than they are stored in; the same for any rows
    """

    row: dict[str, int]
    copies: int
    weights: int


class Operations(NamedTuple):
    """Floating-point operations for one row of a batch (study/flops.py), by what they are for.

    forward    of a model's blocks
    backward   of them, what is recomputed included; 0 of a teacher
    attention  of both, those of scores and values
    """

    forward: int
    backward: int
    attention: int


def part_of(config: ModelConfig, tensor: int) -> ModelConfig:
    """The architecture with the heads and neurons that a chip has of it.

    What the mesh axis does not divide every chip has whole.
    """
    heads = config.heads % tensor == 0 == config.kv_heads % tensor
    neurons = config.neurons % tensor == 0
    return dataclasses.replace(
        config,
        heads=config.heads // tensor if heads else config.heads,
        kv_heads=config.kv_heads // tensor if heads else config.kv_heads,
        neurons=config.neurons // tensor if neurons else config.neurons,
    )


def kept_by_a_block(config: ModelConfig, length: int, compute_dtype: str, remat: str) -> Kept:
    """What the backward pass of a model of this architecture is given, from its trace."""
    one, two = (_residuals(config, rows, length, compute_dtype, remat) for rows in (1, 2))
    row, copies, weights = {ACTIVATIONS: 0, ATTENTION: 0}, 0, 0
    for small, large in zip(one, two, strict=True):
        size, grown = (prod(x.shape) * x.dtype.itemsize for x in (small, large))
        if size == grown:
            weights += size
        elif config.experts and small.shape[0] == length * config.experts_per_token:
            copies += size
        else:
            # [B, T, N, H] and the like are of attention, [B, T, D] and [B, T, F] are not.
            row[ATTENTION if small.ndim > 3 else ACTIVATIONS] += size
    return Kept(row, copies, weights)


def _residuals(config, rows, length, compute_dtype, remat) -> list[Any]:
    """Shapes of one block's part of what the scan over blocks hands to the backward scan."""
    dtypes = {"param_dtype": "float32", "compute_dtype": compute_dtype}
    model = bind(config, **dtypes, remat=remat)
    of = lambda params, batch: jnp.sum(_hidden(model, params, batch).astype(jnp.float32))
    params = model.abstract()
    traced = jax.make_jaxpr(jax.grad(of))(params, _batch(rows, length))
    scan = next(_backward_scans(traced.jaxpr, config.blocks))
    stacked = scan.invars[scan.params["num_consts"] + scan.params["num_carry"] :]
    own = {(x.shape, x.dtype) for x in jax.tree.leaves(params["blocks"])}
    shapes = [x.aval for x in stacked if (x.aval.shape, x.aval.dtype) not in own]
    return [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in shapes]


def _backward_scans(jaxpr, length) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "scan" and params["reverse"] and params["length"] == length:
            yield equation
        else:
            for value in params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                        yield from _backward_scans(inner, length)


def operations(config: ModelConfig, length: int, remat: str | None) -> Operations:
    """Operations of a model's blocks for one row; remat None: of a teacher, forward alone."""
    model = bind(config, param_dtype="bfloat16", compute_dtype="bfloat16", remat=remat or "none")
    params, batch = model.abstract(), _batch(1, length)
    run = lambda p, b: jnp.sum(_hidden(model, p, b).astype(jnp.float32))
    forward = program_flops(run, params, batch)
    whole = run if remat is None else jax.grad(run)
    traced = jax.make_jaxpr(whole)(params, batch)
    both, scores = matrix_flops(traced), matrix_flops(traced, of_attention)
    return Operations(forward, both - forward, scores)


def head_operations(
    student: ModelConfig,
    teacher: ModelConfig | None,
    length: int,
    block_tokens: int,
    terms: tuple[Term, ...],
) -> int:
    """Operations of the products with both heads and of their gradients, for one row."""
    of = lambda config: (
        jax.ShapeDtypeStruct((1, length, config.width), jnp.bfloat16),
        jax.ShapeDtypeStruct((config.width, config.vocab), jnp.bfloat16),
    )
    other = of(teacher) if teacher else ()

    def loss(own, other, batch):
        hidden_BTD, weight_DV = own
        targets = Projected(other[0], Unembed(other[1])) if other else None
        return linear_divergence(
            hidden_BTD, Unembed(weight_DV), targets, batch.labels_BT, batch.weight_BT,
            terms=terms, block_tokens=block_tokens,
        )[0]  # fmt: skip

    return program_flops(jax.grad(loss), of(student), other, _batch(1, length))


def _hidden(model: Model, params: Any, batch: Batch) -> jax.Array:
    return model.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT).last_BTD


def _batch(rows: int, length: int) -> Batch:
    whole = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return Batch(whole, whole, jax.ShapeDtypeStruct((rows, length), jnp.float32), *[whole] * 3)
