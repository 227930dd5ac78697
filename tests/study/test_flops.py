"""Counted operations: of an unrolled program the same, of a known model what arithmetic says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import bind
from distill_jax.objective import live_teacher, objective
from distill_jax.study.flops import matrix_flops, program_flops, steps_for, written
from tests import tiny

WIDTH, BLOCKS, HEADS, KV, HEAD, NEURONS, VOCAB = 128, 3, 4, 2, 32, 352, 512
ROWS, LENGTH = 2, 64


def model(blocks=BLOCKS):
    return bind(
        ModelConfig(
            family="llama", vocab=VOCAB, width=WIDTH, blocks=blocks, heads=HEADS, kv_heads=KV,
            head_width=HEAD, neurons=NEURONS, max_positions=LENGTH, norm_eps=1e-5, rope_theta=1e4,
            activation="silu", tied=True,
        ),
        param_dtype="float32", compute_dtype="float32", remat="none",
    )  # fmt: skip


def step(student, teach, terms):
    """One loss and its gradient, as a training step has them."""

    def run(params, teacher_params, batch):
        of = lambda p: objective(
            p, teacher_params, batch, jax.random.key(0), 1.0,
            student=student, teach=teach, terms=terms, block_tokens=32,
        )[0]  # fmt: skip
        return jax.grad(of)(params)

    return run


def batch():
    return tiny.batch(rows=ROWS, length=LENGTH, vocab=VOCAB)


def matrices():
    """N: what one token meets in the blocks."""
    attention = WIDTH * HEAD * (2 * HEADS + 2 * KV)
    return BLOCKS * (attention + 3 * WIDTH * NEURONS)


def attention():
    """Scores and values of all pairs of positions, multiplications of one pass."""
    return BLOCKS * 2 * ROWS * LENGTH**2 * HEADS * HEAD


def test_a_step_costs_what_arithmetic_says_within_five_percent():
    """2N forward and 4N backward a token, attention and head by the same rule."""
    student = model()
    params, tokens, head = student.abstract(), ROWS * LENGTH, WIDTH * VOCAB
    labels = program_flops(step(student, None, (Term(CROSS_ENTROPY, 1.0),)), params, (), batch())
    once = 2 * tokens * (matrices() + head) + 2 * attention()
    np.testing.assert_allclose(labels, 3 * once, rtol=0.05)
    teach = live_teacher(model())
    taught = program_flops(
        step(student, teach, (Term("forward_kl", 1.0),)), params, (params,), batch()
    )
    np.testing.assert_allclose(taught - labels, once, rtol=0.05)


def test_experts_cost_what_their_tokens_cost():
    """As a half of k times the neurons, and the router; how many experts there are is the same."""

    def cost(**more):
        config = dataclasses.replace(model().config, **more)
        student = bind(config, param_dtype="float32", compute_dtype="float32", remat="none")
        run = step(student, None, (Term(CROSS_ENTROPY, 1.0),))
        return program_flops(run, student.abstract(), (), batch())

    router = 3 * 2 * ROWS * LENGTH * WIDTH * BLOCKS
    wide = cost(neurons=2 * NEURONS)
    assert cost(experts=4, experts_per_token=2) == wide + 4 * router
    assert cost(experts=16, experts_per_token=2) == wide + 16 * router


def test_a_ragged_product_counts_its_rows():
    of = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((10, 4), (3, 4, 6))]
    sizes = jax.ShapeDtypeStruct((3,), "int32")
    product = lambda rows, weight, sizes: jax.lax.ragged_dot(rows, weight, sizes).sum()
    assert program_flops(product, *of, sizes) == 2 * 10 * 4 * 6
    both = jax.grad(product, (0, 1))
    assert program_flops(both, *of, sizes) == 3 * 2 * 10 * 4 * 6


def test_a_scanned_program_counts_as_the_unrolled_one():
    weight_LDD = jnp.ones((5, 8, 8))

    def scanned(x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weight_LDD)[0].sum()

    def unrolled(x):
        for w in weight_LDD:
            x = jnp.tanh(x @ w)
        return x.sum()

    x = jnp.ones((3, 8))
    for run in (lambda f: f, jax.grad, lambda f: jax.grad(jax.checkpoint(f))):
        assert program_flops(run(scanned), x) == program_flops(run(unrolled), x)
    # What the compiler itself says of the scan is one turn of it.
    compiled = jax.jit(scanned).lower(x).compile().cost_analysis()["flops"]
    assert compiled < program_flops(scanned, x) / 2


def test_blocks_add_up():
    """The count of a scanned decoder grows by the same amount a block."""
    counts = []
    for blocks in (1, 2, 7):
        m = model(blocks)
        apply = lambda p, b, m=m: m.apply(p, b.tokens_BT, b.segment_BT, b.position_BT).last_BTD
        counts.append(program_flops(apply, m.abstract(), batch()))
    assert counts[2] - counts[0] == 6 * (counts[1] - counts[0])


def test_a_shard_map_counts_every_device():
    mesh = jax.sharding.AbstractMesh((4,), ("data",))
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(mapped)(jnp.ones((12, 8)))
    assert [equation.primitive.name for equation in jaxpr.eqns] == ["shard_map"]
    assert matrix_flops(jaxpr) == 4 * 2 * 3 * 3 * 8


@pytest.mark.parametrize(("paid", "each", "steps"), [(100, 10, 10), (7, 10, 1), (26, 10, 3)])
def test_the_nearest_number_of_steps(paid, each, steps):
    assert steps_for(paid, each) == steps


@pytest.mark.parametrize(
    ("flops", "text"), [(0, "0 FLOP"), (999, "999 FLOP"), (1000, "1 kFLOP"), (724.4e9, "724 GFLOP")]
)
def test_operations_are_written_with_a_prefix(flops, text):
    assert written(flops) == text


@pytest.mark.parametrize("steps", range(25, 400, 25))
def test_matched_arms_are_within_two_percent(steps):
    kd, sft = 724.4, 426.3
    matched = steps_for(steps * kd, sft)
    assert abs(matched * sft / (steps * kd) - 1) < 0.02
