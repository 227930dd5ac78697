import pytest

from distill_jax.data.records import document_from_record
from distill_jax.types import UserError

USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"function": {"name": "f", "arguments": '{"x": 1}'}}


def read(record):
    return document_from_record(record, where="file:7", label="file")


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        ({"text": "a"}, "text", "a"),
        ({"text": ""}, "text", ""),
        ({"prompt": "a", "completion": "b", "text": "c"}, "pair", ("a", "b")),
        (
            {"messages": [{"role": "user", "content": "a"}], "prompt": "p"},
            "messages",
            ({"role": "user", "content": "a"},),
        ),
    ],
)
def test_a_record_gives_exactly_one_content(record, field, value):
    document = read(record)
    contents = {name: getattr(document, name) for name in ("text", "pair", "messages")}
    assert {name: v for name, v in contents.items() if v is not None} == {field: value}


@pytest.mark.parametrize(
    ("extra", "label"), [({}, "file"), ({"label": 3}, "3"), ({"domain": "code"}, "code")]
)
def test_label_is_the_records_or_the_files(extra, label):
    assert read({"text": "a", **extra}).label == label


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ([1], "of type list"),
        ({"body": "a", "title": "b"}, "['body', 'title']"),
        ({"text": None}, "its 'text' is null, or an empty cell: remove the record"),
        ({"text": 3}, "of type int"),
        ({"completion": "a"}, "without 'prompt'"),
        ({"prompt": ["a"], "completion": "a"}, "of type str"),
        ({"prompt": {"a": 1}, "completion": "a"}, "'prompt' is of type dict, not a string"),
        ({"prompt": [USER], "completion": "a"}, "'completion' is of type str, not a list of"),
        ({"prompt": "a", "completion": [ANSWER]}, "'prompt' is of type str, not a list of turns"),
        ({"prompt": [USER, ANSWER], "completion": [ANSWER]}, "'prompt' ends in an assistant's"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content"),
        ({"messages": [USER | {"content": [{"type": "image"}]}]}, "part of type 'image'"),
        ({"messages": [USER | {"content": ["a"]}]}, "part of type str"),
        ({"messages": [USER | {"content": [{"type": "text"}]}]}, "messages[0].content.text"),
        ({"messages": [ANSWER | {"tool_calls": "f()"}]}, "messages[0].tool_calls is of type str"),
        ({"messages": [ANSWER], "tools": "f("}, "'tools': not JSON"),
        ({"messages": [ANSWER], "tools": ["f"]}, "'tools' is of type list, not a list of objects"),
        ({"messages": []}, "'messages' is empty, not a list of turns"),
        ({"messages": "a"}, "messages"),
        ({"messages": ["a"]}, "messages[0] is of type str"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"text": "\ud800"}, "surrogate"),
    ],
)
def test_bad_records_are_named_in_one_line(record, says):
    with pytest.raises(UserError) as caught:
        read(record)
    message = str(caught.value)
    assert message.startswith("file:7: ")
    assert says in message
    assert ": " in message.removeprefix("file:7: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("turn", "read_as"),
    [
        (USER | {"tool_calls": None, "name": None}, USER),
        (USER | {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         USER | {"content": "ab"}),
        ({"role": "assistant", "tool_calls": [CALL]},
         {"role": "assistant", "content": None, "tool_calls": [CALL]}),
        (ANSWER | {"tool_calls": [CALL], "reasoning_content": "r"},
         ANSWER | {"tool_calls": [CALL], "reasoning_content": "r"}),
        ({"role": "tool", "tool_call_id": "1", "content": "7"},
         {"role": "tool", "tool_call_id": "1", "content": "7"}),
    ],
)  # fmt: skip
def test_turns_are_read_in_the_shapes_that_data_sets_have(turn, read_as):
    assert read({"messages": [turn]}).messages == (read_as,)


def test_a_conversational_completion_is_what_follows_the_turns_that_are_given():
    document = read({"prompt": [USER, ANSWER, USER], "completion": [ANSWER]})
    assert document.messages == (USER, ANSWER, USER, ANSWER)
    assert document.given == 3


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]'])
def test_tools_are_a_list_or_its_json(tools):
    assert read({"messages": [USER], "tools": tools}).tools == ({"name": "f"},)
    assert read({"messages": [USER], "tools": tools[:0]}).tools is None
