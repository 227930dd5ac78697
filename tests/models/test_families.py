"""Laws of the registry: every family describes all of its parameters, once."""

import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers.activations import ACT2FN

from distill_jax.models import families
from distill_jax.models.architecture import ACTIVATIONS
from distill_jax.models.families import FAMILIES, family_of, read_config
from distill_jax.models.family import Family
from distill_jax.models.storage import layout
from distill_jax.types import UserError
from tests.hostile import WRONG
from tests.models import family_table
from tests.models.conftest import CASES, SIZES

AXES = {"fsdp", "tensor", "expert", None}


def test_every_parameter_has_a_sharding_rule(checkpoint):
    family = FAMILIES[checkpoint.config.family]
    paths = layout(checkpoint.config)
    for path, (_, shape) in paths.items():
        rule = next(axes for pattern, axes in family.sharding if re.fullmatch(pattern, path))
        assert len(rule) <= len(shape)
        assert set(rule) <= AXES
        named = [axis for axis in rule if axis]
        assert len(named) == len(set(named))
        axes = len(shape) - path.startswith("blocks/")
        is_of_expert = path.rsplit("/", 1)[-1].startswith("expert_")
        assert ("expert" in named) == is_of_expert
        assert ({"fsdp", "tensor"} <= set(named)) == (axes - is_of_expert == 2)


def test_a_config_json_round_trip_is_the_identity(checkpoint):
    family = FAMILIES[checkpoint.config.family]
    assert family.from_hf(family.to_hf(checkpoint.config)) == checkpoint.config


SIZES_REQUIRED = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "rms_norm_eps", "n_embd", "n_layer", "n_head", "n_positions",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_absent_keys_mean_what_they_mean_to_transformers(name):
    """Each key of a config.json is left out, alone and together with layer_types."""
    family, entries = CASES[name]
    # As many heads as the defaults of other numbers fit.
    heads = {"num_attention_heads": 32, "num_key_value_heads": 16, "hidden_size": 256}
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **entries, **heads})
    whole = config.to_dict()

    def read(raw):
        try:
            return FAMILIES[family].from_hf(raw)
        except UserError:  # the words may tell an absent key from a null one
            return "refused"

    for key in whole.keys() - SIZES_REQUIRED:
        for gone in ({key}, {key, "layer_types"}):
            less = {k: v for k, v in whole.items() if k not in gone}
            full = type(config).from_dict(dict(less)).to_dict()
            assert read(less) == read(full), gone


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_value_of_any_key_is_one_line_or_no_harm(name):
    family, entries = CASES[name]
    theirs = transformers.AutoConfig.for_model(family, **{**SIZES, **entries}).to_dict()
    ours = FAMILIES[family].to_hf(FAMILIES[family].from_hf(theirs))
    for whole in (theirs, ours):
        for key, wrong in itertools.product(whole, WRONG.values()):
            try:
                config = read_config({**whole, key: wrong}, Path("config.json"))
            except UserError as error:
                said = str(error)
            else:
                said = str(FAMILIES[family].to_hf(config))
            assert "\n" not in said, key


