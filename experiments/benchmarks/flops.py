"""Floating-point operations of the matrix products of a traced program, scans counted in full."""

from math import prod

from jax.extend.core import ClosedJaxpr, Jaxpr


def matrix_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """2 x multiplications of every dot_general, those inside scans times the scan's length.

    Of a conditional the costliest branch counts. Raises ValueError for products within a while
    loop, whose number of turns is not known.
    """
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * prod(equation.outvars[0].aval.shape) * prod(left[i] for i in contracted)
    inner = [matrix_flops(part) for value in params.values() for part in _jaxprs(value)]
    if name == "while" and any(inner):
        raise ValueError("matrix products in a while loop cannot be counted")
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(value):
    if isinstance(value, ClosedJaxpr | Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _jaxprs(part)
