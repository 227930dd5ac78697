"""Files of records: one shape each, bad records, and the tokens that come of every shape."""

import json

import pytest
import transformers

from distill_jax.data import sources
from distill_jax.data.documents import content_hash
from distill_jax.data.rows import How
from distill_jax.data.shapes import KINDS, parse_fields
from distill_jax.data.tokenizer import save_tokenizer
from distill_jax.setup.reading import TEMPLATES
from distill_jax.types import UserError
from tests.data.conftest import encode_text
from tests.data.test_chat import CHATML
from tests.tokens import tokenize_documents

SYSTEM = {"role": "system", "content": "Be brief."}
USER, ANSWER = {"role": "user", "content": "Hi 12"}, {"role": "assistant", "content": "Hello 34!"}
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes"
    " the request.\n\n### Instruction:\nAdd.\n\n### Response:\n"
)
PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further"
    " context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "Add.\n\n### Input:\n1 {x}\n2\n\n### Response:\n"
)
# Records, the text that plain makes of each, as (not trained, trained), and the turns of chat.
PLAIN = [
    ({"text": "a dog"}, ("", "a dog"), None),
    ({"prompt": "The", "completion": " dog"}, ("The", " dog"), ("The", " dog")),
    ({"question": "1 + 1?", "answer": "2 #### 2"}, ("1 + 1?", "2 #### 2"), ("1 + 1?", "2 #### 2")),
    ({"instruction": "Add.", "input": "", "output": "3"}, (ALPACA, "3"), ("Add.", "3")),
    ({"instruction": "Add.", "input": None, "output": "3"}, (ALPACA, "3"), ("Add.", "3")),
    (
        {"instruction": "Add.", "input": "1 {x}\n2", "output": "3"},
        (PAIRED, "3"),
        ("Add.\n1 {x}\n2", "3"),
    ),
    ({"chosen": "a dog", "rejected": "a cat"}, ("", "a dog"), None),
    ({"prompt": "The", "chosen": " dog", "rejected": "c"}, ("The", " dog"), ("The", " dog")),
]
FROM = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi 12"},
    {"from": "gpt", "value": "Hello 34!"},
]
OTHER = {"role": "assistant", "content": "no"}
# Records of turns, the turns that are rendered, and how many of them are given.
TURNS = [
    ({"messages": [SYSTEM, USER, ANSWER]}, [SYSTEM, USER, ANSWER], 0),
    ({"conversations": FROM}, [SYSTEM, USER, ANSWER], 0),
    ({"conversations": FROM[1:], "system": "Be brief."}, [SYSTEM, USER, ANSWER], 0),
    ({"conversations": [USER, ANSWER]}, [USER, ANSWER], 0),
    ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, [USER, ANSWER], 0),
    ({"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]}, [USER, ANSWER], 1),
    ({"prompt": "Hi 12", "chosen": [ANSWER], "rejected": [OTHER]}, [USER, ANSWER], 1),
    ({"prompt": "x", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, [USER, ANSWER], 0),
    ({"prompt": [USER], "chosen": "Hello 34!", "rejected": "no"}, [USER, ANSWER], 1),
    (
        {"conversations": FROM[1:2], "chosen": FROM[2], "rejected": {"from": "gpt", "value": "no"}},
        [USER, ANSWER],
        1,
    ),
]


def read_documents(source, **options):
    return list(sources.read_documents(source, **options))


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return str(path)


def tokens_of(documents, tokenizer):
    tokenized = tokenize_documents(documents, tokenizer)
    return tokenized.tokens.tolist(), tokenized.trained.tolist()


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: ",".join(case[0]))
def test_tokens_of_texts_are_those_of_the_plain_concatenation(tmp_path, smollm_like, case):
    record, (given, trained), _ = case
    documents = read_documents(write(tmp_path / "a.jsonl", [record]))
    tokens, marks = tokens_of([*map(TEMPLATES["plain"], documents)], smollm_like)
    whole = encode_text(smollm_like, given + trained)
    before = len(encode_text(smollm_like, given)) - 1
    assert tokens == whole
    assert marks == [0] * before + [1] * (len(whole) - before)


def rendered(tmp_path, tokenizer, turns, given):
    """Token ids and marks by transformers; the prompt is what precedes an assistant's turn."""
    save_tokenizer(tokenizer, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = theirs.apply_chat_template(turns)["input_ids"]
    marks = [0] * len(ids)
    for i, turn in enumerate(turns):
        if turn["role"] == "assistant" and i >= given:
            before = theirs.apply_chat_template(turns[:i], add_generation_prompt=True)["input_ids"]
            until = theirs.apply_chat_template(turns[: i + 1])["input_ids"]
            marks[len(before) : len(until)] = [1] * (len(until) - len(before))
    return ids, marks


# The new line after a turn is a token of its own, which is not trained.
TEMPLATE = CHATML.replace("'<|im_end|>' + '\\n'", "'<|im_end|>'")
PAIRS = [(record, [USER | {"content": p}, ANSWER | {"content": c}], 1)
         for record, _, (p, c) in (case for case in PLAIN if case[2])]  # fmt: skip


@pytest.mark.parametrize("case", TURNS + PAIRS, ids=lambda case: ",".join(case[0]))
def test_tokens_of_turns_are_those_of_transformers(tmp_path, make_small, case):
    record, turns, given = case
    tokenizer = make_small("smollm", chat_template=TEMPLATE)
    documents = read_documents(write(tmp_path / "a.jsonl", [record]))
    got = tokens_of([*map(TEMPLATES["chat"], documents)], tokenizer)
    assert got == rendered(tmp_path, tokenizer, turns, given)
    assert 1 in got[1]


def test_tools_and_calls_of_sharegpt_reach_the_template(tmp_path):
    call = {"name": "f", "arguments": {"city": "Köln"}}
    record = {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": json.dumps(call)},
            {"from": "observation", "value": "7"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": json.dumps([{"name": "f"}]),
    }
    [document] = read_documents(write(tmp_path / "a.jsonl", [record]))
    same = {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": call}],
            },
            {"role": "tool", "content": "7"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"name": "f"}],
    }
    [other] = read_documents(write(tmp_path / "b.jsonl", [same]))
    assert document.messages == other.messages
    assert content_hash(document) == content_hash(other)


def test_what_was_not_chosen_is_kept_and_changes_nothing(tmp_path):
    pairs = [{"prompt": "p", "chosen": "a", "rejected": other} for other in "bc"]
    documents = read_documents(write(tmp_path / "a.jsonl", pairs))
    assert [document.rejected for document in documents] == [("p", "b"), ("p", "c")]
    assert len({content_hash(document) for document in documents}) == 1


def test_the_input_of_an_instruction_is_part_of_what_identifies_it(tmp_path):
    records = [
        {"instruction": "a\nb", "input": "", "output": "c"},
        {"instruction": "a", "input": "b", "output": "c"},
    ]
    first, second = read_documents(write(tmp_path / "a.jsonl", records))
    assert first.pair == second.pair
    assert content_hash(first) != content_hash(second)


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"text": "a", "id": 1}] * 3, "3 records read as text: text (not read: id)"),
        (
            [{"instruction": "a", "output": "b"}] * 2
            + [{"instruction": "a", "input": "c", "output": "b"}],
            "3 records read as Alpaca: instruction, input, output",
        ),
        (
            [{"text": text} for text in ("a", "", " \n", "b")],
            "4 records read as text: text; 2 of them empty",
        ),
        (
            [{"prompt": "a", "completion": ""}],
            "1 record read as prompt + completion: prompt, completion; 1 of them empty",
        ),
        ([{"conversations": FROM}], "1 record read as ShareGPT: conversations"),
    ],
)
def test_one_line_says_as_what_a_source_was_read(tmp_path, records, said):
    path, lines = write(tmp_path / "a.jsonl", records), []
    read_documents(path, tell=lines.append)
    assert lines == [said]
    some = sources.read_documents(path, tell=lines.append)
    next(some)
    some.close()
    assert lines[1].startswith("1 record read as ")


