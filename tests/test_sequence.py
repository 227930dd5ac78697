"""Rows of 1,024 tokens split over devices: loss, gradients and metrics of one device."""

import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from distill_jax.losses.terms import CROSS_ENTROPY, LOAD_BALANCE, Term
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.objective import live_teacher, objective
from distill_jax.sharding import batch_sharding, make_mesh, parameter_shardings
from tests import tiny
from tests.cli import ROOT, environment
from tests.models.conftest import SIZES

T = 1024
SMALL = SIZES | {"num_hidden_layers": 2, "max_position_embeddings": T}
# Attention to all before, in a window with a cap of the scores, and with sinks over experts.
ENTRIES = {
    "llama": {},
    "gemma2": {"sliding_window": 300},
    "gpt_oss": {"sliding_window": 300, "num_local_experts": 4, "num_experts_per_tok": 2},
}
# Sizes of data, fsdp, tensor, expert and sequence.
MESHES = [
    ("llama", (1, 1, 1, 1, 8)),
    ("llama", (2, 2, 1, 1, 2)),
    ("gemma2", (1, 1, 2, 1, 4)),
    ("gpt_oss", (1, 1, 2, 2, 2)),
]
eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see the last test")


def config_of(family):
    raw = transformers.AutoConfig.for_model(family, **{**SMALL, **ENTRIES[family]}).to_dict()
    return FAMILIES[family].from_hf(raw)


def program(family, mesh=None):
    """The loss of a student against a teacher of its family, and random parameters of both."""
    config = config_of(family)
    of = {"param_dtype": "float32", "compute_dtype": "float32", "remat": "full"}
    model = bind(config, mesh=mesh, **of)
    terms = [Term("forward_kl", 0.8, 2.0), Term(CROSS_ENTROPY, 0.2)]
    terms += [Term(LOAD_BALANCE, 0.1)] if config.experts else []

    def loss(params, teacher, batch):
        return objective(
            params, (teacher,), batch, jax.random.key(0), jnp.sum(batch.weight_BT), student=model,
            teach=live_teacher(model), terms=tuple(terms), block_tokens=256, mesh=mesh,
        )  # fmt: skip

    # With the seed 0 one of the tokens lies so near between two experts that one device sends it
    # to the one, and a mesh with products split to the other.
    r = np.random.default_rng(1)
    drawn = [
        jax.tree.map(lambda x: r.normal(0, 0.2, x.shape).astype(np.float32), model.abstract())
        for _ in "st"
    ]
    return jax.jit(jax.value_and_grad(loss, has_aux=True)), *drawn


@eight
@pytest.mark.parametrize(("family", "sizes"), MESHES)
def test_loss_gradients_and_metrics_are_those_of_one_device(family, sizes):
    mesh, batch = make_mesh(*sizes), tiny.batch(rows=4, length=T)
    one, *params = program(family)
    (expected, metrics), gradient = one(*params, batch)
    shardings = parameter_shardings(params[0], FAMILIES[family].sharding, mesh)
    placed = [jax.device_put(x, shardings) for x in params]
    there = jax.device_put(batch, batch_sharding(mesh))
    (found, others), spread = program(family, mesh)[0](*placed, there)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), others, metrics)
    for a, b in zip(*map(jax.tree.leaves, (spread, gradient)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=3e-5 * float(jnp.max(jnp.abs(b))))


@eight
def test_no_device_holds_the_hidden_states_of_a_row():
    mesh, batch = make_mesh(1, 1, 1, 1, 8), tiny.batch(rows=1, length=T)
    run, *params = program("llama", mesh)
    shardings = parameter_shardings(params[0], FAMILIES["llama"].sharding, mesh)
    placed = [jax.device_put(x, shardings) for x in params]
    text = run.lower(*placed, jax.device_put(batch, batch_sharding(mesh))).compile().as_text()
    # Keys and values alone are gathered; they have half as many heads as queries.
    keys = SMALL["num_key_value_heads"] * SMALL["head_dim"]
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for shape in re.findall(r"f32\[([\d,]+)\]\S* all-gather\(", text)
    ]
    assert sizes
    assert max(sizes) <= T * keys
    hidden = SMALL["hidden_size"], SMALL["intermediate_size"]
    assert not [w for w in hidden if w != keys and f"[1,{T},{w}]" in text]


@pytest.mark.skipif(jax.device_count() == 8, reason="runs in the process that it starts")
def test_on_eight_simulated_devices():
    """The tests above, in a process of eight devices."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(8), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(rf"\b{len(MESHES) + 1} passed", done.stdout)
