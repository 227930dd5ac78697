"""Where parameters lie in files: fused, in turns, over blocks and experts; there and back."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill_jax.models import huggingface, storage
from distill_jax.models.families import FAMILIES
from distill_jax.models.family import DEFAULT_WEIGHTS, Weight
from distill_jax.models.storage import Place, flatten, gatherer, join, outputs_of, places
from distill_jax.models.weights import fingerprint
from distill_jax.types import UserError
from tests import tiny

OF = {"hf": lambda weight: weight.hf, "gguf": lambda weight: weight.gguf}


def files(directory):
    """All arrays of a directory by stored name."""
    return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}


def write(directory, checkpoint, max_shard_bytes=1 << 30):
    of = (directory, checkpoint.config, checkpoint.params)
    huggingface.write(*of, generation={}, dtype=None, max_shard_bytes=max_shard_bytes)
    return directory


def split(place, stored):
    """The parts of the place's parameters, [.., in, out], from an array of its shape."""
    for number in range(len(place.paths)):
        axis, rows = outputs_of(place, number)
        part = stored if rows is None else stored.take(rows, axis)
        yield part.swapaxes(-1, -2) if place.transpose else part


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name], err_msg=name, strict=True)


@pytest.mark.parametrize("shard", [20_000, 1 << 30])
def test_every_family_writes_what_transformers_wrote(case, checkpoint, shard, tmp_path):
    same(files(write(tmp_path, checkpoint, shard)), files(case.directory))
    again = huggingface.read(tmp_path, dtype=None).whole()
    assert fingerprint(again.params) == fingerprint(checkpoint.params)


@pytest.mark.parametrize("kind", OF)
def test_every_parameter_lies_in_files_once(checkpoint, kind):
    flat, back = flatten(checkpoint.params), {}
    gather = gatherer(flat)
    for place in places(checkpoint.config, OF[kind]).values():
        stored = gather(place, np.float32)
        assert stored.shape == place.shape
        for path, part in zip(place.paths, split(place, stored), strict=True):
            back.setdefault(path, np.full_like(flat[path], np.nan))[place.index or ...] = part
    same(back, flat)


FUSED = {
    "rows": lambda hf: Weight(hf, "", transpose=True),
    "columns": lambda hf: Weight(hf, ""),
    "in turns": lambda hf: Weight(hf, "", transpose=True, groups=lambda config: config.kv_heads),
}


@pytest.fixture
def fused(request, monkeypatch):
    """A model whose query, key and value are one stored array."""
    weight = FUSED[request.param]
    names = {
        f"blocks/attention/{part}": weight("layers.{block}.qkv.weight")
        for part in ("query", "key", "value")
    }
    family = FAMILIES["llama"]._replace(weights={**DEFAULT_WEIGHTS, **names})
    monkeypatch.setitem(FAMILIES, "llama", family)
    model = tiny.model()
    params = jax.tree.map(np.asarray, tiny.params(model))
    return huggingface.Checkpoint(model.config, params, None)


@pytest.mark.parametrize("fused", FUSED, indirect=True)
def test_fused_parameters_come_back_bit_equal(fused, tmp_path):
    write(tmp_path, fused, max_shard_bytes=5_000)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = huggingface.read(tmp_path, dtype=None).whole()
    assert fingerprint(again.params) == fingerprint(fused.params)


@pytest.mark.parametrize("fused", FUSED, indirect=True)
def test_where_fused_parameters_lie(request, fused, tmp_path):
    stored = files(write(tmp_path, fused))["layers.1.qkv.weight"]
    query, key, value = (
        flatten(fused.params)[f"blocks/attention/{part}"][1] for part in ("query", "key", "value")
    )
    heads = lambda part: np.split(part.T, 2)  # of a group of queries, or of one key
    wanted = {
        "rows": lambda: np.concatenate([query.T, key.T, value.T]),
        "columns": lambda: np.concatenate([query, key, value], axis=1),
        "in turns": lambda: np.concatenate(
            [rows for turn in zip(*map(heads, (query, key, value)), strict=True) for rows in turn]
        ),
    }[request.node.callspec.params["fused"]]()
    np.testing.assert_array_equal(stored, wanted)


