"""Shapes of records: which fields make a document, found by their names or given by a user."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_jax.data.sharegpt import is_sharegpt
from distill_jax.data.turns import is_turns, rename_turn
from distill_jax.types import UserError
from distill_jax.words import cut

# What data sets call the parts of a record.
_PROMPTS = ("prompt", "instruction", "question", "query", "input", "problem", "user")
_COMPLETIONS = ("completion", "output", "response", "answer", "target", "solution", "assistant")
_TURNS = ("conversations", "conversation", "dialogue", "dialog", "turns", "chat")
_CONTEXTS = ("input", "context")  # what an instruction is about
_TEXTS = ("content", "body", "document", "article", "passage", "story", "code", "raw")


class Kind(NamedTuple):
    """What a record becomes. title: for a line; needed and more: its parts."""

    title: str
    needed: tuple[str, ...]
    more: tuple[str, ...] = ()


KINDS = {
    "text": Kind("text", ("text",)),
    "turns": Kind("messages", ("messages",), ("system",)),
    "preference": Kind("preference pairs, of which the chosen is used", ("chosen", "rejected"),
                       ("prompt",)),
    "pair": Kind("prompt + completion", ("prompt", "completion")),
    "alpaca": Kind("Alpaca", ("instruction", "output"), ("input",)),
}  # fmt: skip
# Parts that a record of any kind may have, under these names unless data.fields gives others.
EXTRAS = ("tools", "label")


class Shape(NamedTuple):
    """A kind of record, and the field of each of its parts."""

    kind: str
    fields: tuple[tuple[str, str], ...]

    def field(self, part: str) -> str | None:
        """The field of a part; None of a part that the record does not have."""
        return dict(self.fields).get(part, part if part in EXTRAS else None)


class Unclear(NamedTuple):
    """Why a record has no shape; the remedy, or what data.fields may say to give it one."""

    says: str
    remedy: str = ""
    choices: tuple[str, ...] = ()


def recognised(record: Mapping[str, Any]) -> Shape | Unclear:
    """The shape of a record, by the names of its fields that are not null.

    `messages`, `prompt` + `completion` and `text` come first, in this order. A record of which
    several fields could be one part has no shape.
    """
    present = {name: value for name, value in record.items() if value is not None}
    if "messages" in present:
        return _shape("turns", messages="messages")
    if {"prompt", "completion"} <= present.keys():
        return _shape("pair", prompt="prompt", completion="completion")
    if "text" in present:
        return _shape("text", text="text")
    if {"chosen", "rejected"} <= present.keys():
        return _preference(present)
    turns = next((name for name in _TURNS if _are_turns(present.get(name))), None)
    if turns or "conversations" in present:
        return _shape("turns", messages=turns or "conversations", system="system")
    if {"instruction", "output"} <= present.keys() and "input" in record:
        return _shape("alpaca", instruction="instruction", input="input", output="output")
    return _pair(record, present)


def fits(shape: Shape, record: Mapping[str, Any]) -> bool:
    """Whether a record is of the shape of those before it."""
    own = recognised(record)
    if isinstance(own, Shape) and {own.kind, shape.kind} == {"alpaca", "pair"}:
        # An instruction need not have an input.
        one, other = ([field for part, field in s.fields if part != "input"] for s in (own, shape))
        return one == other and (shape.kind == "alpaca" or not record.get("input"))
    return own == shape


def title(shape: Shape, record: Mapping[str, Any]) -> str:
    """What a line says of a shape: its name, and its fields that a record has."""
    sharegpt = shape.kind == "turns" and is_sharegpt(record.get(shape.field("messages")))
    name = "ShareGPT" if sharegpt else KINDS[shape.kind].title
    return f"{name}: {', '.join(field for _, field in shape.fields if field in record)}"


def parse_fields(text: str) -> tuple[Shape, ...]:
    """The shapes that data.fields gives, tried in their order; none where it is empty.

    `question,answer` would name parts themselves, `prompt=question,completion=answer` gives them
    fields; `;` stands between shapes. Raises UserError for parts that make no record.
    """
    return tuple(_given(shape) for shape in text.split(";") if text.strip())


def shown(record: Mapping[str, Any]) -> list[str]:
    """The names of fields as a line has room for them."""
    return [str(name)[:40] for name in sorted(record, key=str)[:20]]


def _given(text: str) -> Shape:
    pairs = [part.partition("=") for part in text.split(",")]
    fields = {part.strip(): field.strip() or part.strip() for part, _, field in pairs}
    parts = fields.keys() - {*EXTRAS}
    for name, (_, needed, more) in KINDS.items():
        if {*needed} <= parts <= {*needed, *more}:
            return Shape(name, tuple(fields.items()))
    forms = [
        ",".join((*kind.needed, *(f"[{part}]" for part in kind.more))) for kind in KINDS.values()
    ]
    raise UserError(
        f"config.data.fields {cut(repr(text.strip()))} makes no record: give each part its field,"
        f" as in prompt=question,completion=answer; the parts are {' or '.join(forms)}, and for any"
        f" of these [{'],['.join(EXTRAS)}]"
    )


def _shape(kind: str, **fields: str) -> Shape:
    return Shape(kind, tuple(fields.items()))


def _are_turns(value: Any) -> bool:
    """Whether a value is a list of turns in a form that is read."""
    return is_sharegpt(value) or (is_turns(value) and {"role", "content"} <= value[0].keys())


def _preference(present: Mapping[str, Any]) -> Shape | Unclear:
    prompts = [name for name in (*_PROMPTS, *_TURNS) if name in present]
    if len(prompts) > 1 and prompts[0] != "prompt":
        choices = [_choice(prompt=name, chosen="chosen", rejected="rejected") for name in prompts]
        return Unclear(f"more than one prompt among the fields {shown(present)}", "", (*choices,))
    prompt = {"prompt": prompts[0]} if prompts else {}
    return _shape("preference", **prompt, chosen="chosen", rejected="rejected")


def _pair(record: Mapping[str, Any], present: Mapping[str, Any]) -> Shape | Unclear:
    """One prompt and one completion; where there are more, the choice."""
    prompts = [name for name in _PROMPTS if name in present]
    completions = [name for name in _COMPLETIONS if name in present]
    if not completions or not prompts:
        return _nothing(record, present, prompts, completions)
    contexts = [name for name in _CONTEXTS if name in record and prompts != [name]]
    if len(prompts) == len(completions) == 1 and not contexts:
        return _shape("pair", prompt=prompts[0], completion=completions[0])
    first = [name for name in prompts if name not in contexts] or prompts
    choices = [
        _choice(instruction=prompt, input=context, output=completion)
        for context in contexts[:1]
        for prompt in first
        for completion in completions
    ] + [_choice(prompt=p, completion=c) for p in first for c in completions]
    says = f"more than one prompt or completion among the fields {shown(record)}"
    return Unclear(says, "", (*choices[:3],))


def _choice(**fields: str) -> str:
    return ",".join(part if part == field else f"{part}={field}" for part, field in fields.items())


def _nothing(
    record: Mapping[str, Any],
    present: Mapping[str, Any],
    prompts: Sequence[str],
    completions: Sequence[str],
) -> Unclear:
    """What is wrong with a record of no shape, and the remedy for it."""
    fields = shown(record)
    for name in ("messages", "completion", "text"):
        if name in record and name not in present:
            return Unclear(
                f"its {name!r} is null, or an empty cell", "remove the record, or give it one"
            )
    for name in _TURNS:
        if is_turns(present.get(name)) and (remedy := rename_turn(present[name][0])):
            return Unclear(f"no turns in {name!r} that are known", f"in each turn {remedy}")
    if text := next((name for name in _TEXTS if isinstance(present.get(name), str)), None):
        return Unclear(f"no 'text' among the fields {fields}", "", (_choice(text=text),))
    if prompts and "chosen" in present:
        part = "messages" if is_turns(present["chosen"]) else "completion"
        given = {} if part == "messages" else {"prompt": prompts[0]}
        choice = _choice(**given, **{part: "chosen"})
        return Unclear(f"'chosen' without 'rejected' among the fields {fields}", "", (choice,))
    for found, missing in ((prompts, "completion"), (completions, "prompt")):
        if found:
            says = f"{found[0]!r} without {missing!r} among the fields {fields}"
            return Unclear(says, f"add the field {missing!r}")
    if inner := next((name for name, value in present.items() if is_turns(value)), None):
        says = f"no record, but a list of them in {inner!r}"
        return Unclear(says, "write that list as one array, or one record per line")
    return Unclear(
        f"no value for 'text', 'prompt' + 'completion' or 'messages' among the fields {fields}",
        "give the fields that hold the text these names",
        ("text=FIELD", "prompt=FIELD,completion=FIELD"),
    )
