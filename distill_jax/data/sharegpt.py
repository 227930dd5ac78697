"""Turns as ShareGPT's records write them, {"from", "value"}, as {"role", "content"}.

The names of the speakers are those of the data sets in this form: human and gpt of ShareGPT;
function_call and observation, with the call as JSON, as in LLaMA-Factory's data/README.md.
"""

from typing import Any

from distill_jax.types import UserError
from distill_jax.untrusted import parse_json

_CALLS = ("function_call", "tool_call")  # turns of the assistant
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "observation": "tool",
    "function_response": "tool",
    **dict.fromkeys(_CALLS, "assistant"),
}


def is_sharegpt(turns: Any) -> bool:
    """Whether a value is a list of turns in this form, by its first."""
    return (
        isinstance(turns, list)
        and bool(turns)
        and isinstance(turns[0], dict)
        and {"from", "value"} <= turns[0].keys()
        and turns[0].get("role") is None
    )


def from_sharegpt(turns: list[Any], field: str, where: str) -> list[Any]:
    """The same turns as {"role", "content"}; what else a turn has is left out.

    Raises UserError naming `where` for a speaker that is not known, or a call that is no JSON.
    """
    return [_turn(turn, f"{field}[{i}]", where) for i, turn in enumerate(turns)]


def _turn(turn: Any, field: str, where: str) -> Any:
    if not isinstance(turn, dict) or turn.get("from") is None:
        return turn  # what is wrong with it is said of all turns
    speaker = str(turn["from"]).lower().replace("-", "_")
    if speaker not in ROLES:
        raise UserError(
            f"{where}: {field} is from {str(turn['from'])[:40]!r}, and known are"
            f" {', '.join(sorted(ROLES))}: rename it in the file"
        )
    content = turn.get("value")
    if speaker not in _CALLS or not isinstance(content, str):
        return {"role": ROLES[speaker], "content": content}
    remedy = 'write {"name": ..., "arguments": {...}}, or a list of these'
    calls = parse_json(content, f"{where}: {field}.value", remedy)
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise UserError(f"{where}: {field}.value is no call of a tool: {remedy}")
    functions = [{"type": "function", "function": call} for call in calls]
    return {"role": ROLES[speaker], "content": None, "tool_calls": functions}
