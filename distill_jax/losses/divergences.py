"""Divergences between the next-token distributions of a student q and a teacher p.

Student first, everywhere. A new divergence is one function and one line in DIVERGENCES, which also
holds the defaults of its parameters; the function cites their source.
"""

from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from distill_jax.types import Array, UserError

# A log-probability never falls below this, so that an excluded entry (-inf) keeps every product
# finite: exp(FLOOR) is exactly 0 and 0 * FLOOR is 0, where 0 * -inf would be NaN.
FLOOR = -1e30
# Keeps the logarithm of a mixture finite where both parts are 0; negligible elsewhere.
TINY = 1e-37


class Divergence(NamedTuple):
    """Either phi or row, and the parameters with their defaults.

    phi(log_q, log_p, q, p, **parameters): elementwise, the contribution of one vocabulary entry;
    the sum over the vocabulary is the divergence of the token. Its derivative is taken with log_q
    and q changing together. row(log_q_xV, log_p_xV, **parameters) -> value_x: for divergences that
    must sort or mix whole rows.
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

    beta is the weight of the teacher. At 0 and 1 the definition is exactly 0, not a KL: refused.
    The default, 0.5, is symmetric.
    """
    if not 0 < beta < 1:
        name = "reverse_kl" if beta >= 1 else "forward_kl"
        raise UserError(
            f"jsd.beta is {beta}, where jsd is 0 for every student: use a value between 0 and 1,"
            f" or the term {name}, which is the limit of jsd divided by its small weight"
        )
    # Summed, the derivatives of log m and log q cancel: -m dm/m + (1-beta) q dlog q is 0. What is
    # left costs no division and no further pass over the vocabulary.
    log_m = stop_gradient(_log_mix(beta, p, q))
    return beta * p * (log_p - log_m) + (1 - beta) * q * (stop_gradient(log_q) - log_m)


def skew_forward_kl(log_q, log_p, q, p, *, alpha):
    """KL(p || alpha p + (1-alpha) q), at most -log alpha; alpha 0 is forward_kl.

    DistiLLM, 2402.03898, eq. (4), which recommends alpha 0.1.
    """
    _refuse_skew(alpha)
    return p * (log_p - (log_q if alpha == 0 else _log_mix(alpha, p, q)))


def skew_reverse_kl(log_q, log_p, q, p, *, alpha):
    """KL(q || alpha q + (1-alpha) p), gradient through both q; alpha 0 is reverse_kl.

    DistiLLM, 2402.03898, section 3.1, which recommends alpha 0.1.
    """
    _refuse_skew(alpha)
    return q * (log_q - (log_p if alpha == 0 else _log_mix(alpha, q, p)))


def total_variation(log_q, log_p, q, p):
    """Half of the L1 distance; 1 minus it is speculative decoding's acceptance. 2307.15190."""
    return 0.5 * jnp.abs(p - q)


def alpha_beta(log_q, log_p, q, p, *, a, b):
    """-1/(ab) sum[p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]. ABKD, 2505.04560, definition 3.

    (1, 0) is forward_kl and (0, 1) reverse_kl, as limits. (.5, .5) is 4 times the squared Hellinger
    distance 1 - sum sqrt(pq). The defaults, 0.2 and 0.7, are those of the authors' code. Between 0
    and 0.001 float32 cancellation would dominate; 0 itself is computed as the limit.
    """
    if not (all(x == 0 or x >= 1e-3 for x in (a, b)) and 0 < a + b < inf):
        raise UserError(
            f"alpha_beta has a {a} and b {b}: use 0 or at least 0.001 for each, not 0 for both,"
            " such as 0.2 and 0.7"
        )
    power = lambda log_x, x, n: x if n == 1 else jnp.exp(n * log_x)
    p_both, q_both = power(log_p, p, a + b), power(log_q, q, a + b)
    if b == 0:
        return (p_both * (a * (log_p - log_q) - 1) + q_both) * (1 / a**2)
    if a == 0:
        return (q_both * (b * (log_q - log_p) - 1) + p_both) * (1 / b**2)
    joint = jnp.exp(a * log_p + b * log_q)
    return (a * p_both + b * q_both - (a + b) * joint) * (1 / (a * b * (a + b)))


