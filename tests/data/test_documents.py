import random

import pytest

from distill_jax.data.documents import (
    Document,
    as_chat,
    border_of,
    fingerprint,
    place_of,
)
from distill_jax.types import UserError

DOCUMENTS = [Document(f"n{i}", "web", text=f"text {i}") for i in range(400)]


def split_documents(documents, *, held_out_fraction, seed):
    border = border_of((place_of(d, seed) for d in documents), held_out_fraction)
    held_out = [d for d in documents if place_of(d, seed) < border]
    return [d for d in documents if d not in held_out], held_out


def test_split_is_a_partition_that_keeps_order_and_size():
    train, held_out = split_documents(DOCUMENTS, held_out_fraction=0.1, seed=0)
    assert sorted(train + held_out) == sorted(DOCUMENTS)
    assert [d for d in DOCUMENTS if d in set(held_out)] == held_out
    assert 20 < len(held_out) < 60


def test_split_depends_on_content_alone():
    _, held_out = split_documents(DOCUMENTS, held_out_fraction=0.1, seed=0)
    changed = [d._replace(name="x", label="y") for d in DOCUMENTS[100:] * 2]
    random.Random(0).shuffle(changed)
    _, again = split_documents(changed, held_out_fraction=0.1, seed=0)
    assert {d.text for d in again} == {d.text for d in held_out if d in DOCUMENTS[100:]}


def test_split_depends_on_the_seed():
    splits = [split_documents(DOCUMENTS, held_out_fraction=0.1, seed=s)[1] for s in (0, 1)]
    assert splits[0] != splits[1]


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
@pytest.mark.parametrize("count", [2, 3, 40])
def test_only_the_document_nearest_to_the_border_changes_parts(fraction, count):
    documents = DOCUMENTS[:count] * 2
    train, held_out = split_documents(documents, held_out_fraction=fraction, seed=0)
    place = lambda document: place_of(document, 0)
    nearest = min(documents, key=place) if fraction < 0.5 else max(documents, key=place)
    assert (held_out if fraction < 0.5 else train) == [nearest] * 2
    assert len(train) + len(held_out) == len(documents)


def test_no_more_places_are_taken_than_the_border_needs():
    places = iter([0.9, 0.8, 0.1, 0.5])
    assert (border_of(places, 0.2), list(places)) == (0.2, [0.5])


@pytest.mark.parametrize(
    ("documents", "fraction", "says"),
    [
        (
            DOCUMENTS[:1] * 5,
            0.5,
            "^the text is one document .* --config.data.eval_source=FILE; .* `split -C",
        ),
        (DOCUMENTS, 0, "^config.data.held_out_fraction is 0 .* --config.data.eval_source=FILE"),
        (DOCUMENTS, 1, "held_out_fraction is 1 "),
    ],
)
def test_impossible_splits_are_errors(documents, fraction, says):
    with pytest.raises(UserError, match=says):
        split_documents(documents, held_out_fraction=fraction, seed=0)


def test_fingerprint_sees_content_labels_and_order_but_not_names():
    base = fingerprint(DOCUMENTS)
    assert base == fingerprint([d._replace(name="x") for d in DOCUMENTS])
    assert base != fingerprint(DOCUMENTS[::-1])
    assert base != fingerprint([*DOCUMENTS[:-1], DOCUMENTS[-1]._replace(label="y")])
    pair, text = Document("", "", pair=("a", "b")), Document("", "", text="ab")
    assert fingerprint([pair]) != fingerprint([text])


def test_fingerprint_sees_what_is_given_and_which_tools():
    turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    chat = as_chat(Document("", "", pair=("a", "b")))
    assert chat.messages == turns
    whole = Document("", "", messages=turns)
    several = [whole, chat, whole._replace(tools=({"name": "f"},))]
    assert len({fingerprint([document]) for document in several}) == 3
