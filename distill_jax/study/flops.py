"""Floating-point operations of the matrix products of a traced program, scans counted in full.

A compiled program's own count takes the body of a scan once, whatever its length; this one reads
the jaxpr. Everything but matrix products is left out: in a decoder of any size they are nearly all.
"""

import math
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from distill_jax.models.grouped import COUNTED
from distill_jax.models.kernel_work import BACKWARD, FORWARD, told

Only = Callable[[Any], bool] | None
# Products of [T, H] with [S, H] or [T, S] with [S, H] that a kernel without a visible body makes:
# scores and values; scores again, and the gradients of weights, queries, keys and values.
PRODUCTS = {FORWARD: 2, BACKWARD: 5}
PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def program_flops(function: Callable, *arguments: Any, only: Only = None) -> int:
    """matrix_flops of a function traced with arguments, or with their shapes alone.

    >>> program_flops(lambda x: x @ x, jax.ShapeDtypeStruct((4, 4), "float32"))
    128
    """
    return matrix_flops(jax.make_jaxpr(function)(*arguments), only)


def matrix_flops(jaxpr: ClosedJaxpr | Jaxpr, only: Only = None) -> int:
    """2 x multiplications of every dot_general, over all devices.

    Those inside a scan are taken times its length, those inside a shard_map times the devices of
    its mesh. Of a conditional the costliest branch counts. Products of rows with the matrix of
    their group (models/grouped.py) are those of the rows, not of all groups; on a mesh each device
    along `expert` has its share of them. Kernels of attention count for the blocks that their mask
    leaves (models/kernel_work.py), any other for all steps of its grid. Raises ValueError for
    products within a while loop, whose number of turns is not known. only: of the equations of
    products, those that count, where a kernel is one; None: all.
    """
    return _total(jaxpr, _Place(1, (1, 1), only or _any))


def of_attention(equation: Any) -> bool:
    """Whether a product is one of scores or of values: each row and head has its own matrices.

    All kernels are of attention.
    """
    if _is_kernel(equation):
        return True
    numbers = equation.params.get("dimension_numbers")
    return equation.primitive.name == "dot_general" and bool(numbers[1][0])


class _Place(NamedTuple):
    """ways: devices that share the rows of grouped products; part: what masks leave of kernels."""

    ways: int
    part: tuple[int, int]
    only: Only


def _any(equation):
    return True


def _total(jaxpr, place):
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_equation(equation, place) for equation in jaxpr.eqns)


def _is_kernel(equation):
    return equation.primitive.name == "pallas_call" or equation.params.get("name") in PRODUCTS


def _kernel(equation, place) -> int:
    """Of the steps of a grid, or of all pairs of a query and a key, those that the mask leaves."""
    params = equation.params
    if equation.primitive.name == "pallas_call":
        whole = prod(params["grid_mapping"].grid) * _total(
            params["jaxpr"], place._replace(only=_any)
        )
    else:
        # The first two of its arrays [B, T, N, H] are queries and keys.
        query, key, *_ = [x.aval.shape for x in equation.invars if x.aval.ndim == 4]
        whole = PRODUCTS[params["name"]] * 2 * prod(query) * key[1]
    computed, of = place.part
    return whole * computed // of


def steps_for(flops: float, flops_per_step: float) -> int:
    """The number of steps whose cost is nearest to `flops`, at least one."""
    return max(1, round(flops / flops_per_step))


def written(flops: float) -> str:
    """Operations for a reader, such as `724 GFLOP`."""
    power = min(len(PREFIXES) - 1, int(math.log10(flops)) // 3) if flops >= 1 else 0
    return f"{flops / 1000**power:.3g} {PREFIXES[power]}FLOP"


def _equation(equation, place) -> int:
    name, params, only = equation.primitive.name, equation.params, place.only
    place = place._replace(part=told(str(equation.source_info.name_stack)) or place.part)
    if _is_kernel(equation):
        return _kernel(equation, place) if only(equation) else 0
    if name == "ragged_dot_general" or params.get("name") in COUNTED:
        # Rows [x, D] give [x, F], or with other rows [E, D, F]. What JAX takes out of a scan of it,
        # because it is the same in every turn, has no rows and no product.
        rows = equation.invars[0].aval.shape if equation.invars else ()
        made = equation.outvars[0].aval.shape
        if len(rows) != 2 or not only(equation):
            return 0
        return 2 * prod(made[-2:]) * rows[1 if len(made) == 2 else 0] // place.ways
    if name == "dot_general":
        if not only(equation):
            return 0
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * prod(equation.outvars[0].aval.shape) * prod(left[i] for i in contracted)
    if name == "shard_map":
        place = place._replace(ways=params["mesh"].shape.get("expert", 1))
    inner = [_total(part, place) for value in params.values() for part in _jaxprs(value)]
    if name == "while" and any(inner):
        raise ValueError("matrix products in a while loop cannot be counted")
    if name == "cond":
        return max(inner)
    times = {"scan": lambda: params["length"], "shard_map": lambda: params["mesh"].size}
    return sum(inner) * times.get(name, lambda: 1)()


def _jaxprs(value):
    if isinstance(value, ClosedJaxpr | Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _jaxprs(part)
