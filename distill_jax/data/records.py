"""Records as documents, and what to rename in records of other shapes."""

from typing import Any

from distill_jax.data.documents import Document
from distill_jax.data.turns import (
    checked_text,
    checked_tools,
    checked_turns,
    is_turns,
    kind,
    rename_turn,
)
from distill_jax.types import UserError

# What other data sets call the parts of a record.
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "problem", "user")
_COMPLETIONS = (
    "completion", "output", "response", "answer", "chosen", "target", "solution", "assistant",
)  # fmt: skip
_TEXTS = ("content", "body", "document", "article", "passage", "story", "code", "raw")
_TURNS = ("conversations", "conversation", "dialogue", "dialog", "turns", "chat")
_SHAPES = "'text', 'prompt' + 'completion' or 'messages'"


def document_from_record(record: Any, *, where: str, label: str) -> Document:
    """Reads a record with `messages`, `prompt` + `completion` or `text`, tried in this order.

    Prompt and completion are both text, or both turns of one conversation. `tools` goes to the chat
    template. An optional field `label` (or `domain`) replaces the given label. Null fields count as
    absent. Raises UserError naming `where` if the record has none of the known fields, or one of
    the wrong type.
    """
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: the record is {kind(record)}, not an object: "
            'write records such as {"text": "..."}'
        )
    present = {name: value for name, value in record.items() if value is not None}
    label = str(present.get("label", present.get("domain", label)))
    checked_text(label, "label", where)
    if "messages" in present:
        messages = checked_turns(present["messages"], "messages", where)
        tools = checked_tools(present.get("tools"), where)
        return Document(where, label, messages=messages, tools=tools)
    if "completion" in present:
        if "prompt" not in present:
            raise UserError(f"{where}: 'completion' without 'prompt': add the field 'prompt'")
        return _of_pair(present, where, label)
    if "text" in present:
        return Document(where, label, text=checked_text(present["text"], "text", where))
    if null := [name for name in ("messages", "completion", "text") if name in record]:
        raise UserError(f"{where}: its {null[0]!r} is null: remove the record, or give it one")
    raise UserError(f"{where}: {_what_to_rename(present, _shown(record))}")


def _shown(record: dict[str, Any]) -> list[str]:
    """The names of fields as a line has room for them."""
    return [name[:40] for name in sorted(record)[:20]]


def _of_pair(present: dict[str, Any], where: str, label: str) -> Document:
    prompt, completion = present["prompt"], present["completion"]
    tools = checked_tools(present.get("tools"), where)
    if not isinstance(prompt, list) and not isinstance(completion, list):
        pair = tuple(checked_text(present[name], name, where) for name in ("prompt", "completion"))
        return Document(where, label, pair=pair, tools=tools)
    turns = checked_turns(prompt, "prompt", where)
    if turns[-1]["role"] == "assistant":
        raise UserError(
            f"{where}: 'prompt' ends in an assistant's turn, which 'completion' would go on with:"
            " begin 'completion' with that turn"
        )
    messages = (*turns, *checked_turns(completion, "completion", where))
    return Document(where, label, messages=messages, given=len(turns), tools=tools)


def _what_to_rename(present: dict[str, Any], fields: list[str]) -> str:
    """What is wrong with a record of none of the known shapes, and the remedy for its own shape."""
    for name in _TURNS:
        turns = present.get(name)
        if is_turns(turns):
            inner = rename_turn(turns[0])
            tail = f", and in each turn {inner}" if inner else ""
            return f"no 'messages' among the fields {fields}: rename {name!r} to 'messages'{tail}"
    completion = next((name for name in _COMPLETIONS if name in present), None)
    prompt = next((name for name in _PROMPTS if name in present and name != completion), None)
    if completion and prompt:
        if is_turns(present[completion]) and not is_turns(present[prompt]):
            return f"no 'messages' among the fields {fields}: rename {completion!r} to 'messages'"
        found = {prompt: "prompt", completion: "completion"}
        renames = [f"{old!r} to {new!r}" for old, new in found.items() if old != new]
        more = [name for name in ("input", "context") if name in present and name != prompt]
        tail = (
            f", and put {more[0]!r}, where there is any, at the end of the prompt" if more else ""
        )
        return (
            f"no 'prompt' + 'completion' among the fields {fields}: rename"
            f" {' and '.join(renames)}{tail}"
        )
    text = next((name for name in _TEXTS if isinstance(present.get(name), str)), None)
    if text:
        return f"no 'text' among the fields {fields}: rename {text!r} to 'text'"
    if "prompt" in present:
        return (
            f"'prompt' without 'completion' among the fields {fields}: add the field 'completion'"
        )
    return (
        f"no value for {_SHAPES} among the fields {fields}: "
        "give the fields that hold the text these names"
    )
