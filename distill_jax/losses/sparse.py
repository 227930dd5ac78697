"""Losses against teachers of which only a few vocabulary entries are known.

The student stays dense over V. The teacher's E entries and one more for the rest of the vocabulary
are its symbols; no array [.., V] of the teacher is made. The gradient in the student's logits z of
a function of log q at the symbols, with g its derivative there and G the sum of g:
  dz = g_k - q_k G at an entry k,   q (g_rest / q_rest - G) everywhere else.
How the mass outside the E entries is treated is a policy (POLICIES).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import DIVERGENCES, FLOOR, divergence
from distill_jax.losses.terms import Term
from distill_jax.losses.vocabulary import (
    EMPTY,
    Distribution,
    entry_places,
    log_at,
    log_of,
    summed,
)
from distill_jax.types import Array, UserError

INFINITE = 1e20  # FLOOR times any softmax probability is far larger


class Symbols(NamedTuple):
    """The teacher at its known entries, and at the rest of the vocabulary as one symbol.

    log_p_xE at ids_xE (EMPTY: unused). log_rest_x is None where the rest is ignored, FLOOR where
    the teacher gives it no probability; then `without` names the cause for an error message.
    """

    ids_xE: Array
    log_p_xE: Array
    log_rest_x: Array | None
    without: str = ""


def top_k_symbols(ids, logits, rest_xM, temperatures, policy, temperature, shared) -> Symbols:
    """Symbols of TopK targets at a temperature. Entries from `shared` on are excluded.

    Raises UserError for an unknown policy, or a temperature at which the rest is unknown: unlike
    the entries' logits, it cannot be computed from the rest at another temperature.
    """
    if policy not in POLICIES:
        raise UserError(f"the top-k policy is {policy!r}: use one of {', '.join(POLICIES)}")
    kept = (ids >= 0) & (ids < shared)
    scaled = jnp.where(kept, logits / temperature, -jnp.inf)
    rest = None
    if policy != "renormalise":
        if temperature not in temperatures:
            raise UserError(
                f"the top-k targets were made for the temperatures {temperatures} and a term has"
                f" {temperature}: make targets for it, or use the policy renormalise"
            )
        rest = rest_xM[..., temperatures.index(temperature)]
    log_p, log_rest = POLICIES[policy](scaled, rest)
    without = f"the policy {policy}" if policy == "renormalise" else ""
    return Symbols(jnp.where(kept, ids, EMPTY), jnp.maximum(log_p, FLOOR), log_rest, without)


def _tail_bucket(scaled_xE, rest_x):
    """One more symbol with all the mass outside: a lower bound of the full divergence."""
    total = jnp.logaddexp(jax.nn.logsumexp(scaled_xE, -1), rest_x)
    return scaled_xE - total[..., None], jnp.maximum(rest_x - total, FLOOR)


def _truncate(scaled_xE, rest_x):
    """Only the E summands of the full divergence; it may be negative."""
    total = jnp.logaddexp(jax.nn.logsumexp(scaled_xE, -1), rest_x)
    return scaled_xE - total[..., None], None


def _renormalise(scaled_xE, rest_x):
    """The teacher divided by its mass on the E entries, 0 elsewhere; the student unchanged."""
    return jax.nn.log_softmax(scaled_xE, -1), jnp.full(scaled_xE.shape[:-1], FLOOR, scaled_xE.dtype)


def sampled_symbols(ids, probability, temperature, shared) -> Symbols:
    """Symbols of Sampled targets. Raises UserError for a temperature other than 1."""
    if temperature != 1:
        raise UserError(
            f"sampled targets are draws at temperature 1 and a term has {temperature}: set its"
            " temperature to 1, or use hidden or top_k targets"
        )
    kept = (ids >= 0) & (ids < shared)
    probability = jnp.where(kept, probability, 0.0)
    probability /= jnp.maximum(jnp.sum(probability, -1, keepdims=True), 1e-30)
    log_p = jnp.where(probability > 0, jnp.log(jnp.where(probability > 0, probability, 1.0)), FLOOR)
    rest = jnp.full(ids.shape[:-1], FLOOR, log_p.dtype)
    return Symbols(jnp.where(kept, ids, EMPTY), log_p, rest, "sampling")


def check_partial_terms(
    terms: tuple[Term, ...], temperatures: tuple[float, ...], policy: str | None
) -> None:
    """Raises UserError for a term that the targets do not support. policy None: sampled targets."""
    ids, value = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1))
    for term in terms:
        if term.name in DIVERGENCES:
            if policy is None:
                symbols = sampled_symbols(ids, value, term.temperature, 1)
            else:
                rest, known = jnp.zeros((1, len(temperatures))), (temperatures, policy)
                symbols = top_k_symbols(ids, value, rest, *known, term.temperature, 1)
            _refuse_infinite(term, symbols)


def symbol_losses(
    terms: tuple[Term, ...],
    weights: list,
    q: Distribution,
    symbols: Symbols,
    axis: str | None,
    with_gradient: bool,
) -> tuple[list[Array], Array | None]:
    """Each term's divergence [x], and the gradient [x, V] in z of the sum of weight * term.

    Raises UserError for a divergence that is infinite where the teacher has no probability.
    """
    for term in terms:
        _refuse_infinite(term, symbols)
    ids = symbols.ids_xE
    log_q = log_at(q, ids, axis)
    log_p, rest = symbols.log_p_xE, None
    place = entry_places(ids, q.prob_xV.shape[-1], axis)
    if symbols.log_rest_x is not None:
        outside = q.prob_xV.at[place].set(0.0, mode="drop")
        rest = summed(outside, axis)
        log_rest = jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1.0)), FLOOR)
        log_q = jnp.concatenate([log_q, log_rest], -1)
        log_p = jnp.concatenate([log_p, symbols.log_rest_x[..., None]], -1)

    def compare(log_q):
        return [_at_symbols(term, symbols, log_q, log_p) for term in terms]

    values, pull = jax.vjp(compare, log_q)
    gradient = None
    if with_gradient:
        (g,) = pull([w * jnp.ones_like(v) for w, v in zip(weights, values, strict=True)])
        gradient = _in_logits(g, q, log_q, rest, place, ids.shape[-1])
    for i, term in enumerate(terms):
        if _is_unmergeable(term, symbols):
            more, more_gradient = _outside(term, weights[i], q, outside, axis, with_gradient)
            values[i] += more
            gradient = gradient + more_gradient if with_gradient else None
    return values, gradient


def _at_symbols(term, symbols, log_q, log_p):
    """A term at the symbols, without the rest where _outside adds that entry by entry."""
    if _is_unmergeable(term, symbols):
        log_q, log_p = log_q[..., :-1], log_p[..., :-1]
    return divergence(term.name, log_q, log_p, **term.arguments)


def _in_logits(g, q, log_q, rest, place, known):
    """From the derivative at the symbols to the one in the student's logits."""
    total = jnp.sum(g, -1, keepdims=True)
    elsewhere = -total
    if rest is not None:
        elsewhere += jnp.where(rest > 0, g[..., known:] / jnp.where(rest > 0, rest, 1.0), 0.0)
    there = g[..., :known] - jnp.exp(log_q[..., :known]) * total
    return (q.prob_xV * elsewhere).at[place].set(there, mode="drop")