def test_the_line_of_many_files_has_every_shape(tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "a"}] * 2)
    write(tmp_path / "b.jsonl", [{"question": "a", "answer": "b"}])
    lines = []
    assert len(read_documents(str(tmp_path / "*"), tell=lines.append)) == 3
    assert lines[0] == (
        "2 files, 2 records read as text: text; 1 record read as prompt + completion: question,"
        " answer"
    )


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (
            [{"text": "a"}, {"question": "a", "answer": "b"}],
            "a.jsonl:2: a record of prompt + completion: question, answer among those of text",
        ),
        ([{"question": "a", "answer": "b"}, {"text": "a"}], "a.jsonl:2: a record of text: text"),
        ([{"text": "a"}, {"text": None}], "a.jsonl:2: its 'text' is null"),
        ([{"text": "a"}, {"id": 1}], "a.jsonl:2: no 'text' among the fields ['id']"),
        ([{"text": "a"}] * 20 + [{"text": 1}], "a.jsonl:21: 'text' is of type int"),
        (
            [{"question": "a", "answer": "b"}, {"question": "a", "query": "a", "answer": "b"}],
            "a.jsonl:2: more than one prompt or completion",
        ),
        (
            [{"problem": "a", "solution": "b", "answer": "c"}],
            "give --config.data.fields=prompt=problem,completion=answer, or"
            " --config.data.fields=prompt=problem,completion=solution",
        ),
        ([{"conversations": []}], "'conversations' is empty, not a list of turns"),
        ([{"conversations": [{"from": "x", "value": "a"}]}], "is from 'x', and known are"),
        ([{"conversations": [FROM[1], {"value": "a"}]}], "conversations[1].role"),
        ([{"conversations": [{"from": "function_call", "value": "f("}]}], "value: not JSON"),
        ([{"conversations": [{"from": "function_call", "value": "[1]"}]}], "no call of a tool"),
        ([{"question": ["a"], "answer": "b"}], "question[0] is of type str, not an object"),
        ([{"chosen": 1, "rejected": "b"}], "'chosen' is of type int"),
    ],
)
def test_a_record_that_does_not_fit_is_named_in_one_line(tmp_path, records, says):
    with pytest.raises(UserError) as caught:
        read_documents(write(tmp_path / "a.jsonl", records))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/a.jsonl:{len(records)}: ")
    assert says in message
    assert "\n" not in message


