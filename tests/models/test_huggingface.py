"""Hugging Face directories in and out, against transformers, over every family."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from distill_jax.models import huggingface
from distill_jax.models.storage import flatten
from distill_jax.models.weights import fingerprint
from distill_jax.types import TOKEN_IDS, UserError
from tests.models.conftest import SIZES

WHOLE = 1 << 30
BITS = {"float32": np.uint32, "bfloat16": np.uint16, "float16": np.uint16}


def stored(directory):
    """All arrays of a directory by stored name."""
    return {k: v for f in directory.glob("*.safetensors") for k, v in load_file(f).items()}


def export(checkpoint, directory, *, dtype=None, max_shard_bytes=WHOLE):
    huggingface.write(
        directory,
        checkpoint.config,
        checkpoint.params,
        generation={name: SIZES[name] for name in TOKEN_IDS},
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    return directory


def test_logits_are_those_of_transformers(case, checkpoint, by):
    np.testing.assert_allclose(by.us(checkpoint, case.tokens_BT), case.logits_BTV, atol=1e-4)


def test_an_export_loads_in_transformers_with_the_same_logits(case, checkpoint, by, tmp_path):
    export(checkpoint, tmp_path)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert type(loaded) is type(case.oracle)
    assert not any(info.values()), info
    np.testing.assert_array_equal(by.oracle(loaded.eval(), case.tokens_BT), case.logits_BTV)
    for of in (loaded.generation_config, loaded.config):
        assert {name: getattr(of, name) for name in TOKEN_IDS} == {n: SIZES[n] for n in TOKEN_IDS}


def test_a_config_survives_the_round_trip(checkpoint, tmp_path):
    again = huggingface.read(export(checkpoint, tmp_path), dtype=None).whole()
    assert again.config == checkpoint.config
    assert hash(again.config) == hash(checkpoint.config)
    assert fingerprint(again.params) == fingerprint(checkpoint.params)


@pytest.mark.parametrize("case", ["mistral-window"], indirect=True)
def test_mistral_with_a_window_on_some_blocks(case, checkpoint, by, tmp_path):
    """transformers opens it as Ministral; the windows of single blocks are seen in the logits."""
    config = dataclasses.replace(checkpoint.config, local_blocks=(True, False, True))
    some = checkpoint._replace(config=config)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(export(some, tmp_path)).eval()
    logits_BTV = by.us(huggingface.read(tmp_path, dtype=None).whole(), case.tokens_BT)
    np.testing.assert_allclose(by.oracle(loaded, case.tokens_BT), logits_BTV, atol=1e-4)
    assert np.abs(logits_BTV[:, :5] - case.logits_BTV[:, :5]).max() < 1e-4
    assert np.abs(logits_BTV[:, 6:] - case.logits_BTV[:, 6:]).max() > 0.01


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("shard", ["1KB", "20KB", "1GB"])
@pytest.mark.parametrize("case", ["llama-untied", "gemma3_text-tied", "phi3-tied"], indirect=True)
def test_weights_come_back_bit_equal(case, dtype, shard, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        case.directory, dtype=getattr(torch, dtype)
    )
    oracle.save_pretrained(source, max_shard_size=shard)
    read = huggingface.read(source, dtype=None).whole()
    assert {leaf.dtype.name for leaf in flatten(read.params).values()} == {dtype}
    export(read, target, max_shard_bytes=20_000)
    before, after = stored(source), stored(target)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(array.view(BITS[dtype]), after[name].view(BITS[dtype]))
    assert len(list(target.glob("*.safetensors"))) > 1
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(target)
    assert reloaded.dtype is getattr(torch, dtype)


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_a_named_dtype_is_the_one_of_every_parameter(checkpoint, tmp_path):
    export(checkpoint, tmp_path, dtype="bfloat16")
    read = huggingface.read(tmp_path, dtype="float32").whole()
    for path, leaf in flatten(read.params).items():
        assert leaf.dtype == np.float32
        wanted = flatten(checkpoint.params)[path].astype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(leaf, wanted.astype(np.float32))


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_exporting_again_leaves_one_set_of_weights(checkpoint, by, tmp_path, case):
    for max_shard_bytes in (20_000, WHOLE, 30_000):
        export(checkpoint, tmp_path, max_shard_bytes=max_shard_bytes)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        np.testing.assert_array_equal(by.oracle(loaded, case.tokens_BT), case.logits_BTV)
        names = stored(tmp_path)
        assert sum(len(load_file(f)) for f in tmp_path.glob("*.safetensors")) == len(names)
    assert not list(tmp_path.glob("*.part"))
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("case", ["llama-tied", "gpt2-tied"], indirect=True)
def test_a_stored_head_of_a_tied_model_is_the_embedding_or_an_error(checkpoint, tmp_path):
    export(checkpoint, tmp_path)
    arrays, embedding = stored(tmp_path), checkpoint.params["embedding"]
    save_file({**arrays, "lm_head.weight": embedding}, tmp_path / huggingface.SINGLE)
    assert fingerprint(huggingface.read(tmp_path, dtype=None).whole().params) == fingerprint(
        checkpoint.params
    )
    for other in (embedding + np.eye(*embedding.shape, dtype=np.float32), embedding[:-1]):
        save_file({**arrays, "lm_head.weight": other}, tmp_path / huggingface.SINGLE)
        with pytest.raises(UserError, match=r"lm_head\.weight differs from the embedding"):
            huggingface.read(tmp_path, dtype=None)


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_redundant_weights_are_ignored(checkpoint, tmp_path):
    export(checkpoint, tmp_path)
    arrays = stored(tmp_path)
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    read = huggingface.read(tmp_path, dtype=None).whole()
    assert fingerprint(read.params) == fingerprint(checkpoint.params)


# Checkpoints of other years: name -> name, and arrays besides the weights.
OLD = {
    "gpt2-tied": (
        lambda name: name.removeprefix("transformer."),
        {"h.1.attn.bias": np.tri(64, dtype=np.float32)[None, None]},
    ),
    "gpt_neox-untied": (
        lambda name: "lm_head.weight" if name == "embed_out.weight" else name,
        {
            "gpt_neox.layers.1.attention.bias": np.tri(64, dtype=bool)[None, None],
            "gpt_neox.layers.1.attention.masked_bias": np.full((), -1e9, np.float32),
            "gpt_neox.layers.1.attention.rotary_emb.inv_freq": np.ones(2, np.float32),
        },
    ),
}


@pytest.mark.parametrize("case", OLD, indirect=True)
def test_old_checkpoints_are_read_in_their_dtype(request, case, checkpoint, tmp_path):
    renamed, besides = OLD[request.node.callspec.params["case"]]
    half = huggingface.read(case.directory, dtype="float16").whole()
    export(half, tmp_path)
    arrays = {renamed(name): array for name, array in stored(tmp_path).items()}
    assert arrays.keys() != stored(tmp_path).keys()
    save_file(arrays | besides, tmp_path / "model.safetensors")
    read = huggingface.read(tmp_path, dtype=None).whole()
    assert read.config == checkpoint.config
    assert {leaf.dtype.name for leaf in flatten(read.params).values()} == {"float16"}
    assert fingerprint(read.params) == fingerprint(half.params)


def edit_weights(change):
    def edit(directory):
        arrays = stored(directory)
        change(arrays)
        save_file(arrays, directory / "model.safetensors")

    return edit


def edit_config(**changes):
    def edit(directory):
        raw = json.loads((directory / "config.json").read_text())
        kept = {k: v for k, v in (raw | changes).items() if v is not None}
        (directory / "config.json").write_text(json.dumps(kept))

    return edit


def truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_pickles(directory):
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def lose_a_shard(directory):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


UP = "model.layers.1.mlp.up_proj.weight"
SPOILT = {
    "missing": (edit_weights(lambda a: a.pop(UP)), f"lacks weights (1): {UP}"),
    "extra": (edit_weights(lambda a: a.update(odd=a[UP])), "has unknown weights (1): odd"),
    "shape": (
        edit_weights(lambda a: a.update({UP: a[UP][:40]})),
        f"{UP} has shape [40, 32] where the config gives [64, 32]",
    ),
    "mixed": (
        edit_weights(lambda a: a.update({UP: a[UP].astype(np.float16)})),
        f"{UP} is stored as float16",
    ),
    "truncated": (truncate, "is not a complete safetensors file"),
    "pickles": (only_pickles, "pytorch_model.bin"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "has no model.safetensors"),
    "no shard": (lose_a_shard, "has no model-00001-of-00002.safetensors"),
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON"),
    "listed config": (lambda d: (d / "config.json").write_text("[]"), "not a JSON object"),
    "family": (edit_config(model_type="mamba"), "model_type 'mamba' is not supported"),
    "key": (edit_config(hidden_size=None), "has no 'hidden_size'"),
    "rope": (edit_config(rope_scaling={"type": "yarn", "factor": 2.0}), "rope type 'yarn'"),
    "activation": (edit_config(hidden_act="mish"), "activation 'mish'"),
    "bias": (edit_config(mlp_bias=True), "lacks weights (9): model.layers.0.mlp.down_proj.bias"),
    "cross attention": (edit_config(add_cross_attention=True), "add_cross_attention=true"),
    "scores": (
        edit_config(scale_attn_by_inverse_layer_idx=True),
        "scale_attn_by_inverse_layer_idx=true",
    ),
    "experts": (edit_config(num_local_experts=8), "num_local_experts=8"),
    "quantized": (edit_config(quantization_config={"bits": 4}), "quantization_config="),
    "heads": (edit_config(num_key_value_heads=3), "4 query heads"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_bad_input_is_one_line_that_names_it(spoilt, checkpoint, tmp_path):
    spoil, message = SPOILT[spoilt]
    spoil(export(checkpoint, tmp_path))
    with pytest.raises(UserError) as error:
        huggingface.read(tmp_path, dtype=None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["llama-tied"], indirect=True)
def test_a_place_that_cannot_be_written_is_named(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        export(checkpoint, tmp_path / "file")
