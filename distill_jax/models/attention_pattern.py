"""Which keys a query sees, and what becomes of its scores: static, of one kind of block."""

from typing import NamedTuple


class Pattern(NamedTuple):
    """Hashable, so that a compiled kernel may depend on it.

    window   positions a query looks back, itself included; None: to the beginning of its segment
    scale    factor of the scores
    softcap  c replaces each scaled score s by c * tanh(s / c); None: s stays
    """

    window: int | None
    scale: float
    softcap: float | None