def adaptive_kl(log_q, log_p, *, mu):
    """(g_h FKL + g_t RKL) / (g_h + g_t), g = sum |p - q| on head and tail, detached.

    AKL, 2404.02657, eq. (12), which uses mu 0.5. The head is the likeliest entries of p up to a
    cumulative probability of mu, and always the first. Where only some of several equally likely
    entries fit, each belongs to the head by the same share: the mean over all their orders.
    """
    if not 0 <= mu < 1:
        raise UserError(
            f"adaptive_kl.mu is {mu}: use a probability below 1, such as 0.5; for 1 the term"
            " forward_kl"
        )
    forward, reverse = _both_kl(log_q, log_p)
    p = stop_gradient(jnp.exp(log_p))
    gap = jnp.abs(p - stop_gradient(jnp.exp(log_q)))
    head, both = jnp.sum(gap * _head(p, mu), -1), jnp.sum(gap, -1)
    share = head / jnp.where(both > 0, both, 1.0)
    return share * forward + (1 - share) * reverse


def taid(log_q, log_p, *, t):
    """KL(p_t || q), p_t = softmax((1-t) log q + t log p), p_t detached. TAID, 2501.16937, eq. (4).

    t = 0 is 0 for every student and t = 1 forward_kl; losses/terms.py moves it there from 0.4.
    t may be traced.
    """
    if not isinstance(t, jax.Array) and not 0 <= t <= 1:
        raise UserError(f"taid.t is {t}: use 0 to 1, such as 0.4")
    mixed = (1 - t) * stop_gradient(log_q) + t * log_p
    log_target = jax.nn.log_softmax(mixed, -1)
    return jnp.sum(jnp.exp(log_target) * (log_target - log_q), -1)


def entropy_aware(log_q, log_p, *, entropy):
    """reverse_kl, plus forward_kl where p has more than `entropy` nats. EOPD, 2603.07079.

    The sum and the threshold of 0.8 are the authors'. They estimate the reverse KL by the sampled
    token and cut the forward KL to the teacher's top 16; here both are exact. The entropy is that
    of p at the temperature of the term.
    """
    if not entropy >= 0:
        raise UserError(f"entropy_aware.entropy is {entropy} nats: use 0 or more, such as 0.8")
    forward, reverse = _both_kl(log_q, log_p)
    uncertain = -jnp.sum(jnp.exp(log_p) * log_p, -1) > entropy
    return reverse + jnp.where(uncertain, forward, 0.0)


def _both_kl(log_q, log_p):
    q, p = jnp.exp(log_q), jnp.exp(log_p)
    return [jnp.sum(kl(log_q, log_p, q, p), -1) for kl in (forward_kl, reverse_kl)]


def _log_mix(weight, x, y):
    """log(weight x + (1-weight) y): mixtures live in probability space."""
    return jnp.log(weight * x + ((1 - weight) * y + TINY))


def _refuse_skew(alpha):
    if not 0 <= alpha < 1:
        raise UserError(f"alpha of a skew divergence is {alpha}: use 0 <= alpha < 1, such as 0.1")


