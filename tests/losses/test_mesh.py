"""What the fused loss does on eight devices: what moves between them, and what is never made."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import CROSS_ENTROPY, Term
from distill_jax.sharding import batch_sharding, batch_ways, make_mesh
from distill_jax.types import Projected, Unembed
from tests.cli import ROOT, environment

B, T, D, V = 8, 64, 16, 512
TERMS = (Term("forward_kl", 0.9), Term(CROSS_ENTROPY, 0.1))
eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see the last test")
meshes = pytest.mark.parametrize(
    "sizes",  # of data, fsdp, tensor, expert and sequence
    [(8, 1, 1), (2, 4, 1), (1, 2, 4), (1, 1, 8), (2, 1, 2, 2), (1, 1, 1, 2, 4), (1, 2, 2, 1, 2)],
)
COLLECTIVE = re.compile(
    r"= (?P<shape>[^=]*?) (?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)"
    r"(?:-start)?\("
)


def arguments():
    r = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(r.normal(size=shape), jnp.float32)
    labels = jnp.asarray(r.integers(0, V, (B, T)))
    return normal(B, T, D), normal(D, V), normal(B, T, D), normal(D, V), labels


def program(mesh, block_tokens):
    def loss(hidden, weight, teacher_hidden, teacher_weight, labels):
        return linear_divergence(
            hidden, Unembed(weight), Projected(teacher_hidden, Unembed(teacher_weight)), labels,
            jnp.ones((B, T)), terms=TERMS, block_tokens=block_tokens, mesh=mesh,
        )[0]  # fmt: skip

    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def placed(mesh):
    rows = batch_sharding(mesh)
    head = NamedSharding(mesh, PartitionSpec(("fsdp", "sequence"), "tensor"))
    return [
        jax.device_put(x, s) for x, s in zip(arguments(), [*[rows, head] * 2, rows], strict=True)
    ]


def compiled(mesh, block_tokens):
    return program(mesh, block_tokens).lower(*placed(mesh)).compile().as_text()


def elements(shape):
    """Numbers in all arrays of an HLO type such as (f32[2,3]{1,0}, f32[])."""
    found = re.findall(r"\w+\[([\d,]*)\]", shape)
    return sum(int(np.prod([int(x) for x in dims.split(",") if x])) for dims in found)


def moved(text):
    """Elements that collectives move in one turn of the loop over blocks, and the turns."""
    body = re.search(r"while\(.*?body=%?([\w.\-]+)", text)[1]
    start = re.search(rf"^%?{re.escape(body)} \(", text, re.M).start()
    inside = text[start : text.index("\n}", start)]
    turns = int(re.search(r'known_trip_count":\{"n":"(\d+)"', text)[1])
    return turns, sum(elements(m["shape"]) for m in COLLECTIVE.finditer(inside))


@eight
@meshes
def test_the_number_of_blocks_does_not_change_what_moves(sizes):
    mesh = make_mesh(*sizes)
    rows, parts = B // batch_ways(mesh), mesh.shape["sequence"]
    few, many = (moved(compiled(mesh, rows * length // parts)) for length in (32, 4))
    assert (few[0], many[0]) == (2, 16)
    assert few[0] * few[1] == many[0] * many[1]
    # Not one gradient of the head, even in part: only sums a token.
    assert many[1] < D * V / 8


@eight
@meshes
def test_no_device_ever_holds_all_logits(sizes):
    mesh = make_mesh(*sizes)
    text = compiled(mesh, 4 * B // batch_ways(mesh) // mesh.shape["sequence"])
    sizes_made = [elements(shape) for shape in re.findall(r"= (\w+\[[\d,]*\])", text)]
    assert max(sizes_made) < B * T * V / 8


@eight
@meshes
def test_gradients_are_those_of_one_device(sizes):
    mesh = make_mesh(*sizes)
    expected = program(None, 64)(*arguments())
    found = program(mesh, 64)(*placed(mesh))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b))))


@pytest.mark.skipif(jax.device_count() == 8, reason="runs in the process that it starts")
def test_on_eight_simulated_devices():
    """The tests above and every combination of test_targets.py, in a process of eight devices."""
    files = ["tests/losses/test_mesh.py", "tests/losses/test_targets.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment(8), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 13
