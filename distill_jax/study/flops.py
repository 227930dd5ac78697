"""Floating-point operations of the matrix products of a traced program, scans counted in full.

A compiled program's own count takes the body of a scan once, whatever its length; this one reads
the jaxpr. Everything but matrix products is left out: in a decoder of any size they are nearly all.
"""

import math
from collections.abc import Callable
from math import prod
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from distill_jax.models.grouped import COUNTED

Only = Callable[[Any], bool] | None
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
    along `expert` has its share of them. Raises ValueError for products within a while loop, whose
    number of turns is not known. only: of the equations of products, those that count; None: all.
    """
    return _total(jaxpr, 1, only or (lambda equation: True))


def of_attention(equation: Any) -> bool:
    """Whether a product is one of scores or of values: each row and head has its own matrices."""
    numbers = equation.params.get("dimension_numbers")
    return equation.primitive.name == "dot_general" and bool(numbers[1][0])


def _total(jaxpr, ways, only):
    """ways: devices that share the rows of grouped products."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_equation(equation, ways, only) for equation in jaxpr.eqns)


def steps_for(flops: float, flops_per_step: float) -> int:
    """The number of steps whose cost is nearest to `flops`, at least one."""
    return max(1, round(flops / flops_per_step))


def written(flops: float) -> str:
    """Operations for a reader, such as `724 GFLOP`."""
    power = min(len(PREFIXES) - 1, int(math.log10(flops)) // 3) if flops >= 1 else 0
    return f"{flops / 1000**power:.3g} {PREFIXES[power]}FLOP"


def _equation(equation, ways, only) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "ragged_dot_general" or params.get("name") in COUNTED:
        # Rows [x, D] give [x, F], or with other rows [E, D, F]. What JAX takes out of a scan of it,
        # because it is the same in every turn, has no rows and no product.
        rows = equation.invars[0].aval.shape if equation.invars else ()
        made = equation.outvars[0].aval.shape
        if len(rows) != 2 or not only(equation):
            return 0
        return 2 * prod(made[-2:]) * rows[1 if len(made) == 2 else 0] // ways
    if name == "dot_general":
        if not only(equation):
            return 0
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * prod(equation.outvars[0].aval.shape) * prod(left[i] for i in contracted)
    if name == "shard_map":
        ways = params["mesh"].shape.get("expert", 1)
    inner = [_total(part, ways, only) for value in params.values() for part in _jaxprs(value)]
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
