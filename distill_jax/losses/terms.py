"""What the loss is a sum of."""

from typing import NamedTuple

from distill_jax.types import Array

CROSS_ENTROPY = "cross_entropy"


class Term(NamedTuple):
    """One weighted summand of the loss: a key of DIVERGENCES, or cross_entropy on gold labels.

    Weight and parameters may be traced scalars, where a schedule moves them. Parameters that are
    not given have the defaults of DIVERGENCES.
    """

    name: str
    weight: float | Array
    temperature: float = 1.0
    parameters: tuple[tuple[str, float | Array], ...] = ()


def needs_teacher(terms: tuple[Term, ...]) -> bool:
    """Whether any term compares with a teacher."""
    return any(term.name != CROSS_ENTROPY for term in terms)
