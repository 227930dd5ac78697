"""The turns of a conversation, and the tools in it, as records write them."""

import json
from typing import Any

from distill_jax.types import UserError
from distill_jax.untrusted import parse_json

# What data sets of other shapes call the parts of a turn.
_ROLES = ("role", "from", "speaker", "author")
_CONTENTS = ("content", "value", "text", "message")


def checked_turns(turns: Any, field: str, where: str) -> tuple[dict[str, Any], ...]:
    """Turns whose content is a string, or None in a turn that calls tools and says nothing.

    Text parts are joined; other null fields count as absent. Raises UserError naming `where`.
    """
    if not isinstance(turns, list) or not turns:
        what = "empty" if turns == [] else kind(turns)
        raise UserError(
            f"{where}: {field!r} is {what}, not a list of turns: "
            'write [{"role": "user", "content": "..."}, ...]'
        )
    return tuple(_checked_turn(turn, f"{field}[{i}]", where) for i, turn in enumerate(turns))


def _checked_turn(turn: Any, field: str, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise UserError(
            f"{where}: {field} is {kind(turn)}, not an object: "
            'write {"role": ..., "content": ...}'
        )
    if renames := rename_turn(turn):
        raise UserError(f"{where}: {field} has the fields {sorted(turn)}: {renames}")
    kept = {name: value for name, value in turn.items() if value is not None}
    checked_text(kept.get("role"), f"{field}.role", where)
    if len(kept) > 2:  # more than role and content
        checked_json({k: v for k, v in kept.items() if k != "content"}, field, where)
    content, calls = kept.get("content"), kept.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or not all(map(_is_object, calls))):
        raise UserError(
            f"{where}: {field}.tool_calls is {kind(calls)}, not a list of objects: write"
            ' [{"type": "function", "function": {"name": ..., "arguments": {...}}}]'
        )
    if content is None and calls:
        return kept | {"content": None}
    if isinstance(content, list):
        content = "".join(_text_of(part, f"{field}.content", where) for part in content)
    return kept | {"content": checked_text(content, f"{field}.content", where)}


def _text_of(part: Any, field: str, where: str) -> str:
    """The text of a content part."""
    if not isinstance(part, dict) or part.get("type") != "text":
        what = repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
        raise UserError(
            f"{where}: {field} has a part of type {what}: only parts"
            ' {"type": "text", "text": ...} are read; remove the record or the part'
        )
    return checked_text(part.get("text"), f"{field}.text", where)


def checked_tools(tools: Any, where: str) -> tuple[dict[str, Any], ...] | None:
    """The descriptions of tools, given as a list of objects or as its JSON; None without any."""
    if isinstance(tools, str) and tools:
        tools = parse_json(tools, f"{where}: 'tools'", "write a list")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(map(_is_object, tools)):
        raise UserError(
            f"{where}: 'tools' is {kind(tools)}, not a list of objects: write the JSON schemas"
            " that the model is given"
        )
    return tuple(checked_json(tools, "tools", where))


def checked_text(value: Any, field: str, where: str) -> str:
    """The value if it is text that UTF-8 can hold. Raises UserError otherwise."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {field!r} is {kind(value)}, not a string: write it as text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {field!r} holds an unpaired surrogate at character {error.start}: "
            "write the text as UTF-8"
        ) from error
    return value


def checked_json(value: Any, field: str, where: str) -> Any:
    """The value if JSON and UTF-8 can hold it. Raises UserError otherwise.

    Parquet has dates and bytes, and JSON escapes for half of a character.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: {field!r} holds what JSON cannot ({error}): write it as text"
        ) from None
    return value


def is_turns(value: Any) -> bool:
    """Whether a value looks like a list of turns, in whatever shape."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def rename_turn(turn: dict[str, Any]) -> str:
    """The renames that make {"role", "content"} of a turn; empty where there are none to make."""
    role = next((name for name in _ROLES if name in turn), None)
    content = next((name for name in _CONTENTS if name in turn), None)
    if not role or not content:
        return ""
    renames = [f"{role!r} to 'role' (human to user, gpt to assistant)"] if role != "role" else []
    renames += [f"{content!r} to 'content'"] if content != "content" else []
    return f"rename {' and '.join(renames)}" if renames else ""


def without_nulls(value: Any) -> Any:
    """The same without null fields: Arrow gives every object all fields that any object has."""
    if isinstance(value, dict):
        return {name: without_nulls(v) for name, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value


def kind(value: Any) -> str:
    """What a value of a wrong type is, in words."""
    return "null or absent" if value is None else f"of type {type(value).__name__}"


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
