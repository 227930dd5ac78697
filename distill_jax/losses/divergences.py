"""Divergences between the next-token distributions of a student q and a teacher p.

Every entry is elementwise: phi(log_q, log_p, q, p) is the share of one vocabulary entry, and the
sum over the vocabulary is the divergence of the token. Student first, everywhere. Adding a
divergence is one function and one line in DIVERGENCES; its parameters get their defaults in
configs/base.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.types import Array, UserError

# A log-probability never falls below this, so that an excluded entry (-inf) keeps every product
# finite: exp(FLOOR) is exactly 0 and 0 * FLOOR is 0, where 0 * -inf would be NaN.
FLOOR = -1e30


class Divergence(NamedTuple):
    """phi(log_q, log_p, q, p, **parameters) and the names of its parameters."""

    phi: Callable[..., Array]
    parameters: tuple[str, ...] = ()


def forward_kl(log_q, log_p, q, p):
    """KL(p || q), mean-seeking. Gradient in the student's logits: q - p. Hinton, 1503.02531."""
    return p * (log_p - log_q)


def reverse_kl(log_q, log_p, q, p):
    """KL(q || p), mode-seeking. Gradient in the student's logits: q * (log(q/p) - KL)."""
    return q * (log_q - log_p)


def jsd(log_q, log_p, q, p, *, beta):
    """beta KL(p || m) + (1-beta) KL(q || m), m = beta p + (1-beta) q. GKD, 2306.13649, eq. (1).

    beta weighs the teacher. At its ends the definition is exactly 0 and not a KL, hence refused.
    """
    if not 0 < beta < 1:
        name = "forward_kl" if beta <= 0 else "reverse_kl"
        raise UserError(
            f"jsd.beta is {beta}, where jsd is 0 for every student: use a value between 0 and 1,"
            f" or the term {name}, which is the limit of jsd divided by its small weight"
        )
    log_m = jnp.logaddexp(log_p + jnp.log(beta), log_q + jnp.log1p(-beta))
    return beta * p * (log_p - log_m) + (1 - beta) * q * (log_q - log_m)


def skew_forward_kl(log_q, log_p, q, p, *, alpha):
    """KL(p || alpha p + (1-alpha) q); alpha 0 is forward_kl. DistiLLM, 2402.03898, eq. (4)."""
    return p * (log_p - _mix(log_p, log_q, alpha))


def skew_reverse_kl(log_q, log_p, q, p, *, alpha):
    """KL(q || (1-alpha) p + alpha q), gradient through both q; alpha 0 is reverse_kl."""
    return q * (log_q - _mix(log_q, log_p, alpha))


def total_variation(log_q, log_p, q, p):
    """Half of the L1 distance; 1 minus it is the acceptance rate of speculative decoding."""
    return 0.5 * jnp.abs(p - q)


def _mix(log_a, log_b, alpha):
    """log(alpha a + (1-alpha) b): mixtures live in probability space."""
    if not 0 <= alpha < 1:
        raise UserError(f"a skew divergence has alpha {alpha}: use 0 <= alpha < 1 (DistiLLM: 0.1)")
    if alpha == 0:
        return log_b
    return jnp.logaddexp(log_a + jnp.log(alpha), log_b + jnp.log1p(-alpha))


def log_probabilities(logits_xV: Array, temperature: float = 1.0) -> Array:
    """Log-softmax of logits / temperature in at least float32, floored at FLOOR."""
    logits_xV = logits_xV.astype(jnp.promote_types(logits_xV.dtype, jnp.float32))
    return jnp.maximum(jax.nn.log_softmax(logits_xV / temperature, axis=-1), FLOOR)


def token_divergence(
    name: str,
    student_logits_xV: Array,
    teacher_logits_xV: Array,
    *,
    temperature: float = 1.0,
    **parameters: float,
) -> Array:
    """Divergence of each token, in nats, times temperature² (Hinton 2015, section 2).

    The naive form, which holds the logits of both sides: for short inputs and as the reference
    that losses/fused.py is tested against.
    """
    log_q = log_probabilities(student_logits_xV, temperature)
    log_p = log_probabilities(teacher_logits_xV, temperature)
    phi = DIVERGENCES[name].phi(log_q, log_p, jnp.exp(log_q), jnp.exp(log_p), **parameters)
    return temperature**2 * jnp.sum(phi, axis=-1)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl),
    "reverse_kl": Divergence(reverse_kl),
    "jsd": Divergence(jsd, ("beta",)),
    "skew_forward_kl": Divergence(skew_forward_kl, ("alpha",)),
    "skew_reverse_kl": Divergence(skew_reverse_kl, ("alpha",)),
    "total_variation": Divergence(total_variation),
}
