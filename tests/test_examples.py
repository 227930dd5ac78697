"""The examples in docstrings run and give what they say."""

import doctest
import importlib

import pytest

from tests.cli import ROOT

FILES = sorted((ROOT / "distill_jax").rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text().count(">>>")
    for path in FILES
}


@pytest.mark.parametrize("name", [name for name, examples in MODULES.items() if examples])
def test_examples_of_docstrings(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
    assert result.attempted == MODULES[name]


@pytest.mark.parametrize(
    "name",
    ["losses.divergences", "losses.fused", "losses.terms", "losses.tokens", "study.verdict",
     "study.arms", "study.flops", "study.uncertainty", "models.storage"],
)  # fmt: skip
def test_what_is_called_from_outside_has_an_example(name):
    assert MODULES[f"distill_jax.{name}"]
