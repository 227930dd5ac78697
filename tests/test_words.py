"""What people read in place of names: nothing that can be shown is without its words."""

import numpy as np
import pytest

from distill_jax.diagnosis.causes import CAUSES
from distill_jax.diagnosis.triggers import TRIGGERS
from distill_jax.evals.aggregates import MODEL_METRICS, PAIR_METRICS
from distill_jax.evals.exposure import EXPOSURE
from distill_jax.evals.likelihood import LOGGED
from distill_jax.evals.slices import ALL, SLICES, Tokens
from distill_jax.evals.text_measures import TEXT_MEASURES
from distill_jax.setup.measures import COLUMNS, SCORER
from distill_jax.words import NEW_FAILURE, WORDS, labelled, named, plural

REGISTRIES = {
    "metrics": (*MODEL_METRICS, *PAIR_METRICS, "perplexity", "tokens"),
    "the teacher's metrics": tuple(f"teacher_{name}" for name in MODEL_METRICS),
    "metrics of training": LOGGED,
    "measures of texts": (*TEXT_MEASURES, *EXPOSURE),
    "measures of a study": (*COLUMNS, SCORER),
    "causes": tuple(CAUSES),
    "triggers": tuple(TRIGGERS),
}


@pytest.mark.parametrize("registry", REGISTRIES)
def test_every_name_has_words(registry):
    for name in REGISTRIES[registry]:
        shown = named(name)
        assert shown != name or name in ("perplexity", "entropy"), name
        assert "_" not in shown, name


def test_no_words_are_for_nothing():
    known = {name for names in REGISTRIES.values() for name in names}
    assert set(WORDS) == {name for name in known if not name.startswith("teacher_")} | {
        ALL, "teacher_gap", "teacher_wrong",
    }  # fmt: skip


def values_of(slicing):
    """Every name that a slicing gives to a text with all kinds of tokens."""
    lengths = np.array([20, 100, 40000])
    n = 50
    tokens = Tokens(
        np.zeros(n, int), np.arange(1, n + 1), np.arange(n), np.linspace(0, 6, n),
        np.arange(n), lengths, ("code", "", "other"),
    )  # fmt: skip
    return slicing(tokens).names


@pytest.mark.parametrize("kind", SLICES)
def test_every_slice_has_words_of_its_own(kind):
    names = [f"{kind}:{value}" for value in values_of(SLICES[kind])]
    shown = [named(name) for name in names]
    assert len(set(shown)) == len(names) > 2
    assert not set(names) & set(shown)
    assert all(":" not in text for text in shown)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("frequency:2 of 10", "rare tokens (second least frequent tenth)"),
        ("frequency:5 of 10", "tokens of middle frequency (tenth 5 of 10)"),
        ("frequency:10 of 10", "common tokens (most frequent tenth)"),
        ("position:17-32", "tokens 17 to 32 of a document"),
        ("length:16385 or more", "documents of 16,385 tokens or more"),
        ("entropy:0.1-0.5 nats", "where the teacher's entropy is 0.1 to 0.5 nats"),
        ("entropy:low", "entropy:low"),
        ("frequency:rare", "frequency:rare"),
        ("part:3", "part:3"),
        ("gsm8k/exact_match,strict-match", "gsm8k/exact_match,strict-match"),
        ("", ""),
    ],
)
def test_known_words_and_names_of_others(name, words):
    assert named(name) == words
    assert labelled(NEW_FAILURE + name) == NEW_FAILURE + words
    assert labelled("HELPS") == "HELPS"


def test_one_is_no_plural():
    assert [plural(n, "seed") for n in (0, 1, 2, 1000)] == [
        "0 seeds", "1 seed", "2 seeds", "1,000 seeds",
    ]  # fmt: skip
