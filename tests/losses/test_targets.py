"""Every divergence, every kind of targets, any shape, mesh and dtype, against one naive oracle.

The oracle holds all logits of both sides in float64 and differentiates them as JAX does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax.losses.divergences import DIVERGENCES, FLOOR, divergence, log_probabilities
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.sparse import POLICIES
from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.sharding import make_mesh
from distill_jax.types import Mixture, Projected, Sampled, TopK, Unembed, UserError
from tests.losses.test_divergences import PARAMETERS

K = 5
KINDS = ("projected", "int8", "probability", "logits", "sampled", *POLICIES)
# Sizes of data, fsdp, tensor, expert and sequence.
MESHES = ((1, 1, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2), (1, 1, 8), (2, 1, 2, 2), (1, 2, 2, 1, 2))
B = 8


def parameters(name):
    return dict(DIVERGENCES[name].parameters) | PARAMETERS.get(name, {})


def draw_problem(seed, kind, length, vocab, teacher_vocab, bias, softcap, scale, dtype):
    """Student, targets of a kind and what the oracle needs to know of them, in one dtype."""
    r = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(r.normal(size=shape), dtype)
    width = 8
    head = Unembed(normal(width, vocab), normal(vocab) if bias else None, softcap, scale)
    weight = r.choice([0.0, 1.0, 0.25, 3.0], size=(B, length))
    labels = jnp.asarray(r.integers(0, min(vocab, teacher_vocab), size=(B, length)))
    student = normal(B, length, width), head, labels, jnp.asarray(weight, dtype)
    teacher = lambda d: Projected(normal(B, length, d), Unembed(normal(d, teacher_vocab)))
    if kind in ("probability", "logits"):
        return student, Mixture((teacher(6), teacher(10)), (0.3, 0.7), kind)
    if kind == "int8":
        units = jnp.asarray(r.integers(-127, 128, size=(B, length, 12)), jnp.int8)
        unembed = Unembed(normal(12, teacher_vocab))
        return student, Projected(units, unembed, jnp.abs(normal(B, length)) / 127)
    if kind == "projected":
        return student, teacher(12)
    ids = np.stack([r.permutation(teacher_vocab)[:K] for _ in range(B * length)])
    ids = np.where(r.random(ids.shape) < 0.2, -1, ids).reshape(B, length, K)
    ids[..., 0] = np.maximum(ids[..., 0], 0) % min(vocab, teacher_vocab)
    ids[..., 1:][ids[..., 1:] == ids[..., :1]] = -1
    ids = jnp.asarray(ids, jnp.int32)
    if kind == "sampled":
        counts = np.where(ids >= 0, r.integers(1, 9, ids.shape), 0)
        share = counts / counts.sum(-1, keepdims=True)
        return student, Sampled(ids, jnp.asarray(share, dtype), teacher_vocab)
    rest = normal(B, length, 2)
    return student, TopK(ids, normal(B, length, K), rest, (1.0, 2.0), kind, teacher_vocab)


def dense_logits(hidden, head):
    z = hidden @ head.weight_DV
    z = (z if head.bias_V is None else z + head.bias_V) * head.scale
    return z if head.softcap is None else head.softcap * jnp.tanh(z / head.softcap)


def widened(tree):
    wide = lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(lambda x: wide(x) if isinstance(x, jax.Array) else x, tree)


def compare(name, log_q, log_p):
    return divergence(name, log_q, log_p, **parameters(name))


def oracle_token(name, z, targets, temperature):
    """The divergence [B, T] of full log-probabilities, or of symbols written out one by one."""
    if isinstance(targets, Projected | Mixture):
        each = targets.teachers if isinstance(targets, Mixture) else (targets,)
        logits = []
        for one in each:
            scale = 1.0 if one.scale_BT is None else one.scale_BT[..., None]
            logits.append(dense_logits(one.hidden_BTD.astype(jnp.float64) * scale, one.unembed))
        shared = min(z.shape[-1], *(x.shape[-1] for x in logits))
        logits = [x[..., :shared] for x in logits]
        log_p = log_probabilities(logits[0], temperature)
        if isinstance(targets, Mixture) and targets.space == "logits":
            mixed = sum(w * x for w, x in zip(targets.weights, logits, strict=True))
            log_p = log_probabilities(mixed, temperature)
        elif isinstance(targets, Mixture):
            parts = zip(targets.weights, logits, strict=True)
            log_p = jnp.log(sum(w * jnp.exp(log_probabilities(x, temperature)) for w, x in parts))
        return compare(name, log_probabilities(z[..., :shared], temperature), log_p)
    shared = min(z.shape[-1], targets.vocab)
    log_q = log_probabilities(z[..., :shared], temperature)
    known_BTKV = targets.ids_BTE[..., None] == jnp.arange(shared)
    kept = known_BTKV.any(-1)
    if isinstance(targets, Sampled):
        share = jnp.where(kept, targets.probability_BTE, 0.0)
        share /= share.sum(-1, keepdims=True)
        log_p = jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1.0)), FLOOR)
    else:
        scaled = jnp.where(kept, targets.logits_BTE / temperature, -jnp.inf)
        total = jax.nn.logsumexp(scaled, -1, keepdims=True)
        if targets.policy != "renormalise":
            rest = targets.rest_BTM[..., int(temperature) - 1][..., None]
            total = jnp.logaddexp(total, rest)
        log_p = jnp.maximum(scaled - total, FLOOR)
    if isinstance(targets, Sampled) or targets.policy == "renormalise":
        # The whole vocabulary, with the teacher's zeros written out.
        dense = jnp.max(jnp.where(known_BTKV, log_p[..., None], FLOOR), -2)
        return compare(name, log_q, dense)
    at = jnp.where(kept, jnp.einsum("btkv,btv->btk", known_BTKV.astype(jnp.float64), log_q), FLOOR)
    if targets.policy == "tail_bucket":
        others = jnp.where(known_BTKV.any(-2), -jnp.inf, log_q)
        at = jnp.concatenate([at, jax.nn.logsumexp(others, -1, keepdims=True)], -1)
        log_p = jnp.concatenate([log_p, rest - total], -1)
    return compare(name, at, log_p)


def oracle(student, targets, name, temperature, share):
    hidden, head, labels, weight = student
    z = dense_logits(hidden, head)
    shared = z.shape[-1]
    sizes = [t.unembed.weight_DV.shape[1] for t in getattr(targets, "teachers", ())]
    sizes += [targets.unembed.weight_DV.shape[1]] if isinstance(targets, Projected) else []
    sizes += [targets.vocab] if isinstance(targets, TopK | Sampled) else []
    shared = min(shared, *sizes)
    nll = -jnp.take_along_axis(log_probabilities(z[..., :shared]), labels[..., None], -1)[..., 0]
    value = temperature**2 * oracle_token(name, z, targets, temperature)
    return jnp.sum(weight * ((1 - share) * value + share * nll))


def infinite(name, kind):
    """Divergences that need teacher probability everywhere, on targets that have none."""
    zeros = kind in ("sampled", "renormalise")
    log_q, log_p = jnp.log(jnp.array([0.5, 0.5])), jnp.array([0.0, FLOOR])
    return zeros and float(compare(name, log_q, log_p)) > 1e20


def mesh_of(sizes):
    if int(np.prod(sizes)) == 1:
        return None
    return make_mesh(*sizes)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(sorted(DIVERGENCES)),
    kind=st.sampled_from(KINDS),
    sizes=st.sampled_from(MESHES),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2**31),
    length=st.integers(1, 7),
    vocab=st.integers(9, 20),
    extra=st.integers(-3, 3),
    bias=st.booleans(),
    softcap=st.sampled_from([None, 4.0]),
    scale=st.sampled_from([1.0, 0.5]),
    temperature=st.sampled_from([1.0, 2.0]),
    share=st.sampled_from([0.0, 0.3]),
    block_tokens=st.sampled_from([1, 16, 1000]),
)
def test_every_combination_equals_the_naive_form_in_float64(
    name, kind, sizes, dtype, seed, length, vocab, extra, bias, softcap, scale, temperature, share,
    block_tokens,
):  # fmt: skip
    if kind == "sampled":
        temperature = 1.0
    length *= dict(enumerate(sizes)).get(4, 1)  # which the axis sequence divides
    if len(jax.devices()) < int(np.prod(sizes)):
        sizes = (1, 1, 1)
    terms = [Term(name, 1 - share, temperature, tuple(parameters(name).items()))]
    terms += [Term(CROSS_ENTROPY, share)] if share else []
    with jax.enable_x64(True):
        student, targets = draw_problem(
            seed, kind, length, vocab, vocab + extra, bias, softcap, scale, dtype
        )
        hidden, head, labels, weight = student
        wanted = (0, 1) if head.bias_V is None else (0, 1, 2)

        @jax.jit
        def fused(hidden, weight_DV, bias_V):
            changed = head._replace(weight_DV=weight_DV, bias_V=bias_V)
            return linear_divergence(
                hidden, changed, targets, labels, weight,
                terms=tuple(terms), block_tokens=block_tokens, mesh=mesh_of(sizes),
            )[0]  # fmt: skip

        def naive(hidden, weight_DV, bias_V):
            changed = head._replace(weight_DV=weight_DV, bias_V=bias_V)
            wide = widened((hidden, changed, labels, weight))
            return oracle(wide, widened(targets), name, temperature, share)

        arguments = hidden, head.weight_DV, head.bias_V
        if infinite(name, kind):
            with pytest.raises(UserError, match="infinite"):
                fused(*arguments)
            return
        got = jax.value_and_grad(fused, wanted)(*arguments)
        expected = jax.jit(jax.value_and_grad(naive, wanted))(*widened(arguments))
        tolerance = 1e-5 if dtype == "float32" else 1e-10
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            size = max(1.0, float(jnp.max(jnp.abs(b))))
            np.testing.assert_allclose(a / size, b / size, rtol=0, atol=2 * tolerance)