@pytest.mark.parametrize("kind", ["longrope", "su"])
@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_the_names_of_longrope(name, kind):
    raw = {**SIZES, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192}
    raw[name] = {"type": kind, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    scaling = FAMILIES["phi3"].from_hf(raw).rope_scaling
    assert (scaling.kind, scaling.factor, scaling.original_positions) == ("longrope", 2.0, 4096)
    raw[name]["long_factor"] = [2.0] * 7
    with pytest.raises(UserError, match="8 short and 7 long rope factors for 8 pairs"):
        FAMILIES["phi3"].from_hf(raw)


_ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
_OTHER_ROPE = {"type": "linear", "factor": 4.0}
_NULLS = ["hidden_act", "tie_word_embeddings", "norm_topk_prob", "embedding_multiplier"]


@pytest.mark.parametrize(
    ("family", "entries", "said"),
    [
        ("llama", {"rope_parameters": _ROPE, "rope_scaling": _OTHER_ROPE}, "which disagree"),
        ("gpt_neox", {"rope_parameters": _ROPE, "rope_scaling": _OTHER_ROPE}, "which disagree"),
        (
            "gemma3_text",
            {"rope_parameters": {"full_attention": _ROPE}, "rope_scaling": _OTHER_ROPE},
            "which disagree",
        ),
        ("gemma3_text", {"rope_parameters": _ROPE}, "of no kind of block"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=null"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "2 no_rope_layers for 3"),
        ("gpt2", {"n_embd": 32, "hidden_size": 64}, "n_embd=32 and hidden_size=64"),
        ("llama", {"rope_parameters": {"type": "foo"}}, "default, linear, llama3, longrope$"),
        ("gpt_oss", {"rope_parameters": {"rope_type": "foo"}}, "longrope, yarn$"),
        ("llama", {"model_type": None}, "has no 'model_type': add one of gemma,"),
        ("llama", {"hidden_size": "32"}, 'hidden_size="32", not a whole number'),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 3, "sliding_window": 5},
            "without use_sliding_window=true: set that",
        ),
        ("mixtral", {"num_local_experts": 0}, "has 0 experts, and every block"),
        *[("llama", {name: None}, f"{name}=null, not ") for name in _NULLS],
    ],
)
def test_what_transformers_refuses_or_takes_otherwise_is_one_line(family, entries, said):
    sizes = transformers.AutoConfig.for_model(family, **SIZES).to_dict()
    with pytest.raises(UserError, match=said):
        read_config({**sizes, **entries}, Path("config.json"))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_transformers_of_the_same_name(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    theirs = ACT2FN[name](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](x), theirs, atol=2e-6)


def test_both_names_of_the_same_rope_are_read():
    sizes = transformers.AutoConfig.for_model("llama", **SIZES).to_dict()
    raw = {**sizes, "rope_parameters": _ROPE, "rope_scaling": {"type": "linear", "factor": 2.0}}
    one = read_config({**raw, "rope_theta": 1e4}, Path("config.json"))
    two = read_config({**sizes, "rope_parameters": _ROPE}, Path("config.json"))
    assert one == two


def test_every_file_of_the_room_is_in_the_registry():
    files = [f.name for f in pkgutil.iter_modules(families.__path__, families.__name__ + ".")]
    assert len(files) == len(FAMILIES)
    for file in files:
        made = vars(importlib.import_module(file)).values()
        assert all(value in FAMILIES.values() for value in made if isinstance(value, Family))


def test_the_readme_has_the_table_of_the_registry():
    text = family_table.README.read_text(encoding="utf-8")
    assert family_table.PLACE.findall(text) == [family_table.table()], (
        "write it anew by python -m tests.models.family_table"
    )


def test_an_unknown_family_lists_those_known():
    with pytest.raises(UserError, match=r"'mamba' is not supported: .*llama.*qwen2"):
        family_of("mamba")


@pytest.mark.parametrize(
    ("entries", "window", "local"),
    [
        ({"sliding_window": 9}, 9, (True, True)),
        ({}, 4096, (True, True)),
        ({"sliding_window": None}, None, None),
        ({"layer_types": ["full_attention", "sliding_attention"]}, 4096, (False, True)),
        ({"layer_types": ["full_attention"] * 2}, None, None),
    ],
)
def test_the_window_of_mistral_is_that_of_its_config_json(entries, window, local):
    family = FAMILIES["mistral"]
    sizes = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 16}
    raw = {**sizes, "num_attention_heads": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    config = family.from_hf({**raw, "num_hidden_layers": 2, "head_dim": None, **entries})
    assert (config.sliding_window, config.local_blocks) == (window, local)
    assert (config.kv_heads, config.head_width) == (8, 2)
    assert family.from_hf(family.to_hf(config)) == config


@pytest.mark.parametrize("where", [{"decoder_sparse_step": 2}, {"mlp_only_layers": [1]}])
def test_blocks_with_and_without_experts_are_refused_together(where):
    whole = transformers.AutoConfig.for_model("qwen3_moe", **{**SIZES, **where}).to_dict()
    with pytest.raises(UserError, match=r"experts to [12] of 3 blocks .*must be alike"):
        FAMILIES["qwen3_moe"].from_hf(whole)
    alike = FAMILIES["qwen3_moe"].from_hf({**whole, "mlp_only_layers": [0, 1, 2]})
    assert (alike.experts, alike.neurons) == (0, SIZES["intermediate_size"])
