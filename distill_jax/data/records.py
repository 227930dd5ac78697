"""Records as documents, and what to rename in records of other shapes."""

from typing import Any

from distill_jax.data.documents import Document
from distill_jax.types import UserError

# What other data sets call the parts of a record.
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "problem", "user")
_COMPLETIONS = (
    "completion", "output", "response", "answer", "chosen", "target", "solution", "assistant",
)  # fmt: skip
_TEXTS = ("content", "body", "document", "article", "passage", "story", "code", "raw")
_TURNS = ("conversations", "conversation", "dialogue", "dialog", "turns", "chat")
_ROLES = ("role", "from", "speaker", "author")
_CONTENTS = ("content", "value", "text", "message")
_SHAPES = "'text', 'prompt' + 'completion' or 'messages'"


def document_from_record(record: Any, *, where: str, label: str) -> Document:
    """Reads a record with `messages`, `prompt` + `completion` or `text`, tried in this order.

    An optional field `label` (or `domain`) replaces the given label. Null fields count as absent.
    Raises UserError naming `where` if the record has none of the known fields, or one of the wrong
    type.
    """
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: the record is {_kind(record)}, not an object: "
            'write records such as {"text": "..."}'
        )
    present = {name: value for name, value in record.items() if value is not None}
    label = str(present.get("label", present.get("domain", label)))
    if "messages" in present:
        messages = _checked_messages(present["messages"], where)
        return Document(where, label, messages=messages)
    if "completion" in present:
        if "prompt" not in present:
            raise UserError(f"{where}: 'completion' without 'prompt': add the field 'prompt'")
        prompt = _checked_text(present["prompt"], "prompt", where)
        return Document(
            where, label, pair=(prompt, _checked_text(present["completion"], "completion", where))
        )
    if "text" in present:
        return Document(where, label, text=_checked_text(present["text"], "text", where))
    raise UserError(f"{where}: {_what_to_rename(present, sorted(record))}")


def _what_to_rename(present: dict[str, Any], fields: list[str]) -> str:
    """What is wrong with a record of none of the known shapes, and the remedy for its own shape."""
    for name in _TURNS:
        turns = present.get(name)
        if _is_turns(turns):
            inner = _rename_turn(turns[0])
            tail = f", and in each turn {inner}" if inner else ""
            return f"no 'messages' among the fields {fields}: rename {name!r} to 'messages'{tail}"
    completion = next((name for name in _COMPLETIONS if name in present), None)
    prompt = next((name for name in _PROMPTS if name in present and name != completion), None)
    if completion and prompt:
        if _is_turns(present[completion]) and not _is_turns(present[prompt]):
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


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _rename_turn(turn: dict[str, Any]) -> str:
    """The renames that make {"role", "content"} of a turn; empty where there are none to make."""
    role = next((name for name in _ROLES if name in turn), None)
    content = next((name for name in _CONTENTS if name in turn), None)
    if not role or not content:
        return ""
    renames = [f"{role!r} to 'role' (human to user, gpt to assistant)"] if role != "role" else []
    renames += [f"{content!r} to 'content'"] if content != "content" else []
    return f"rename {' and '.join(renames)}" if renames else ""


def _checked_messages(messages: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where}: 'messages' is {_kind(messages)}, not a list of turns: "
            'write [{"role": "user", "content": "..."}, ...]'
        )
    for turn, message in enumerate(messages):
        if not isinstance(message, dict):
            raise UserError(
                f"{where}: turn {turn} of 'messages' is {_kind(message)}, not an object: "
                'write {"role": ..., "content": ...}'
            )
        if renames := _rename_turn(message):
            raise UserError(
                f"{where}: turn {turn} of 'messages' has the fields {sorted(message)}: {renames}"
            )
        for field in ("role", "content"):
            _checked_text(message.get(field), f"messages[{turn}].{field}", where)
    return tuple(messages)


def _checked_text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} is {_kind(value)}, not a string: write it as text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {field!r} holds an unpaired surrogate at character {error.start}: "
            "write the text as UTF-8"
        ) from error
    return value


def _kind(value: Any) -> str:
    return "null or absent" if value is None else f"of type {type(value).__name__}"
