"""Tiny random checkpoints of every family, saved by transformers, and logits by both sides."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from distill_jax.models import huggingface
from distill_jax.models.binding import bind
from distill_jax.models.families import FAMILIES

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # sharp logits and attention
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES = {
    f"{name}-{variant}": (name, entries)
    for name, family in FAMILIES.items()
    for variant, entries in family.variants.items()
}
# The first case of each family.
FIRST = [next(name for name in CASES if name.startswith(f"{family}-")) for family in FAMILIES]
TOKENS_BT = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, 24))


class Case(NamedTuple):
    """A saved checkpoint, the transformers model it came from, and that model's logits."""

    directory: object
    oracle: object
    tokens_BT: np.ndarray
    logits_BTV: np.ndarray


def tiny_oracle(family, entries):
    """A transformers model in which no parameter is trivial; `entries` of its config.json."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **entries})
    oracle = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return oracle


def oracle_logits(oracle, tokens_BT):
    with torch.no_grad():
        return oracle(torch.tensor(np.asarray(tokens_BT))).logits.float().numpy()


def our_logits(checkpoint, tokens_BT):
    """Logits [B, T, V] of whole rows, in float32."""
    model = bind(checkpoint.config, param_dtype="float32", compute_dtype="float32", remat="none")
    position_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)

    @jax.jit
    def run(params):
        hidden = model.apply(params, tokens_BT, jnp.ones_like(position_BT), position_BT)
        return project(hidden, model.unembed(params))

    return np.asarray(run(checkpoint.params))


def project(hidden, unembed):
    logits_BTV = unembed.scale * (hidden.last_BTD @ unembed.weight_DV)
    cap = unembed.softcap
    return logits_BTV if cap is None else cap * jnp.tanh(logits_BTV / cap)


@pytest.fixture(scope="session", params=CASES)
def case(request, tmp_path_factory):
    oracle = tiny_oracle(*CASES[request.param])
    directory = tmp_path_factory.mktemp(request.param)
    oracle.save_pretrained(directory)
    return Case(directory, oracle, TOKENS_BT, oracle_logits(oracle, TOKENS_BT))


@pytest.fixture(scope="session")
def checkpoint(case):
    """The case read back by this project, float32."""
    return huggingface.read(case.directory, dtype="float32").whole()


@pytest.fixture(scope="session")
def by():
    """The helpers above, for tests that call them with their own arguments."""
    return SimpleNamespace(
        oracle=oracle_logits,
        us=our_logits,
        tiny=tiny_oracle,
        project=project,
        tokens_BT=TOKENS_BT,
    )
