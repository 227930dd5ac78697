"""Experts on eight devices: the same loss, gradients and texts as on one, and what moves."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.terms import CROSS_ENTROPY, LOAD_BALANCE, Term
from distill_jax.models.binding import bind
from distill_jax.models.family import DEFAULT_SHARDING
from distill_jax.objective import objective
from distill_jax.sharding import batch_sharding, make_mesh, parameter_shardings
from distill_jax.study.flops import program_flops
from tests import tiny
from tests.cli import ROOT, environment

TERMS = (Term(CROSS_ENTROPY, 1.0), Term(LOAD_BALANCE, 0.5))
eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see the last test")
OTHER = {"feed_forward_bias": True, "router_normalised": False}


def model_of(mesh=None, **more):
    config = tiny.model(experts=8, experts_per_token=2, **more).config
    return bind(
        config, param_dtype="float32", compute_dtype="float32", remat="full", mesh=mesh
    )  # fmt: skip


def program(mesh, **more):
    model = model_of(mesh, **more)

    def loss(params, batch):
        return objective(
            params, (), batch, jax.random.key(0), jnp.sum(batch.weight_BT), student=model,
            teach=None, terms=TERMS, block_tokens=16, mesh=mesh,
        )  # fmt: skip

    return jax.jit(jax.value_and_grad(loss, has_aux=True)), tiny.params(model)


def placed(mesh, params, batch):
    shardings = parameter_shardings(params, DEFAULT_SHARDING, mesh)
    return jax.device_put(params, shardings), jax.device_put(batch, batch_sharding(mesh))


@eight
@pytest.mark.parametrize(
    ("sizes", "more"),  # of data, fsdp, tensor, expert and sequence
    [
        ((1, 1, 1, 8), {}),
        ((2, 2, 2, 1), {}),
        ((1, 2, 2, 2), OTHER),
        ((2, 1, 1, 4), OTHER),
        ((1, 1, 1, 4, 2), {}),
        ((1, 1, 2, 2, 2), OTHER),
    ],
)
def test_loss_and_gradients_are_those_of_one_device(sizes, more):
    mesh, batch = make_mesh(*sizes), tiny.batch(rows=8)
    one, params = program(None, **more)
    if more:
        noise = np.random.default_rng(0)
        params = jax.tree.map(lambda x: x + 0.1 * noise.normal(size=x.shape).astype("f"), params)
    (expected, metrics), gradient = one(params, batch)
    (found, others), spread = program(mesh, **more)[0](*placed(mesh, params, batch))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), others, metrics)
    for a, b in zip(jax.tree.leaves(spread), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(jnp.max(jnp.abs(b))))


@eight
@pytest.mark.parametrize("sizes", [(1, 1, 1, 8), (2, 1, 2, 2)])
def test_operations_are_counted_as_on_one_device(sizes):
    (one, params), batch = program(None), tiny.batch(rows=8)
    found = program_flops(program(make_mesh(*sizes))[0], params, batch)
    # Devices along `tensor` compute the router each.
    assert found == pytest.approx(program_flops(one, params, batch), rel=0.03)


@eight
@pytest.mark.parametrize("sizes", [(1, 2, 2, 2), (1, 1, 1, 4, 2)])
def test_rows_and_tokens_that_do_not_divide_are_computed_too(sizes):
    mesh = make_mesh(*sizes)
    params, tokens = tiny.params(model_of()), np.arange(3)[:, None] + 5
    found = []
    for model in (model_of(), model_of(mesh)):
        cache = model.new_cache(3, 4, "float32")
        found.append(model.decode(params, tokens, np.zeros_like(tokens), cache)[0].last_BTD)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


@eight
def test_rows_are_gathered_and_their_sums_scattered_and_no_expert_moves():
    mesh = make_mesh(1, 1, 1, 8)
    one, params = program(mesh)
    text = one.lower(*placed(mesh, params, tiny.batch(rows=8))).compile().as_text()
    gathered = re.findall(r"= \S*?\[([\d,]+)\]\S* all-gather", text)
    sizes = {tuple(map(int, shape.split(","))) for shape in gathered}
    assert (8, 16, 16) in sizes  # [B, T, D]
    experts = 8 * 16 * 24
    assert all(np.prod(size) < experts for size in sizes)


@pytest.mark.skipif(jax.device_count() == 8, reason="runs in the process that it starts")
def test_on_eight_simulated_devices():
    """The tests above in a process of eight devices."""
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0",
        "tests/models/test_experts_mesh.py",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment(8), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\b11 passed", done.stdout)