def test_fields_that_are_given_are_read_and_no_others(tmp_path):
    how = How(parse_fields("prompt=title,completion=text;text=body"))
    path = write(
        tmp_path / "a.jsonl",
        [{"title": "a", "text": "b", "body": "c"}, {"title": "d", "text": "e"}],
    )
    assert [d.pair for d in read_documents(path, how=how)] == [("a", "b"), ("d", "e")]
    path = write(tmp_path / "b.jsonl", [{"body": "c", "text": "b"}])
    assert [d.text for d in read_documents(path, how=how)] == ["c"]
    path = write(tmp_path / "c.jsonl", [{"text": "b"}])
    with pytest.raises(UserError, match=r"c.jsonl:1: no 'title' among .* config.data.fields names"):
        read_documents(path, how=how)
    path = write(tmp_path / "d.jsonl", [{"body": "c"}, {"text": "c"}])
    with pytest.raises(UserError, match=r"d.jsonl:2: no 'body' among the fields \['text'\]"):
        read_documents(path, how=how)


BAD = {
    "not JSON": "{",
    "not UTF-8": '{"text": "\udcff"}',
    "another type": '{"text": 1}',
    "no known fields": '{"id": 1}',
    "a null": '{"text": null}',
    "another shape": '{"question": "a", "answer": "b"}',
    "no object": "[1]",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records_are_counted_where_they_may_be_left_out(tmp_path, name):
    good = ['{"text": "a"}'] * 100
    path, lines = tmp_path / "a.jsonl", []

    def read(skip=True):
        text = "\n".join([BAD[name], *good])
        path.write_bytes(text.encode(errors="surrogateescape"))
        return read_documents(str(path), how=How(skip=skip), tell=lines.append)

    assert len(read()) == 100
    assert f"100 records read as text: text; 1 left out as bad: {path}:1: " in lines[0]
    good += [BAD[name]]
    with pytest.raises(UserError, match=r"2 of 102 records are bad, more than 1%.*a.jsonl:1: "):
        read()
    with pytest.raises(UserError, match=r"a.jsonl:[12]: "):
        read(skip=False)


def test_an_assistant_that_says_nothing_is_a_bad_record(tmp_path):
    silent = {"messages": [USER, {"role": "assistant", "content": ""}]}
    path = write(
        tmp_path / "a.jsonl", [{"messages": [USER, ANSWER]}] * 200 + [silent, {"messages": [USER]}]
    )
    lines = []
    assert len(read_documents(path, how=How(skip=True), tell=lines.append)) == 200
    assert "2 left out as bad" in lines[0]
    assert "a.jsonl:201: the assistant says nothing" in lines[0]


def test_a_file_of_bad_records_alone_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"id": 1}] * 20)
    with pytest.raises(UserError, match=r"a.jsonl:1: no value for"):
        read_documents(path, how=How(skip=True))


def test_every_kind_of_record_has_its_tokens_tested():
    kinds = {"text", "pair", "alpaca", "turns", "preference"}
    assert kinds == KINDS.keys()