def _outside(term, weight, q, outside, axis, with_gradient):
    """The sum over the entries without teacher probability, and its gradient."""
    log_q = jnp.where(outside > 0, log_of(q), FLOOR)
    phi = DIVERGENCES[term.name].phi

    def absent(log_q, q):
        return phi(log_q, jnp.full_like(q, FLOOR), q, jnp.zeros_like(q), **term.arguments)

    value, pull = jax.vjp(absent, log_q, outside)
    total = summed(value, axis)[..., 0]
    if not with_gradient:
        return total, None
    from_log, from_q = pull(jnp.full_like(value, 1.0) * weight)
    joint = from_log + outside * from_q
    return total, joint - q.prob_xV * summed(joint, axis)


def _is_unmergeable(term: Term, symbols: Symbols) -> bool:
    """Whether entries without teacher probability cannot be merged into one symbol.

    f-divergences, homogeneous in (q, p), allow merging; alpha_beta with a + b != 1 does not.
    """
    if not symbols.without or DIVERGENCES[term.name].phi is None:
        return False
    with jax.ensure_compile_time_eval():
        one, two = (float(_absent(term, x)) for x in (0.25, 0.5))
    return abs(two - 2 * one) > 1e-5 * abs(two)


def _refuse_infinite(term: Term, symbols: Symbols) -> None:
    if not symbols.without:
        return
    with jax.ensure_compile_time_eval():
        value = float(_absent(term, 0.25))
    if value > INFINITE:
        raise UserError(
            f"{term.name} is infinite where the teacher has no probability, as {symbols.without}"
            " leaves most tokens: use the policy tail_bucket, hidden targets, or another term"
        )


def _absent(term: Term, q: float) -> Array:
    """The contribution of an entry with student probability q and teacher probability 0."""
    phi, row, _ = DIVERGENCES[term.name]
    if row is None:
        return phi(jnp.log(q), jnp.float32(FLOOR), jnp.float32(q), jnp.float32(0), **term.initial)
    log_q, log_p = jnp.log(jnp.array([q, 1 - q])), jnp.array([FLOOR, 0.0])
    return row(log_q, log_p, **term.initial)


POLICIES: dict[str, Callable] = {
    "tail_bucket": _tail_bucket,
    "renormalise": _renormalise,
    "truncate": _truncate,
}