def _head(p_xV, mu):
    """How much each entry belongs to the head of p: 1, 0, or a share where some are equally likely.

    Without sorting, which takes several times as long. The bits of positive floats are ordered like
    the floats, so that bisection over them finds the likeliest entry that no longer fits.
    """
    width = 8 * p_xV.dtype.itemsize
    number = lambda bits: jax.lax.bitcast_convert_type(bits, p_xV.dtype)
    mass = lambda chosen: jnp.sum(jnp.where(chosen, p_xV, 0.0), -1, keepdims=True)
    top = jnp.max(p_xV, -1, keepdims=True)

    def halve(_, ends):
        low, high = ends  # entries from low on have more than mu, from high on no more than mu
        middle = low + (high - low) // 2
        over = mass(p_xV >= number(middle)) > mu
        return jnp.where(over, middle, low), jnp.where(over, high, middle)

    end = jax.lax.bitcast_convert_type(top, jnp.dtype(f"int{width}")) + 1
    edge = number(jax.lax.fori_loop(0, width - 1, halve, (jnp.zeros_like(end), end))[0])
    above, equal = p_xV > edge, p_xV == edge
    fitting = jnp.maximum(jnp.floor((mu - mass(above)) / jnp.maximum(edge, TINY)), edge == top)
    share = jnp.minimum(fitting / jnp.sum(equal, -1, keepdims=True), 1.0)
    return jnp.where(above, 1.0, jnp.where(equal, share, 0.0))


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

    The plain form, which holds all logits of student and teacher: for short inputs and as the
    reference that losses/fused.py is tested against.

    >>> student_2xV, teacher_2xV = jnp.zeros((2, 4)), jnp.array([[0.0, 0, 0, 0], [0, 0, 0, 9]])
    >>> token_divergence("total_variation", student_2xV, teacher_2xV).round(2).tolist()
    [0.0, 0.75]
    """
    log_q = log_probabilities(student_logits_xV, temperature)
    log_p = log_probabilities(teacher_logits_xV, temperature)
    return temperature**2 * divergence(name, log_q, log_p, **parameters)


def divergence(name: str, log_q_xV: Array, log_p_xV: Array, **parameters: float | Array) -> Array:
    """The divergence [x] of log-probabilities; missing parameters have their defaults."""
    phi, row, defaults = DIVERGENCES[name]
    parameters = {**defaults, **parameters}
    if row is not None:
        return row(log_q_xV, log_p_xV, **parameters)
    q_xV, p_xV = jnp.exp(log_q_xV), jnp.exp(log_p_xV)
    return jnp.sum(phi(log_q_xV, log_p_xV, q_xV, p_xV, **parameters), -1)


def check_parameters(name: str, parameters: Mapping[str, float]) -> None:
    """Raises UserError for parameters out of range, without computing anything."""
    pair = jax.ShapeDtypeStruct((2,), jnp.float32)
    jax.eval_shape(lambda z: token_divergence(name, z, z, **parameters), pair)


# A comment says what each parameter is, with its limits as in configs/base.py; --help shows it.
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl),
    "reverse_kl": Divergence(reverse_kl),
    # beta: [0.0001 to 0.9999] weight of the teacher in the mixture; at its ends use forward_kl
    "jsd": Divergence(jsd, parameters={"beta": 0.5}),
    # alpha: [0, or 1e-6 to 0.999] share of the teacher in the mixture
    "skew_forward_kl": Divergence(skew_forward_kl, parameters={"alpha": 0.1}),
    # alpha: [0, or 1e-6 to 0.999] share of the student in the mixture
    "skew_reverse_kl": Divergence(skew_reverse_kl, parameters={"alpha": 0.1}),
    "total_variation": Divergence(total_variation),
    # a: [0, or 0.001 to 10] power of the teacher's probability
    # b: [0, or 0.001 to 10] power of the student's probability
    "alpha_beta": Divergence(alpha_beta, parameters={"a": 0.2, "b": 0.7}),
    # mu: [0 to 0.999999] probability of the teacher's likeliest tokens that are the head
    "adaptive_kl": Divergence(row=adaptive_kl, parameters={"mu": 0.5}),
    # t: [0 to 1] share of the teacher in the target at the first step
    "taid": Divergence(row=taid, parameters={"t": 0.4}),
    # entropy: [0 to 1000] nats per token of the teacher above which the forward KL is added
    "entropy_aware": Divergence(row=entropy_aware, parameters={"entropy": 0.8}),
}
