"""The balance of experts, against the function of transformers, and in the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from distill_jax.losses.load_balance import busiest_share, load_balance
from distill_jax.losses.terms import CROSS_ENTROPY, LOAD_BALANCE, Term
from distill_jax.objective import objective
from distill_jax.types import Routing
from tests import tiny

K = 2


def routing_of(logits_LxE, counted_x):
    """What routers of these logits do, plainly."""
    odds = np.exp(logits_LxE) / np.exp(logits_LxE).sum(-1, keepdims=True)
    chosen = odds >= np.sort(odds, -1)[..., -K, None]
    total = lambda x: jnp.asarray((x * counted_x[:, None]).sum(1), jnp.float32)
    return Routing(total(chosen), total(odds), jnp.full(len(odds), counted_x.sum(), jnp.float32))


@pytest.mark.parametrize("padding", [False, True])
def test_the_balance_is_that_of_transformers(padding):
    r = np.random.default_rng(0)
    logits_LxE = r.normal(size=(3, 40, 5)).astype(np.float32)
    counted_x = (np.arange(40) % 4 > 0) if padding else np.ones(40, bool)
    mask = torch.tensor(counted_x[None].astype(np.float32)) if padding else None
    wanted = load_balancing_loss_func(tuple(map(torch.tensor, logits_LxE)), 5, K, mask)
    np.testing.assert_allclose(load_balance(routing_of(logits_LxE, counted_x)), wanted, rtol=1e-5)


def test_a_model_reports_the_balance_of_its_routers_without_padding(by_experts):
    model, params, batch, _ = by_experts
    routing = model.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT).routing
    np.testing.assert_array_equal(routing.tokens_L, [(batch.segment_BT > 0).sum()] * 2)
    np.testing.assert_array_equal(routing.chosen_LE.sum(1), K * routing.tokens_L)
    np.testing.assert_allclose(routing.probability_LE.sum(1), routing.tokens_L, rtol=1e-5)


def test_the_busiest_expert_is_that_of_the_worst_block():
    chosen = jnp.array([[2.0, 2, 2, 2], [1, 6, 1, 0]])
    assert float(busiest_share(Routing(chosen, chosen, jnp.array([4.0, 4])))) == 0.75


@pytest.fixture(scope="module")
def by_experts():
    model = tiny.model(experts=4, experts_per_token=K)
    batch = tiny.batch()
    n_tokens = jnp.sum(batch.weight_BT)

    def loss(params, weight, batch=batch):
        terms = (Term(CROSS_ENTROPY, 1.0), Term(LOAD_BALANCE, weight))
        return objective(
            params, (), batch, jax.random.key(0), n_tokens, student=model, teach=None, terms=terms,
            block_tokens=16,
        )  # fmt: skip

    return model, tiny.params(model), batch, loss


def test_the_term_adds_its_weight_times_the_balance(by_experts):
    _, params, batch, loss = by_experts
    (without, _), (with_it, metrics) = loss(params, 0.0), loss(params, 0.5)
    balance = metrics["load_balance"].total / metrics["load_balance"].count
    np.testing.assert_allclose(with_it - without, 0.5 * balance, rtol=1e-4)
    assert metrics["load_balance"].count == metrics["nll"].count == batch.weight_BT.sum()
    assert 1 / 4 <= metrics["busiest_expert"].total / metrics["busiest_expert"].count <= 1


def test_descending_the_term_evens_the_load(by_experts):
    _, params, _, loss = by_experts
    balance = lambda params: loss(params, 1.0)[0] - loss(params, 0.0)[0]
    gradient = jax.jit(jax.grad(balance))
    first = balance(params)
    moved = params
    for _ in range(30):
        moved = jax.tree.map(lambda p, g: p - 0.3 * g, moved, gradient(moved))
    assert K <= balance(moved) + 1e-3 < first
