"""Calls of tools as chat templates expect them: arguments that are an object and its JSON at once.

Some templates write arguments by `tojson` or look into them, as transformers recommends; others put
the JSON text, as the OpenAI interface gives it, between strings. Data sets have either.
"""

import json
from collections.abc import Sequence
from typing import Any


class Arguments(dict):
    """The arguments of a call; as text, or next to text, their JSON.

    >>> arguments = Arguments({"city": "Köln"}, '{"city":"Köln"}')
    >>> arguments["city"], "call: " + arguments
    ('Köln', 'call: {"city":"Köln"}')
    """

    def __init__(self, values: dict[str, Any], text: str):
        super().__init__(values)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def for_template(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same turns with Arguments in every call; what is no JSON object stays as it is."""
    return [
        turn | {"tool_calls": [_with_arguments(call) for call in turn["tool_calls"]]}
        if turn.get("tool_calls")
        else turn
        for turn in messages
    ]


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """A call in either form: {"function": {"name", "arguments"}} or {"name", "arguments"}."""
    changed = dict(call)
    if isinstance(call.get("function"), dict):
        changed["function"] = _with_arguments(call["function"])
    if "arguments" in call:
        changed["arguments"] = _arguments(call["arguments"])
    return changed


def _arguments(value: Any) -> Any:
    if isinstance(value, dict):
        return Arguments(value, json.dumps(value, ensure_ascii=False))
    try:
        read = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):  # ValueError: also of a number of thousands of digits
        read = None
    return Arguments(read, value) if isinstance(read, dict) else value
