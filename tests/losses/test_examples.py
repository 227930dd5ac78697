"""The examples in the docstrings of losses/ run and give what they say."""

import doctest
import importlib
import pkgutil

import pytest

import distill_jax.losses

MODULES = [module.name for module in pkgutil.iter_modules(distill_jax.losses.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"distill_jax.losses.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name not in ("divergences", "fused", "terms", "tokens")
