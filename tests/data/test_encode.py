import numpy as np
import pytest

from distill_jax.data.documents import Document
from distill_jax.data.encode import check_vocabulary
from distill_jax.types import UserError
from tests.data.conftest import encode_text
from tests.tokens import tokenize_documents


def tokens_of(tokenized, document):
    place = slice(*tokenized.offsets[document : document + 2])
    return tokenized.tokens[place].tolist(), tokenized.trained[place].tolist()


def test_a_text_counts_whole_and_ends_in_end_of_text(tokenizer, nasty):
    tokenized = tokenize_documents([Document("n", "x", text=nasty)], tokenizer)
    ids = encode_text(tokenizer, nasty)
    assert tokens_of(tokenized, 0) == (ids, [1] * len(ids))


@pytest.mark.parametrize("prompt", ["", "Hello ", "a 12"])
def test_a_pair_is_one_text_of_which_the_completion_counts(tokenizer, nasty, prompt):
    tokenized = tokenize_documents([Document("n", "x", pair=(prompt, nasty))], tokenizer)
    ids, trained = tokens_of(tokenized, 0)
    assert ids == encode_text(tokenizer, prompt + nasty)
    # What counts is one stretch up to the end, which decodes to the completion at least, and to
    # it alone but for one token that may reach over.
    assert trained == sorted(trained)
    assert trained[-1] == 1
    completion = [i for i, counts in zip(ids, trained, strict=True) if counts][:-1]
    decoded = tokenizer.backend.decode(completion, skip_special_tokens=False)
    normal = tokenizer.backend.normalizer
    expected = nasty if normal is None else normal.normalize_str(nasty).replace("▁", " ")
    assert decoded.endswith(expected)
    assert (
        not tokenizer.backend.decode(completion[1:], skip_special_tokens=False).endswith(expected)
        or not expected
    )


def test_documents_keep_their_order_whatever_their_kind_and_number(smollm_like):
    documents = []
    for i in range(600):
        pair = (f"p{i} ", f"c{i}")
        kind = {"pair": pair} if i % 3 else {"text": "".join(pair)}
        documents.append(Document(f"n{i}", f"l{i % 2}", **kind))
    tokenized = tokenize_documents(documents, smollm_like)
    for i in (0, 1, 255, 256, 257, 599):
        assert tokens_of(tokenized, i)[0] == encode_text(smollm_like, f"p{i} c{i}")
    assert tokenized.labels == tuple(d.label for d in documents)
    assert tokenized.offsets[-1] == len(tokenized.tokens) == len(tokenized.trained)
    assert (tokenized.tokens.dtype, tokenized.trained.dtype) == (np.uint32, np.uint8)


def test_padding_that_equals_end_of_text_does_not_unmark_it(smollm_like):
    assert smollm_like.pad_id == smollm_like.eos_id
    tokenized = tokenize_documents([Document("n", "x", text="a")], smollm_like)
    assert tokens_of(tokenized, 0)[1][-1] == 1


def test_a_token_outside_the_vocabulary_is_named(smollm_like):
    tokenized = tokenize_documents([Document("n", "x", text="zz")], smollm_like)
    highest = int(tokenized.tokens.max())
    check_vocabulary(highest, smollm_like, vocab_size=highest + 1)
    with pytest.raises(UserError, match=rf"token {highest} \('.*'\) .* of {highest}: "):
        check_vocabulary(highest, smollm_like, vocab_size=highest)
