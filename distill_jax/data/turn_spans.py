"""Where in a rendered conversation the assistant's turns are, found by rendering alone."""

from collections.abc import Sequence
from typing import Any

from distill_jax.data.templates import Failed, Renderer

Messages = Sequence[dict[str, Any]]
Span = tuple[int, int]  # [start, end) in characters

# Replaces the content of an assistant's turn. A private-use character: no template splits it.
STAND_IN = "\ue0d1"
# Each span takes renderings of the whole conversation up to so many turns, which are fast.
WHOLE = 100


def find(render: Renderer, messages: Messages, given: int) -> tuple[str, list[Span]]:
    """The text of a conversation, and a span for every turn of the assistant.

    A span runs from the end of the generation prompt to the end of the turn. Templates need no
    `{% generation %}` and may rewrite earlier turns (drop their reasoning) or merge the system
    prompt into another turn. given: turns at the beginning that have no span.
    Raises Failed if the template fails, or if a turn cannot be found, or if there is none.
    """
    if not any(message["role"] == "assistant" for message in messages[given:]):
        roles = [message["role"] for message in messages[given:]]
        raise Failed(
            f"no assistant turn among the roles {roles}, so no token would be "
            "trained: add one or remove the record"
        )
    messages, text = _rendered(render, messages)
    wanted = [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and i >= given]
    spans = _in_windows(render, messages, wanted, text) if len(messages) > WHOLE else None
    return text, spans or [_span(render, messages, i, text) for i in wanted]


def _in_windows(
    render: Renderer, messages: Messages, wanted: list[int], text: str
) -> list[Span] | None:
    """The spans of a long conversation in linear time; None where that cannot be done.

    A window is the turns before the assistant's first, those from one of its turns to the second
    next, and the last question, since templates ask where that is. Every span, and what lies
    between it and the one before, is found in a window; they have to follow one another in the
    text, and the first, middle and last one to be those found in the whole.
    """
    turns = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    head, asked = turns[0], [i for i, turn in enumerate(messages) if turn["role"] == "user"]
    spans = [_span(render, messages, wanted[0], text)]
    try:
        for at in range(len(turns) - len(wanted) + 1, len(turns)):
            first, this = turns[at - 1], turns[at]
            after = turns[at + 1] + 1 if at + 1 < len(turns) else len(messages)
            end = messages[asked[-1] :][:1] if asked and asked[-1] >= after else []
            window = [*messages[:head], *messages[first:after], *end]
            shown = render(window)
            _, before = _span(render, window, head, shown)
            start, stop = _span(render, window, head + this - first, shown)
            place = spans[-1][1]
            if start < before or not text.startswith(shown[before:stop], place):
                return None
            spans.append((place + start - before, place + stop - before))
    except Failed:
        return None  # e.g. a template that wants another order of turns
    known = {k: _span(render, messages, wanted[k], text) for k in (len(wanted) // 2, -1)}
    return spans if all(spans[k] == span for k, span in known.items()) else None


def _rendered(render: Renderer, messages: Messages) -> tuple[Messages, str]:
    """The turns in the form in which the template writes their calls of tools, and the text.

    A turn that only calls has no content, or null: transformers leaves it out, some templates ask
    for null. Raises Failed where neither text has the calls: they would not be trained.
    """
    if not any(turn.get("tool_calls") for turn in messages):
        return messages, render(messages)
    absent = [{k: v for k, v in turn.items() if v is not None} for turn in messages]
    without = [{"content": "", **turn} for turn in absent]
    without = [{k: v for k, v in turn.items() if k != "tool_calls"} for turn in without]
    word = [{"content": "None", **turn} for turn in absent]
    for form, empty in ((absent, [without]), (messages, [without, word])):
        text = _or_none(render, form)
        if text is not None and all(text != _or_none(render, other) for other in empty):
            return form, text
    render(without)  # fails where something else than the calls is wrong
    remedy = "use a model whose template writes them, or write them into the content"
    try:
        render(absent)
    except Failed as error:
        raise Failed(f"{error}. Without the calls of tools it does not fail: {remedy}") from error
    raise Failed(
        "the chat template leaves out the calls of tools, so that they would not"
        f" be trained: {remedy}"
    )


def _or_none(render: Renderer, messages: Messages) -> str | None:
    try:
        return render(messages)
    except Failed:  # as a template may refuse one form and not another
        return None


def _span(render: Renderer, messages: Messages, i: int, text: str) -> Span:
    span = _span_between_prefixes(render, messages, i, text)
    turn = messages[i] | {"content": STAND_IN}
    if span is None:
        span = _span_by_stand_in(render, messages, i, text, turn)
    if span is None and turn.pop("tool_calls", None):
        span = _span_by_stand_in(render, messages, i, text, turn)
    if span is None:
        raise Failed(
            f"turn {i}, of the assistant, cannot be found in the rendered chat "
            "template: write the record with 'prompt' and 'completion'"
        )
    return span


def _generation_prompt_end(render: Renderer, messages: Messages, i: int, text: str) -> int | None:
    """Where turn i begins, if the turns before it render to a prefix of the text."""
    try:
        prompt = render(messages[:i], add_generation_prompt=True)
    except Failed:
        return None  # e.g. a template that refuses an empty conversation; the whole one rendered
    return len(prompt) if text.startswith(prompt) else None


def _span_between_prefixes(render: Renderer, messages: Messages, i: int, text: str) -> Span | None:
    start = _generation_prompt_end(render, messages, i, text)
    until = render(messages[: i + 1])
    if start is None or start >= len(until) or not text.startswith(until):
        return None
    return start, len(until)


def _span_by_stand_in(
    render: Renderer, messages: Messages, i: int, text: str, turn: dict[str, Any]
) -> Span | None:
    """Renders `turn`, whose content is the stand-in, for turn i: what is around it stays."""
    try:
        other = render([*messages[:i], turn, *messages[i + 1 :]])
        last = render([*messages[:i], turn])
    except Failed:
        return None  # e.g. a template that wants an answer of a tool to follow a call alone
    rest = other.partition(STAND_IN)[2]
    start = _generation_prompt_end(render, messages, i, text)
    if start is None:
        start = _common_prefix(text, other)
    end = len(text) - len(rest)
    if other.count(STAND_IN) != 1 or not text.endswith(rest) or start > end:
        return None
    closing = last.partition(STAND_IN)[2]
    return start, end + _common_prefix(closing, text[end:])


def _common_prefix(a: str, b: str) -> int:
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b)))
