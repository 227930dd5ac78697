"""Divergences between the next-token distributions of a student q and a teacher p.

Every entry is elementwise: phi(log_q, log_p, q, p) is the share of one vocabulary entry, and the
sum over the vocabulary is the divergence of the token. Student first, everywhere. Adding a
divergence is one function and one line in DIVERGENCES; its parameters get their defaults in
configs/base.py.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.types import Array, UserError

# A log-probability never falls below this, so that an excluded entry (-inf) keeps every product
# finite: exp(FLOOR) is exactly 0 and 0 * FLOOR is 0, where 0 * -inf would be NaN.
FLOOR = -1e30


class Divergence(NamedTuple):
    """One of two kinds, and its parameters with their defaults.

    phi(log_q, log_p, q, p, **parameters): the share of one vocabulary entry; or, for what must
    sort or mix, row(log_q_xV, log_p_xV, **parameters) -> value_x.
    """

    phi: Callable[..., Array] | None = None
    row: Callable[..., Array] | None = None
    parameters: Mapping[str, float] = MappingProxyType({})


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


def alpha_beta(log_q, log_p, q, p, *, a, b):
    """-1/(ab) sum[p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]. ABKD, 2505.04560, definition 3.

    (1, 0) is forward_kl and (0, 1) reverse_kl, as limits; (.5, .5) is 4 (1 - sum sqrt(pq)).
    """
    if a < 0 or b < 0 or a + b == 0:
        raise UserError(f"alpha_beta has a {a} and b {b}: use 0 or more for both, and not 0 twice")
    power = lambda x, y: jnp.exp(jnp.maximum(x * log_p + y * log_q, FLOOR))
    if b == 0:
        return (a * power(a, 0) * (log_p - log_q) - power(a, 0) + power(0, a)) / a**2
    if a == 0:
        return (b * power(0, b) * (log_q - log_p) - power(0, b) + power(b, 0)) / b**2
    joint = power(a, b) - (a * power(a + b, 0) + b * power(0, a + b)) / (a + b)
    return -joint / (a * b)


def adaptive_kl(log_q, log_p, *, mu):
    """(g_h FKL + g_t RKL) / (g_h + g_t), g = sum |p - q| on head and tail. AKL, 2404.02657, eq. 12.

    The head is the likeliest entries of p up to a cumulative probability of mu, and always the
    first. The weights are detached. Equal probabilities keep the order of the vocabulary.
    """
    if not 0 <= mu <= 1:
        raise UserError(f"adaptive_kl.mu is {mu}: use a probability, such as 0.5")
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    order = jnp.argsort(-p, axis=-1)
    ordered = jnp.take_along_axis(p, order, -1)
    in_head = (jnp.cumsum(ordered, -1) <= mu).at[..., 0].set(True)
    gap = jnp.take_along_axis(jnp.abs(p - jax.lax.stop_gradient(q)), order, -1)
    head = jnp.sum(jnp.where(in_head, gap, 0.0), -1)
    both = jnp.sum(gap, -1)
    share = jnp.where(both > 0, head / jnp.where(both > 0, both, 1.0), 0.5)
    forward = jnp.sum(forward_kl(log_q, log_p, q, p), -1)
    reverse = jnp.sum(reverse_kl(log_q, log_p, q, p), -1)
    return share * forward + (1 - share) * reverse


def taid(log_q, log_p, *, t):
    """KL(p_t || q), p_t = softmax((1-t) log q + t log p), p_t detached. TAID, 2501.16937, eq. (4).

    t = 1 is forward_kl; losses/schedules.py moves it there.
    """
    if isinstance(t, float | int) and not 0 <= t <= 1:
        raise UserError(f"taid.t is {t}: use 0 to 1, such as 0.4")
    mixed = jnp.maximum((1 - t) * jax.lax.stop_gradient(log_q) + t * log_p, FLOOR)
    log_target = jnp.maximum(jax.nn.log_softmax(mixed, -1), FLOOR)
    target = jnp.exp(log_target)
    return jnp.sum(forward_kl(log_q, log_target, jnp.exp(log_q), target), -1)


def entropy_aware(log_q, log_p, *, entropy):
    """reverse_kl, and forward_kl too where p has more than `entropy` nats. EOPD, 2603.07079."""
    if not entropy >= 0:
        raise UserError(f"entropy_aware.entropy is {entropy} nats: use 0 or more, such as 0.8")
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    uncertain = -jnp.sum(p * log_p, -1) > entropy
    forward = jnp.sum(forward_kl(log_q, log_p, q, p), -1)
    reverse = jnp.sum(reverse_kl(log_q, log_p, q, p), -1)
    return reverse + jnp.where(uncertain, forward, 0.0)


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
    return temperature**2 * divergence(name, log_q, log_p, **parameters)


def divergence(name: str, log_q_xV: Array, log_p_xV: Array, **parameters: float | Array) -> Array:
    """The divergence [x] of log-probabilities; parameters not given have their defaults."""
    kind = DIVERGENCES[name]
    parameters = dict(kind.parameters) | parameters
    if kind.row is not None:
        return kind.row(log_q_xV, log_p_xV, **parameters)
    q_xV, p_xV = jnp.exp(log_q_xV), jnp.exp(log_p_xV)
    return jnp.sum(kind.phi(log_q_xV, log_p_xV, q_xV, p_xV, **parameters), -1)


def check(name: str, parameters: Mapping[str, float]) -> None:
    """Raises UserError for parameters that mean nothing."""
    token_divergence(name, jnp.zeros(2), jnp.zeros(2), **parameters)


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl),
    "reverse_kl": Divergence(reverse_kl),
    "jsd": Divergence(jsd, parameters={"beta": 0.5}),
    "skew_forward_kl": Divergence(skew_forward_kl, parameters={"alpha": 0.1}),
    "skew_reverse_kl": Divergence(skew_reverse_kl, parameters={"alpha": 0.1}),
    "total_variation": Divergence(total_variation),
    "alpha_beta": Divergence(alpha_beta, parameters={"a": 0.2, "b": 0.7}),
    "adaptive_kl": Divergence(row=adaptive_kl, parameters={"mu": 0.5}),
    "taid": Divergence(row=taid, parameters={"t": 0.4}),
    "entropy_aware": Divergence(row=entropy_aware, parameters={"entropy": 0.8}),
}
