"""What a config reads: limits and templates, and what is held out whatever they are."""

import json

import pytest

from configs.base import get_config
from distill_jax.setup import reading, storing
from distill_jax.setup.reading import evaluation_documents
from distill_jax.types import UserError
from tests import cli


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return cli.write_text(tmp_path_factory.mktemp("text") / "text.jsonl", documents=200)


def config_of(source, **more):
    c = get_config()
    c.data.source = source if isinstance(source, tuple) else str(source)
    c.data.held_out_fraction = 0.2
    c.data.update(more)
    return c


def training_documents(c):
    [train], [held_out] = reading.training_documents(c)
    return train, held_out


def tokenized(chosen, *of):
    return storing.tokenized([chosen], *of)


def texts(chosen):
    return [document.text for document in chosen.documents()]


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
    assert texts(some) == texts(train)[: limits.get("max_documents", train.count)]


@pytest.mark.parametrize("more", [{}, {"max_documents": 4}, {"max_documents": 4, "seq_len": 8}])
def test_the_first_held_out_documents_are_evaluated(source, more):
    _, held_out = training_documents(config_of(source))
    _, some = training_documents(config_of(source, eval_max_documents=5, **more))
    assert texts(some) == texts(held_out)[:5]


def test_with_limits_on_both_parts_the_rest_is_not_read(source, tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text(source.read_text() + "not JSON\n")
    train, held_out = training_documents(config_of(path, max_documents=2, eval_max_tokens=10))
    assert train.count == len(texts(train)) == 2
    assert held_out.max_tokens == 10
    with pytest.raises(UserError, match="not JSON"):
        training_documents(config_of(path, max_documents=2))
    c = config_of(path, eval_max_documents=2)
    assert texts(*evaluation_documents(c, own=False)) == [
        json.loads(line)["text"] for line in path.read_text().splitlines()[:2]
    ]


def test_a_limit_is_part_of_what_identifies_a_text(source):
    tokenizer = cli.make_tiny_tokenizer()
    found = {
        tokenized(training_documents(config_of(source, **limits))[0], tokenizer, 300).fingerprint
        for limits in (
            {},
            {"max_tokens": 10**9},
            {"max_documents": 1},
            {"max_tokens": 10},
            {"max_tokens": 11},
        )
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


CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
PROMPTED = CHAT + "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    lines = [json.dumps({"prompt": f"the {i}", "completion": f"dog {i}"}) for i in range(40)]
    path.write_text("\n".join(lines))
    return path


def test_pairs_go_through_the_template_only_where_it_is_asked_for(pairs):
    tokenizer = cli.make_tiny_tokenizer()._replace(chat_template=PROMPTED)
    read = {
        template: training_documents(config_of(pairs, template=template))
        for template in ("plain", "chat")
    }
    plain, chat = (tokenized(read[name][0], tokenizer, 300) for name in ("plain", "chat"))
    first = lambda text: slice(*text.tokenized.offsets[:2])
    decoded = lambda text, counted: tokenizer.backend.decode(
        text.tokenized.tokens[first(text)][text.tokenized.trained[first(text)] >= counted].tolist(),
        skip_special_tokens=False,
    )
    prompt, completion = next(read["plain"][0].documents()).pair
    assert decoded(plain, 0) == f"{prompt}{completion}<end>"
    assert decoded(chat, 0) == f"[user]{prompt}<end>[assistant]{completion}<end>"
    assert decoded(chat, 1) == f"{completion}<end>"
    assert plain.fingerprint != chat.fingerprint
    assert ("data.template=chat" in plain.note, chat.note) == (True, "")
    held_out = [[d.name for d in read[name][1].documents()] for name in read]
    assert held_out[0] == held_out[1]


@pytest.mark.parametrize(
    ("more", "says"),
    [({"template": "chatml"}, "did you mean chat"), ({"template": "chat"}, "every record is a")],
)
def test_a_template_that_changes_nothing_is_an_error(source, more, says):
    with pytest.raises(UserError, match=says):
        training_documents(config_of(source, **more))


def test_a_template_needs_a_tokenizer_that_has_one(pairs):
    train, _ = training_documents(config_of(pairs, template="chat"))
    with pytest.raises(UserError, match=r"pairs.jsonl:\d+: the tokenizer has no chat template"):
        tokenized(train, cli.make_tiny_tokenizer(), 300)
