"""Experts: the sum over chosen ones, dropless, without an array of every token and expert."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax.models.experts import Experts
from distill_jax.models.grouped import MOST, grouped_product
from tests import tiny

SIZES = {"width": 12, "experts": 5, "experts_per_token": 2}


def half(seed=0, **more):
    """A half of random parameters, and its config."""
    config = dataclasses.replace(tiny.model().config, **{**SIZES, **more})
    experts = Experts(config, jnp.float32, jax.random.key(seed))
    graph, state = nnx.split(experts)
    r = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape), x.dtype), state)
    return graph, state, config


def plainly(state, config, x_BTD):
    """The sum over all experts, each of every token, weighted by 0 where it is not chosen."""
    p = {name: np.asarray(leaf, np.float64) for name, leaf in nnx.to_pure_dict(state).items()}
    h = np.asarray(x_BTD, np.float64)
    h = h / np.sqrt(np.mean(h * h, -1, keepdims=True) + config.norm_eps) * p["norm"]
    logits = h @ p["router"] + p.get("router_bias", 0)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    odds /= odds.sum(-1, keepdims=True)
    lowest = np.sort(odds, -1)[..., -config.experts_per_token, None]
    weight = np.where(odds >= lowest, odds, 0)
    if config.router_normalised:
        weight /= weight.sum(-1, keepdims=True)
    bias = lambda name, e: p[name][e] if name in p else 0
    total = 0
    for e in range(config.experts):
        gate = h @ p["expert_gate"][e] + bias("expert_gate_bias", e)
        up = h @ p["expert_up"][e] + bias("expert_up_bias", e)
        active = gate / (1 + np.exp(-gate)) * up
        out = active @ p["expert_down"][e] + bias("expert_down_bias", e)
        total = total + weight[..., e, None] * out
    return total, weight > 0, odds


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_a_token_gets_the_weighted_sum_of_its_experts(biased, normalised):
    graph, state, config = half(router_normalised=normalised, feed_forward_bias=biased)
    x_BTD = np.random.default_rng(1).normal(size=(3, 7, 12)).astype(np.float32)
    counted_BT = np.arange(21).reshape(3, 7) % 4 > 0
    y_BTD, routing = nnx.merge(graph, state).routed(x_BTD, counted_BT)
    wanted, chosen, odds = plainly(state, config, x_BTD)
    np.testing.assert_allclose(y_BTD, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(routing.chosen_LE, chosen[counted_BT].sum(0))
    np.testing.assert_allclose(routing.probability_LE, odds[counted_BT].sum(0), rtol=1e-5)
    assert routing.tokens_L == counted_BT.sum()


@pytest.mark.parametrize("sizes", [[3, 0, 9, 1], [0, 0, 0, 13], [300, 5, 130, 0]])
def test_rows_are_multiplied_by_the_matrix_of_their_group(sizes):
    r = np.random.default_rng(0)
    rows, weight = r.normal(size=(sum(sizes), 6)), r.normal(size=(4, 6, 7))
    group = np.repeat(np.arange(4), sizes)
    cotangent = r.normal(size=(sum(sizes), 7))

    def total(product):
        return lambda rows, weight: jnp.sum(product(rows, weight) * cotangent)

    ours = lambda rows, weight: grouped_product(rows, weight, jnp.asarray(sizes))
    plain = lambda rows, weight: jnp.einsum("xd,xdf->xf", rows, weight[group])
    of = jnp.asarray(rows, jnp.float32), jnp.asarray(weight, jnp.float32)
    np.testing.assert_allclose(ours(*of), plain(*of), rtol=1e-4, atol=1e-5)
    gradients = (jax.grad(total(product), (0, 1))(*of) for product in (ours, plain))
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        ours(*of), jax.lax.ragged_dot(*of, jnp.asarray(sizes)), rtol=1e-4, atol=1e-5
    )


def test_rows_beyond_the_groups_give_no_gradient():
    rows, weight = jnp.ones((MOST + 9, 3)), jnp.ones((2, 3, 4))
    sizes = jnp.array([5, 2])
    loss = lambda rows, weight: jnp.sum(grouped_product(rows, weight, sizes)[:7])
    of_rows, of_weight = jax.grad(loss, (0, 1))(rows, weight)
    assert not of_rows[7:].any()
    assert of_rows[:7].all()
    np.testing.assert_array_equal(of_weight[:, 0, 0], [5, 2])


def test_gradients_agree_with_finite_differences():
    graph, state, config = half(feed_forward_bias=True)
    r = np.random.default_rng(2)
    x_BTD, cotangent = r.normal(size=(2, 2, 5, 12)).astype(np.float32)

    def loss(state):
        return jnp.sum(nnx.merge(graph, state)(x_BTD) * cotangent)

    gradient = jax.grad(loss)(state)
    direction = jax.tree.map(lambda x: jnp.asarray(r.normal(size=x.shape), x.dtype), state)
    wide = lambda p, d, step: np.asarray(p, np.float64) + step * np.asarray(d, np.float64)
    moved = lambda step: np.sum(
        plainly(jax.tree.map(partial(wide, step=step), state, direction), config, x_BTD)[0]
        * cotangent
    )
    wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5
    found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, direction)))
    np.testing.assert_allclose(found, wanted, rtol=2e-3)


def test_no_array_has_every_token_of_every_expert():
    """Of 3 * 331 tokens, 8 experts, width 12 and 24 neurons; 2 copies of a token."""
    graph, state, _ = half(experts=8)
    x_BTD = jnp.ones((3, 331, 12))
    run = lambda state, x: jnp.sum(nnx.merge(graph, state)(x))
    step = jax.jit(jax.value_and_grad(run, (0, 1)))
    shapes = re.findall(r"\b\w+\[([\d,]+)\]", step.lower(state, x_BTD).compile().as_text())
    sizes = {tuple(map(int, shape.split(","))) for shape in shapes}
    assert (8, 12, 24) in sizes  # the experts themselves
    assert max(map(np.prod, sizes)) < 3 * 331 * 8 * 12
