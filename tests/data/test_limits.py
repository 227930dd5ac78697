"""A limit gives the same tokens as all of the text, cut; and costs little of the rest."""

import numpy as np
import pytest

from distill_jax.data.documents import Document
from distill_jax.data.limits import CHARACTERS_PER_TOKEN, Limits, filled_by
from distill_jax.types import UserError
from tests.tokens import tokenize_documents

PAIRS = [
    Document(f"n{i}", "x", pair=("p " * (i % 9), "c" * (i % 5))) if i % 3 else
    Document(f"n{i}", "x", text="word 12 " * (i % 7))
    for i in range(700)
]  # fmt: skip


@pytest.mark.parametrize("most", [1, 2, 50, 999, 10**9])
def test_what_is_within_the_limit_is_as_without_it(tokenizer, most):
    whole = tokenize_documents(PAIRS, tokenizer)
    some = tokenize_documents(PAIRS, tokenizer, max_tokens=most)
    predicted = np.maximum(np.diff(some.offsets) - 1, 0).sum()
    assert predicted == min(most, np.maximum(np.diff(whole.offsets) - 1, 0).sum())
    n = len(some.tokens)
    assert (some.tokens == whole.tokens[:n]).all()
    assert (some.trained == whole.trained[:n]).all()
    used = len(some.offsets) - 1
    assert (some.offsets[:used] == whole.offsets[:used]).all()
    assert len(some.labels) == used


def test_what_is_beyond_the_limit_is_not_encoded(smollm_like, monkeypatch):
    seen = []
    encode = type(smollm_like.backend).encode_batch_fast
    spy = smollm_like._replace(
        backend=type("Spy", (), {
            "encode_batch_fast": lambda _, texts: seen.extend(texts) or encode(
                smollm_like.backend, texts
            )
        })()
    )  # fmt: skip
    long = Document("n", "x", text="word 12 " * 10**6)
    tokens = tokenize_documents([long] * 300, spy, max_tokens=100)
    assert (len(tokens.tokens), len(tokens.labels)) == (101, 1)
    assert sum(map(len, seen)) < 2 * CHARACTERS_PER_TOKEN * 100


def test_text_of_too_few_tokens_is_an_error_and_not_less_text(smollm_like):
    """Reading stops by characters: were there more to a token, text would be missing."""
    blank = type("Blank", (), {"ids": [1]})
    spy = smollm_like._replace(
        backend=type("Spy", (), {"encode_batch_fast": lambda _, texts: [blank] * len(texts)})()
    )
    with pytest.raises(UserError, match="fewer than one token per 256 characters"):
        tokenize_documents([Document("n", "x", text="a" * 10**5)], spy, max_tokens=100)


@pytest.mark.parametrize("most", [0, 20_000])
def test_a_pair_too_long_to_be_encoded_is_told_with_its_own_length(tokenizer, most):
    long = Document("n", "x", pair=("a" * 5_000_000, "b" * 500_000))
    with pytest.raises(UserError, match=r"n: it has 5,500,000 characters, .* several records"):
        tokenize_documents([long], tokenizer, max_tokens=most)


@pytest.mark.parametrize(
    ("limits", "needed"),
    [
        (Limits(), 700),
        (Limits(documents=3), 3),
        (Limits(tokens=1), 2),
        (Limits(documents=9, tokens=10**9), 9),
    ],
)
def test_reading_goes_on_until_there_is_enough(limits, needed):
    filled = filled_by(limits)
    assert next((i for i, d in enumerate(PAIRS, 1) if filled(d)), 700) == min(needed, 700)


def test_few_tokens_need_few_characters():
    filled = filled_by(Limits(tokens=10))
    book = Document("n", "x", text="a" * 1000)
    assert [filled(book) for _ in range(4)] == [False, False, True, True]
