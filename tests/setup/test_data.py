"""What a config reads: limits, and the held-out documents that no limit of training changes."""

import json

import pytest

from configs.base import get_config
from distill_jax.setup.data import evaluation_documents, tokenized, training_documents
from distill_jax.types import UserError
from tests import cli


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return cli.write_text(tmp_path_factory.mktemp("text") / "text.jsonl", documents=200)


def config_of(source, **more):
    c = get_config()
    c.data.source, c.data.held_out_fraction = str(source), 0.2
    c.data.update(more)
    return c


def texts(chosen):
    return [document.text for document in chosen.documents]


LIMITS = [
    {"max_documents": 3},
    {"max_tokens": 5},
    {"max_documents": 7, "max_tokens": 10**9, "eval_max_documents": 1000},
]


@pytest.mark.parametrize("limits", LIMITS)
def test_what_is_held_out_does_not_depend_on_how_much_is_trained_on(source, limits):
    train, held_out = training_documents(config_of(source))
    some, same = training_documents(config_of(source, **limits))
    assert texts(same) == texts(held_out)
    assert texts(some) == texts(train)[: limits.get("max_documents", len(train.documents))]


@pytest.mark.parametrize("more", [{}, {"max_documents": 4}, {"max_documents": 4, "seq_len": 8}])
def test_the_first_held_out_documents_are_evaluated(source, more):
    _, held_out = training_documents(config_of(source))
    _, some = training_documents(config_of(source, eval_max_documents=5, **more))
    assert texts(some) == texts(held_out)[:5]


def test_with_limits_on_both_parts_the_rest_is_not_read(source, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(source.read_text() + "not JSON\n")
    train, held_out = training_documents(config_of(path, max_documents=2, eval_max_tokens=10))
    assert len(train.documents) == 2
    assert held_out.max_tokens == 10
    with pytest.raises(UserError, match="not JSON"):
        training_documents(config_of(path, max_documents=2))
    c = config_of(path, eval_max_documents=2)
    assert texts(evaluation_documents(c, own=False)) == [
        json.loads(line)["text"] for line in path.read_text().splitlines()[:2]
    ]


def test_a_limit_is_part_of_what_identifies_a_text(source):
    tokenizer = cli.make_tiny_tokenizer()
    found = {
        tokenized(training_documents(config_of(source, **limits))[0], tokenizer, 300).fingerprint
        for limits in ({}, {"max_documents": 1}, {"max_tokens": 10}, {"max_tokens": 11})
    }
    assert len(found) == 4


def test_a_limit_within_a_prompt_is_an_error(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "the quick dog " * 9, "completion": "a"}) + "\n")
    c = config_of(path, eval_source=str(path), max_tokens=5)
    tokenizer = cli.make_tiny_tokenizer()
    train, held_out = training_documents(c)
    with pytest.raises(UserError, match=r"config.data.max_tokens is 5: all of these tokens"):
        tokenized(train, tokenizer, 300)
    assert tokenized(held_out, tokenizer, 300).documents == 1


@pytest.mark.parametrize("key", ["max_documents", "max_tokens", "eval_max_tokens"])
def test_a_negative_limit_is_an_error(source, key):
    with pytest.raises(UserError, match=f"config.data.{key} is -1"):
        training_documents(config_of(source, **{key: -1}))
