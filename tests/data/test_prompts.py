"""Prompts that are given or in files, as the tokens that transformers makes of them."""

import json

import pytest
import transformers

from distill_jax.data.chat import turn_end
from distill_jax.data.prompts import (
    Prompt,
    conversation,
    encode_prompt,
    read_conversations,
    read_prompts,
    shown,
)
from distill_jax.data.tokenizer import save_tokenizer
from distill_jax.types import UserError
from tests.data.test_chat import CASES, CHATML, FOLDING, LONG, PLAIN, SHORT, SYSTEM

ASK = ({"role": "user", "content": "Hi 12"},)


def test_texts_and_the_records_of_files(tmp_path):
    records = [
        {"prompt": "a\nb"}, {"text": "c"}, {"messages": [SYSTEM, *ASK]},
        {"messages": [*ASK, SHORT[1]]}, {"prompt": list(ASK)},
    ]  # fmt: skip
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "p.jsonl").write_text(lines + "\n\n")
    (tmp_path / "p.txt").write_text("\ufeffone \u2028 line\r\n\ntwo\n")
    given = ["x", f"@{tmp_path / 'p.jsonl'}", f"@{tmp_path / 'p.txt'}", "@@y"]
    read = [(p.text, p.messages) for p in read_prompts(given)]
    turns = [(None, (SYSTEM, *ASK)), (None, ASK), (None, ASK)]
    assert read == [
        ("x", None), ("a\nb", None), ("c", None), *turns, ("one \u2028 line", None),
        ("two", None), ("@y", None),
    ]  # fmt: skip


def test_conversations_as_json_or_of_a_file(tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": LONG}))
    assert read_conversations("", "key") == []
    assert [p.messages for p in read_conversations(json.dumps(SHORT), "key")] == [ASK]
    read = read_conversations(f"@{tmp_path / 'p.jsonl'}", "key")
    assert [p.messages for p in read] == [tuple(LONG[:-1])]


MISTAKES = {
    "absent": (["@absent.jsonl"], "there is no such file"),
    "suffix": (["@{}/a.csv"], "is of no known kind"),
    "empty": (["@{}/empty.jsonl"], "holds no prompt"),
    "not json": (["@{}/bad.jsonl"], "bad.jsonl:2: not JSON"),
    "other record": (["@{}/other.jsonl"], "other.jsonl:1"),
    "directory": (["@{}"], "is a directory"),
    "number": ([5], "prompt 1 is 5"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, tmp_path):
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\nx')
    (tmp_path / "other.jsonl").write_text('{"foo": 1}')
    given, says = MISTAKES[name]
    given = [x.format(tmp_path) if isinstance(x, str) else x for x in given]
    with pytest.raises(UserError) as caught:
        read_prompts(given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("hello", "key: not JSON"),
        ('{"a": 1}', "not a list of turns"),
        (json.dumps(SHORT[1:]), "no turn before"),
    ],
)
def test_mistakes_of_a_conversation_are_one_line(given, says):
    with pytest.raises(UserError, match=says) as caught:
        read_conversations(given, "key")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["smollm", "llama-bpe", "gemma"])
@pytest.mark.parametrize("template", [CHATML, FOLDING, PLAIN], ids=["chatml", "folding", "plain"])
def test_a_chat_is_the_tokens_of_transformers(tmp_path, make_small, name, template):
    """FOLDING writes BOS, and llama-bpe and gemma begin every text with one."""
    tokenizer = make_small(name, chat_template=template)
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    asked = Prompt("p", messages=(*ASK, *LONG[1:3]))
    for prompt, turns in ((Prompt("p", text="Hi 12"), ASK), (asked, asked.messages)):
        expected = theirs.apply_chat_template(list(turns), add_generation_prompt=True)["input_ids"]
        ids = encode_prompt(tokenizer, prompt, chat=True)
        assert ids == expected
        assert ids.count(tokenizer.bos_id) == (template is FOLDING)
    plain = encode_prompt(tokenizer, Prompt("p", text="Hi 12"), chat=False)
    assert plain == theirs("Hi 12")["input_ids"]


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_token_that_ends_a_turn_is_the_templates(make_small, case):
    template, _, spans = CASES[case]
    tokenizer = make_small("smollm", chat_template=template)
    end = turn_end(tokenizer, ASK, where="p")
    assert spans[-1].endswith(tokenizer.backend.id_to_token(end))
    bare = make_small("smollm", chat_template="{{ messages[-1].content }}")
    assert turn_end(bare, ASK, where="p") is None


def test_nothing_to_go_on_from_is_said(make_small):
    tokenizer = make_small("smollm", chat_template=CHATML)
    with pytest.raises(UserError, match="prompt 3 is empty"):
        encode_prompt(tokenizer, Prompt("prompt 3", text=""), chat=False)
    assert encode_prompt(tokenizer, Prompt("prompt 3", text=""), chat=True)
    assert encode_prompt(make_small("gemma"), Prompt("p", text=""), chat=False)  # BOS alone


def test_who_speaks_is_shown_where_it_is_not_plain():
    assert shown(Prompt("p", text="a\nb")) == "a\nb"
    assert shown(Prompt("p", messages=ASK)) == "Hi 12"
    assert shown(Prompt("p", messages=(SYSTEM, *ASK))) == "system: Be brief.\nuser: Hi 12"
    assert conversation(Prompt("p", text="Hi 12")) == ASK
