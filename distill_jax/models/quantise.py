"""Which parameters of a decoder are quantised: the matrices of blocks, embedding and head.

Norms, biases, routers, sinks and learned positions stay as they are: they are small, and a router's
error would send tokens to other experts.
"""

import re

import jax

from distill_jax.quantised import Bits, quantise, quantise_rows
from distill_jax.types import Params, path_name

OF_BLOCKS = r"blocks/(attention/(query|key|value|output)|feed_forward/(expert_)?(gate|up|down))"
# Of embedding and head, whatever the blocks have.
AT_ENDS = Bits("int8", 0)


def bits_of(path: str, bits: Bits) -> Bits | None:
    """How the parameter of a path is quantised; None where it stays as it is."""
    if re.fullmatch(OF_BLOCKS, path):
        return bits
    return AT_ENDS if path in ("embedding", "head") else None


def quantised_parameter(path: str, values, bits: Bits):
    """One parameter as bits_of says."""
    of_it = bits_of(path, bits)
    if of_it is None:
        return values
    return (quantise_rows if path == "embedding" else quantise)(values, of_it)


def quantised_params(params: Params, bits: Bits) -> Params:
    """All parameters of a decoder."""
    return jax.tree_util.tree_map_with_path(
        lambda path, values: quantised_parameter(path_name(path), values, bits), params
    )
