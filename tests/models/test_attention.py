"""Laws of attention by blocks and over a cache: the definition in float64, and what is not made."""

from functools import partial

import jax.numpy as jnp
import pytest

from distill_jax.models import blockwise_attention
from distill_jax.models.attention_pattern import Pattern
from distill_jax.models.blockwise_attention import attend
from tests.models.attention_oracle import SETTINGS, check, draw

LENGTHS = [1, 5, 40, 77]  # with blocks of at most 32 positions: one block, and some not full
PLAIN = Pattern(window=None, scale=0.5, softcap=None)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise_attention, "BLOCK", 32)


def blockwise(setting):
    return partial(attend, pattern=setting.pattern, mesh=None)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_outputs_and_gradients_are_those_of_the_definition(setting):
    check(blockwise(setting), setting, draw(setting, 77), jnp.float32, 1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(length):
    setting = SETTINGS[-1]
    check(blockwise(setting), setting, draw(setting, length), jnp.float32, 1e-5)


@pytest.mark.parametrize("setting", SETTINGS[:2] + SETTINGS[-2:], ids=str)
def test_bfloat16_is_near(setting):
    check(blockwise(setting), setting, draw(setting, 77), jnp.bfloat16, 0.03)
