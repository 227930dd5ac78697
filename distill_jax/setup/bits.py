"""What teacher.dtype says: in how many bits matrices are held, and in what they are read."""

from ml_collections import ConfigDict

from distill_jax.quantised import LARGEST, Bits


def bits_of(c: ConfigDict, dtype: str) -> Bits | None:
    """How a dtype quantises matrices; None where it does not."""
    if dtype not in LARGEST:
        return None
    return Bits(dtype, c.teacher.group if dtype == "int4" else 0)


def wide_dtype(c: ConfigDict, dtype: str) -> str:
    """What weights are read in: the dtype, or before they are quantised that of the products."""
    return c.model.compute_dtype if dtype in LARGEST else dtype