@pytest.mark.parametrize("fused", ["rows"], indirect=True)
def test_a_fused_weight_of_another_shape_is_named(fused, tmp_path):
    arrays = files(write(tmp_path, fused))
    arrays["layers.1.qkv.weight"] = arrays["layers.1.qkv.weight"][:-1]
    save_file(arrays, tmp_path / "model.safetensors")
    message = r"layers\.1\.qkv\.weight has shape \[63, 16\] where the config gives \[64, 16\]"
    with pytest.raises(UserError, match=message):
        huggingface.read(tmp_path, dtype=None)


def test_experts_lie_one_by_one_or_all_in_one_array(monkeypatch):
    """Gate and up of 3 experts in 2 blocks, [L, E, D, F], the second column by column in turns."""
    r = np.random.default_rng(0)
    flat = {
        "blocks/experts/gate": r.normal(size=(2, 3, 4, 5)),
        "blocks/experts/up": r.normal(size=(2, 3, 4, 5)),
        "blocks/experts/down": r.normal(size=(2, 3, 5, 4)),
    }
    turns = lambda config: 5
    weights = {
        "blocks/experts/up": Weight("{block}.up_gate", "", groups=turns),
        "blocks/experts/gate": Weight("{block}.up_gate", "", groups=turns),
        "blocks/experts/down": Weight("{block}.{expert}.down", "", transpose=True),
    }
    family = FAMILIES["llama"]._replace(weights=weights)
    monkeypatch.setitem(FAMILIES, "llama", family)
    held = {path: (weights[path], array.shape) for path, array in flat.items()}
    monkeypatch.setattr(storage, "layout", lambda config: held)
    found = places(tiny.model().config, OF["hf"])
    assert len(found) == 2 + 6
    gather = gatherer(flat)
    both = gather(found["1.up_gate"], np.float64)
    np.testing.assert_array_equal(both[:, :, 0::2], flat["blocks/experts/up"][1])
    np.testing.assert_array_equal(both[:, :, 1::2], flat["blocks/experts/gate"][1])
    down = gather(found["1.2.down"], np.float64)
    np.testing.assert_array_equal(down, flat["blocks/experts/down"][1, 2].T)
    for place in found.values():
        stored = gather(place, np.float64)
        np.testing.assert_array_equal(join(place, list(split(place, stored))), stored)


def test_a_joined_array_is_contiguous():
    place = Place(("a", "b"), (0,), (6, 3), (2, 4), 1, True)
    stored = np.arange(18.0).reshape(6, 3)
    joined = join(place, list(split(place, stored)))
    np.testing.assert_array_equal(joined, stored)
    assert joined.flags.c_contiguous


class Counted:
    """An array that counts how often its blocks are fetched from the devices."""

    def __init__(self, array):
        self.array, self.fetched = array, []

    def __getitem__(self, index):
        self.fetched.append(index)
        return self.array[index]


def test_a_block_of_experts_leaves_the_devices_once():
    r = np.random.default_rng(0)
    flat = {name: Counted(r.normal(size=(2, 3, 4, 5))) for name in ("gate", "up", "down")}
    fused = lambda i, j: Place(("gate", "up"), (i, j), (4, 10), (5, 5), 1, False)
    alone = lambda i, j: Place(("down",), (i, j), (5, 4), (5,), 1, True)
    gather = gatherer(flat)
    for place in (fused, alone):
        for index in np.ndindex(2, 3):
            found = gather(place(*index), np.float64)
            wanted = [flat[path].array[index] for path in place(*index).paths]
            np.testing.assert_array_equal(found, join(place(*index), wanted))
    assert {tuple(counted.fetched) for counted in flat.values()} == {((0,), (1,))}
