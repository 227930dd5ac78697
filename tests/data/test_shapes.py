"""Which fields of a record make a document, found by their names or given."""

import pytest

from distill_jax.data.shapes import KINDS, Shape, Unclear, fits, parse_fields, recognised, title
from distill_jax.types import UserError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
CHOICE = {"chosen": "a", "rejected": "b"}
NAMED = {
    "text: text": {"text": "a", "id": 1},
    "messages: messages": {"messages": [USER], "prompt": "p", **CHOICE},
    "messages: conversation": {"conversation": [USER], "id": 1},
    "ShareGPT: conversations": {"id": "1", "conversations": [HUMAN, GPT]},
    "ShareGPT: conversations, system": {"conversations": [HUMAN], "system": "s"},
    "ShareGPT: messages": {"messages": [HUMAN]},
    "Alpaca: instruction, input, output": {"instruction": "a", "input": "", "output": "b"},
    "prompt + completion: prompt, completion": {"prompt": "a", "completion": "b", "text": "c"},
    "prompt + completion: question, answer": {"question": "a", "answer": "b"} | {"id": 3},
    "prompt + completion: input, output": {"input": "a", "output": "b"},
    "prompt + completion: query, response": {"query": "a", "response": "b"},
    "prompt + completion: instruction, output": {"instruction": "a", "output": "b"},
    "prompt + completion: instruction, response": {"instruction": "a", "response": "b"},
    "prompt + completion: prompt, response": {"prompt": "a", "response": "b"},
    "prompt + completion: problem, solution": {"problem": "a", "solution": "b"},
    "preference pairs, of which the chosen is used: chosen, rejected": CHOICE,
    "preference pairs, of which the chosen is used: prompt, chosen, rejected": {"prompt": "a"}
    | {"question": "a", **CHOICE},
    "preference pairs, of which the chosen is used: question, chosen, rejected": {"question": "a"}
    | {"system": "", **CHOICE},
}


@pytest.mark.parametrize("name", NAMED)
def test_shapes_are_recognised_by_the_names_of_fields(name):
    record = NAMED[name]
    shape = recognised(record)
    assert isinstance(shape, Shape), shape
    assert title(shape, record) == name
    assert fits(shape, record)


@pytest.mark.parametrize("name", NAMED)
def test_given_fields_are_those_that_are_recognised(name):
    """What data.fields says of the same record gives the same shape."""
    record = NAMED[name]
    shape = recognised(record)
    fields = [(part, field) for part, field in shape.fields if field in record]
    [given] = parse_fields(",".join(f"{part}={field}" for part, field in fields))
    assert given == Shape(shape.kind, tuple(fields))


@pytest.mark.parametrize(
    ("record", "choices"),
    [
        (
            {"instruction": "a", "context": "", "response": "b"},
            ["instruction,input=context,output=response", "prompt=instruction,completion=response"],
        ),
        (
            {"problem": "a", "solution": "b", "answer": "c"},
            ["prompt=problem,completion=answer", "prompt=problem,completion=solution"],
        ),
        (
            {"instruction": "a", "input": "c", "response": "b"},
            ["instruction,input,output=response"],
        ),
        ({"question": "a", "query": "b", **CHOICE}, ["prompt=question,chosen,rejected"]),
        ({"content": "a", "id": 1}, ["text=content"]),
        ({"prompt": "a", "chosen": "b"}, ["prompt,completion=chosen"]),
        ({"prompt": "a", "chosen": [USER, ANSWER]}, ["messages=chosen"]),
    ],
)
def test_where_several_fields_may_be_a_part_the_choice_is_named(record, choices):
    found = recognised(record)
    assert isinstance(found, Unclear)
    assert list(found.choices[: len(choices)]) == choices
    for choice in found.choices:
        [shape] = parse_fields(choice)
        assert {field for _, field in shape.fields} <= record.keys()


@pytest.mark.parametrize(
    ("record", "says", "remedy"),
    [
        ({"text": None}, "its 'text' is null", "remove the record"),
        ({"prompt": "a", "completion": None}, "its 'completion' is null", "remove the record"),
        ({"prompt": "a"}, "'prompt' without 'completion'", "add the field 'completion'"),
        ({"completion": "a"}, "'completion' without 'prompt'", "add the field 'prompt'"),
        ({"id": 1}, "among the fields ['id']", "give the fields"),
        ({"data": [{"text": "a"}], "version": 1}, "a list of them in 'data'", "write that list"),
        ({"turns": [{"speaker": "a", "text": "b"}]}, "in 'turns'", "rename 'speaker' to 'role'"),
    ],
)
def test_what_a_record_lacks_is_said_with_its_remedy(record, says, remedy):
    found = recognised(record)
    assert says in found.says
    assert found.remedy.startswith((remedy, f"in each turn {remedy}"))


def test_an_instruction_need_not_have_an_input():
    alpaca = recognised({"instruction": "a", "input": "b", "output": "c"})
    pair = recognised({"instruction": "a", "output": "c"})
    assert fits(alpaca, {"instruction": "a", "output": "c"})
    assert fits(pair, {"instruction": "a", "input": "", "output": "c"})
    assert not fits(pair, {"instruction": "a", "input": "b", "output": "c"})
    assert not fits(alpaca, {"question": "a", "answer": "c"})


def test_shapes_that_are_given_stand_in_their_order():
    first, second = parse_fields(" prompt = a b , completion=c ; text=d ")
    assert first == Shape("pair", (("prompt", "a b"), ("completion", "c")))
    assert second == Shape("text", (("text", "d"),))
    assert parse_fields("") == ()


@pytest.mark.parametrize("given", ["a", "prompt", "text,prompt", "prompt=a,completion=b,c=d", "="])
def test_parts_that_make_no_record_are_one_line(given):
    with pytest.raises(UserError, match=r"config.data.fields .* makes no record") as caught:
        parse_fields(given)
    assert all(kind.needed[0] in str(caught.value) for kind in KINDS.values())
