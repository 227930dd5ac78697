"""Chat messages as text, and the spans of it that the assistant wrote."""

import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_jax.data.tokenizer import Tokenizer
from distill_jax.data.tool_calls import for_template
from distill_jax.types import UserError

Messages = Sequence[dict[str, Any]]
Span = tuple[int, int]  # [start, end) in characters

# The date that templates see: fixed, so that the same data always gives the same tokens.
TODAY = datetime.datetime(2024, 7, 26)

# Replaces the content of an assistant's turn. A private-use character: no template splits it.
_STAND_IN = "\ue0d1"


class Rendered(NamedTuple):
    """A conversation as text, and the spans of it that the assistant wrote, one per turn."""

    text: str
    assistant_spans: list[Span]


def render_messages(
    tokenizer: Tokenizer,
    messages: Messages,
    *,
    add_generation_prompt: bool,
    where: str,
    tools: Messages | None = None,
) -> str:
    """Renders as transformers' apply_chat_template does. tools: their JSON schemas.

    Raises UserError naming `where` if there is no chat template or the template fails.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{where}: the tokenizer has no chat template, which turns need: use a chat model, or"
            " records whose 'prompt' and 'completion' are text, with data.template plain"
        )
    try:
        return _compiled(tokenizer.chat_template).render(
            messages=for_template(messages),
            add_generation_prompt=add_generation_prompt,
            tools=list(tools) if tools else None,
            documents=None,
            **tokenizer.special_tokens,
        )
    # A template is a program: besides jinja's own errors it may add None to a string or look up a
    # missing key.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: the chat template fails on these messages ({reason}): "
            "change the messages or the model's chat template"
        ) from error


def render_with_spans(
    tokenizer: Tokenizer,
    messages: Messages,
    *,
    where: str,
    given: int = 0,
    tools: Messages | None = None,
) -> Rendered:
    """Renders a conversation and finds the spans that the assistant has to generate.

    A span runs from the end of the generation prompt to the token that closes the turn, without the
    white space between turns. Spans are found only by rendering, so templates need no
    `{% generation %}` and may rewrite earlier turns (drop their reasoning) or merge the system
    prompt into another turn. given: turns at the beginning that have no span.
    Raises UserError naming `where` if the template fails, or if an assistant turn cannot be found
    in the text, or if there is none.
    """
    if not any(message["role"] == "assistant" for message in messages[given:]):
        roles = [message["role"] for message in messages[given:]]
        raise UserError(
            f"{where}: no assistant turn among the roles {roles}, so no token would be "
            "trained: add one or remove the record"
        )
    render = _Renderer(tokenizer, where, tools)
    messages, text = _rendered(render, messages)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant" and i >= given:
            start, end = _span(render, messages, i, text)
            spans.append((start, _without_separator(text, start, end, tokenizer.added_tokens)))
    return Rendered(text, spans)


def turn_end(tokenizer: Tokenizer, messages: Messages, *, where: str) -> int | None:
    """The token that closes the assistant's next turn; None where the template puts none.

    Raises UserError naming `where` if the template fails.
    """
    turn = {"role": "assistant", "content": _STAND_IN}
    text = render_messages(tokenizer, [*messages, turn], add_generation_prompt=False, where=where)
    added = tokenizer.backend.get_added_tokens_decoder()
    closing = tokenizer.offsets.encode(text.rpartition(_STAND_IN)[2]).ids
    return next((token for token in closing if token in added), None)


class _Renderer(NamedTuple):
    tokenizer: Tokenizer
    where: str
    tools: Messages | None

    def __call__(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        return render_messages(
            self.tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            where=self.where,
            tools=self.tools,
        )


def _rendered(render: _Renderer, messages: Messages) -> tuple[Messages, str]:
    """The turns in the form in which the template writes their calls of tools, and the text.

    A turn that only calls has no content, or null: transformers leaves it out, some templates ask
    for null. Raises UserError where neither text has the calls: they would not be trained.
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
    except UserError as error:
        raise UserError(
            f"{error}. Without the calls of tools it does not fail: {remedy}"
        ) from error
    raise UserError(
        f"{render.where}: the chat template leaves out the calls of tools, so that they would not"
        f" be trained: {remedy}"
    )


def _or_none(render: _Renderer, messages: Messages) -> str | None:
    try:
        return render(messages)
    except UserError:  # as a template may refuse one form and not another
        return None


def _span(render: _Renderer, messages: Messages, i: int, text: str) -> Span:
    span = _span_between_prefixes(render, messages, i, text)
    turn = messages[i] | {"content": _STAND_IN}
    if span is None:
        span = _span_by_stand_in(render, messages, i, text, turn)
    if span is None and turn.pop("tool_calls", None):
        span = _span_by_stand_in(render, messages, i, text, turn)
    if span is None:
        raise UserError(
            f"{render.where}: turn {i}, of the assistant, cannot be found in the rendered chat "
            "template: write the record with 'prompt' and 'completion'"
        )
    return span


def _generation_prompt_end(render: _Renderer, messages: Messages, i: int, text: str) -> int | None:
    """Where turn i begins, if the turns before it render to a prefix of the text."""
    try:
        prompt = render(messages[:i], add_generation_prompt=True)
    except UserError:
        return None  # e.g. a template that refuses an empty conversation; the whole one rendered
    return len(prompt) if text.startswith(prompt) else None


def _span_between_prefixes(render: _Renderer, messages: Messages, i: int, text: str) -> Span | None:
    start = _generation_prompt_end(render, messages, i, text)
    until = render(messages[: i + 1])
    if start is None or start >= len(until) or not text.startswith(until):
        return None
    return start, len(until)


def _span_by_stand_in(
    render: _Renderer, messages: Messages, i: int, text: str, turn: dict[str, Any]
) -> Span | None:
    """Renders `turn`, whose content is the stand-in, for turn i: what is around it stays."""
    try:
        other = render([*messages[:i], turn, *messages[i + 1 :]])
        last = render([*messages[:i], turn])
    except UserError:
        return None  # e.g. a template that wants an answer of a tool to follow a call alone
    rest = other.partition(_STAND_IN)[2]
    start = _generation_prompt_end(render, messages, i, text)
    if start is None:
        start = _common_prefix(text, other)
    end = len(text) - len(rest)
    if other.count(_STAND_IN) != 1 or not text.endswith(rest) or start > end:
        return None
    closing = last.partition(_STAND_IN)[2]
    return start, end + _common_prefix(closing, text[end:])


def _common_prefix(a: str, b: str) -> int:
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b)))


def _without_separator(text: str, start: int, end: int, added_tokens: tuple[str, ...]) -> int:
    """The end of a span without white space after the token that closes the turn."""
    closed = start + len(text[start:end].rstrip())
    return closed if text[start:closed].endswith(added_tokens) else end


class _Generation(Extension):
    """Accepts `{% generation %}` around an assistant's content; it renders as the content."""

    tags = {"generation"}  # noqa: RUF012 (jinja's interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache
def _compiled(source: str) -> jinja2.Template:
    """A compiled template in the environment that chat templates expect.

    Templates come with downloaded models: they run in jinja's sandbox and cannot change messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    # Jinja's own filter escapes HTML, which models were not trained on.
    environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(source)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
