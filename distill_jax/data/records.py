"""Records as documents, each by its shape."""

from collections.abc import Mapping
from typing import Any

from distill_jax.data.documents import Document
from distill_jax.data.shapes import KINDS, Shape, Unclear, recognised, shown
from distill_jax.data.sharegpt import from_sharegpt, is_sharegpt
from distill_jax.data.turns import checked_text, checked_tools, checked_turns, kind
from distill_jax.types import UserError


def document_from_record(record: Any, *, where: str, label: str) -> Document:
    """The document of a record that stands alone, of whatever shape.

    Raises UserError naming `where` if the record has none, or a field of the wrong type.
    """
    check_object(record, where)
    shape = recognised(record)
    if isinstance(shape, Unclear):
        remedy = shape.remedy or "give its parts the names 'prompt', 'text' or 'messages'"
        raise UserError(f"{where}: {shape.says}: {remedy}")
    return document_of(shape, record, where=where, label=label)


def check_object(record: Any, where: str) -> None:
    """Raises UserError for a record that is no object."""
    if not isinstance(record, dict):
        raise UserError(
            f"{where}: the record is {kind(record)}, not an object: "
            'write records such as {"text": "..."}'
        )


def document_of(shape: Shape, record: Mapping[str, Any], *, where: str, label: str) -> Document:
    """The document of a record of a known shape.

    Prompt and completion are both text, or both turns of one conversation. `tools` goes to the chat
    template. An optional field `label` (or `domain`) replaces the given label. Null fields count as
    absent. Raises UserError naming `where` if a field is absent or of the wrong type.
    """
    present = {name: value for name, value in record.items() if value is not None}
    for part in KINDS[shape.kind].needed:
        if (field := shape.field(part)) in present:
            continue
        if field in record:
            says = f"{where}: its {field!r} is null, or an empty cell"
            raise UserError(f"{says}: remove the record, or give it one")
        raise UserError(
            f"{where}: no {field!r} among the fields {shown(record)}: add it, or see"
            " config.data.fields"
        )
    label = str(present.get(shape.field("label"), present.get("domain", label)))
    checked_text(label, "label", where)
    tools = None if shape.kind == "text" else present.get(shape.field("tools"))
    parts = {part: (field, present.get(field)) for part, field in shape.fields}
    return READERS[shape.kind](Document(where, label, tools=checked_tools(tools, where)), parts)


# Of each function the arguments are a document without content, and (field, value) by part.
Parts = Mapping[str, tuple[str, Any]]


def _of_text(document: Document, parts: Parts) -> Document:
    field, value = parts["text"]
    return document._replace(text=checked_text(value, field, document.name))


def _of_turns(document: Document, parts: Parts) -> Document:
    field, turns = parts["messages"]
    messages = _turns(turns, field, document.name)
    field, system = parts.get("system", ("system", None))
    if system and messages[0]["role"] != "system":
        content = checked_text(system, field, document.name)
        messages = ({"role": "system", "content": content}, *messages)
    return document._replace(messages=messages)


def _of_pair(document: Document, parts: Parts) -> Document:
    (prompt_field, prompt), (field, completion) = parts["prompt"], parts["completion"]
    where = document.name
    if not isinstance(prompt, list) and not isinstance(completion, list):
        pair = (checked_text(prompt, prompt_field, where), checked_text(completion, field, where))
        return document._replace(pair=pair)
    given = _given(prompt, prompt_field, field, where)
    messages = (*given, *_turns(completion, field, where))
    return document._replace(messages=messages, given=len(given))


def _of_alpaca(document: Document, parts: Parts) -> Document:
    instruction, completion = (
        checked_text(parts[part][1], parts[part][0], document.name)
        for part in ("instruction", "output")
    )
    field, value = parts.get("input", ("input", None))
    context = checked_text(value, field, document.name) if value else ""
    prompt = f"{instruction}\n{context}" if context else instruction
    return document._replace(pair=(prompt, completion), input=context)


def _of_preference(document: Document, parts: Parts) -> Document:
    """The chosen answer, or conversation; the other is kept beside it."""
    field, value = parts.get("prompt", ("prompt", None))
    chosen, rejected = (
        _answered(document, field, value, *parts[part]) for part in ("chosen", "rejected")
    )
    other = rejected.text if rejected.text is not None else rejected.pair or rejected.messages
    return chosen._replace(rejected=other)


def _answered(
    document: Document, prompt_field: str, prompt: Any, field: str, answer: Any
) -> Document:
    """A prompt, if any, with one of its answers: a text, a turn, turns, or all of them."""
    where = document.name
    answer = [answer] if isinstance(answer, dict) else answer
    if not isinstance(answer, list):
        if prompt is None:
            return document._replace(text=checked_text(answer, field, where), tools=None)
        if not isinstance(prompt, list):
            return _of_pair(
                document, {"prompt": (prompt_field, prompt), "completion": (field, answer)}
            )
        answer = [{"role": "assistant", "content": checked_text(answer, field, where)}]
    turns = _turns(answer, field, where)
    if prompt is None or turns[0]["role"] != "assistant":
        return document._replace(messages=turns)  # with the prompt in it
    if isinstance(prompt, list):
        given = _given(prompt, prompt_field, field, where)
    else:
        given = ({"role": "user", "content": checked_text(prompt, prompt_field, where)},)
    return document._replace(messages=(*given, *turns), given=len(given))


def _given(prompt: Any, field: str, completion: str, where: str) -> tuple[dict[str, Any], ...]:
    """The turns of a prompt."""
    turns = _turns(prompt, field, where)
    if turns[-1]["role"] == "assistant":
        raise UserError(
            f"{where}: {field!r} ends in an assistant's turn, which {completion!r} would go on"
            f" with: begin {completion!r} with that turn"
        )
    return turns


def _turns(value: Any, field: str, where: str) -> tuple[dict[str, Any], ...]:
    """Turns in either form."""
    if is_sharegpt(value):
        value = from_sharegpt(value, field, where)
    return checked_turns(value, field, where)


READERS = {
    "text": _of_text,
    "turns": _of_turns,
    "preference": _of_preference,
    "pair": _of_pair,
    "alpaca": _of_alpaca,
}
