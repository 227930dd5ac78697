"""Every family on eight devices: the weights, the loss and the gradients of one device."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from distill_jax.models import huggingface, stored, weights
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES
from distill_jax.models.quantise import quantised_params
from distill_jax.models.storage import flatten
from distill_jax.quantised import Bits, is_quantised
from distill_jax.setup.placing import place_params
from distill_jax.sharding import AXES, batch_sharding, make_mesh, parameter_shardings
from tests import tiny
from tests.cli import ROOT, environment
from tests.models.conftest import CASES, FIRST, SIZES

eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices: see the last test")


def config_of(name):
    family, entries = CASES[name]
    raw = transformers.AutoConfig.for_model(family, **{**SIZES, **entries}).to_dict()
    return FAMILIES[family].from_hf(raw)


SPLIT = [name for name in FIRST if "expert" in AXES or not config_of(name).experts]


NARROW = [name for name in SPLIT if name.split("-")[0] in ("llama", "mixtral")]


def made_of(config, mesh=None, bits=None):
    of = {"param_dtype": "float32", "compute_dtype": "float32", "remat": "none"}
    return bind(config, mesh=mesh, bits=bits, **of)


def made(name, mesh=None):
    """The bound model of a case, and parameters of which none is trivial."""
    model = made_of(config_of(name), mesh)
    r = np.random.default_rng(0)
    draw = lambda leaf: r.normal(0.0, 0.3, leaf.shape).astype(np.float32)
    return model, jax.tree.map(draw, model.abstract())


@eight
@pytest.mark.parametrize("name", SPLIT)
def test_gradients_are_those_of_one_device(name):
    model, params = made(name)
    batch = tiny.batch(rows=8, vocab=model.config.vocab)

    def loss(model, params, tokens_BT, segment_BT, position_BT):
        hidden = model.apply(params, tokens_BT, segment_BT, position_BT)
        return jnp.mean((hidden.last_BTD @ model.unembed(params).weight_DV) ** 2)

    run = jax.jit(jax.value_and_grad(loss, 1), static_argnums=0)
    of = (batch.tokens_BT, batch.segment_BT, batch.position_BT)
    mesh = make_mesh(2, 2, 2)
    rules = FAMILIES[model.config.family].sharding
    shardings = parameter_shardings(params, rules, mesh)
    split = {
        path
        for path, sharding in flatten(shardings).items()
        if any(axis == "tensor" for axis in sharding.spec)
    }
    placed = jax.device_put(params, shardings)
    with jax.default_device(jax.devices()[0]):
        wanted = run(model, params, *of)
    found = run(made(name, mesh)[0], placed, *jax.device_put(of, batch_sharding(mesh)))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
    found, wanted = flatten(found[1]), flatten(wanted[1])
    largest = max(np.abs(leaf).max() for leaf in wanted.values())
    for path, leaf in found.items():
        # Where it is 0 but for rounding, as of a key's bias without rotary positions.
        scale = max(np.abs(wanted[path]).max(), 1e-3 * largest)
        np.testing.assert_allclose(leaf, wanted[path], rtol=0, atol=1e-5 * scale, err_msg=path)
    # A bias goes with the outputs of its matrix.
    for path in flatten(params):
        matrix = path.removesuffix("_bias")
        if matrix != path and matrix in split:
            outputs = flatten(shardings)[matrix].spec[-1]
            assert tuple(flatten(shardings)[path].spec)[-1:] in {(outputs,), (None,), ()}, path


@eight
@pytest.mark.parametrize("case", SPLIT, indirect=True)
def test_files_are_placed_part_by_part(case, checkpoint, monkeypatch):
    """Each device has its part of what is in the files, and none of it was read twice."""
    read = huggingface.read(case.directory, dtype="float32")
    counted, into = [], stored._read_into
    monkeypatch.setattr(stored, "RUN", 1)
    monkeypatch.setattr(
        stored, "_read_into", lambda row, *of: counted.append(row.nbytes) or into(row, *of)
    )
    model, mesh = made_of(read.config), make_mesh(2, 2, 2)
    told = []
    placed = place_params(model, read.params, mesh, AXES, lambda *how_far: told.append(how_far))
    rules = FAMILIES[read.config.family].sharding
    shardings = flatten(parameter_shardings(model.abstract(), rules, mesh))
    for path, leaf in flatten(placed).items():
        np.testing.assert_array_equal(leaf, flatten(checkpoint.params)[path], err_msg=path)
        assert leaf.sharding == shardings[path], path
    assert sum(counted) >= sum(leaf.nbytes for leaf in flatten(placed).values())
    pieces = [p for leaf in flatten(read.params).values() for p in leaf.pieces]
    fused = any(piece.rows is not None for piece in pieces)
    assert fused or sum(counted) == sum(leaf.nbytes for leaf in flatten(placed).values())
    assert told[-1] == ("weights", len(pieces), len(pieces))
    assert len(told) == len(pieces)


@eight
@pytest.mark.parametrize("case", NARROW, indirect=True)
def test_files_are_quantised_a_block_at_a_time(case, checkpoint, monkeypatch):
    read = huggingface.read(case.directory, dtype="float32")
    bits = Bits("int4", 8)
    model, mesh = made_of(read.config, bits=bits), make_mesh(2, 2, 2)
    sizes, of = [], weights.Parameter.read
    count = lambda self, *rest: sizes.append(self.shape) or of(self, *rest)
    monkeypatch.setattr(weights.Parameter, "read", count)
    told = []
    placed = place_params(model, read.params, mesh, AXES, lambda *how_far: told.append(how_far))
    wanted = flatten(quantised_params(checkpoint.params, bits))
    rules = FAMILIES[read.config.family].sharding
    shardings = flatten(parameter_shardings(model.abstract(), rules, mesh))
    for path, leaf in flatten(placed).items():
        jax.tree.map(np.testing.assert_array_equal, leaf, wanted[path])
        jax.tree.map(
            lambda x, s, path=path: x.sharding == s or pytest.fail(path), leaf, shardings[path]
        )
    blocks = jax.tree.leaves(model.abstract()["blocks"], is_leaf=is_quantised)
    assert sum(shape[0] == 1 for shape in sizes) == 3 * sum(map(is_quantised, blocks))
    pieces = sum(len(leaf.pieces) for leaf in flatten(read.params).values())
    assert told[-1] == ("weights", pieces, pieces)


@pytest.mark.skipif(jax.device_count() == 8, reason="runs in the process that it starts")
def test_on_eight_simulated_devices():
    """The tests above, in a process of eight devices."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment(8), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) == 2 * len(SPLIT) + len(NARROW)
