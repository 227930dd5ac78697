"""Chat messages as text, and which part of the text the assistant wrote."""

import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_jax.data.tokenizer import Tokenizer
from distill_jax.types import UserError

Messages = Sequence[dict[str, Any]]
Span = tuple[int, int]  # [start, end) in characters

# What templates see as today: fixed, so that the same data gives the same tokens on every day.
TODAY = datetime.datetime(2024, 7, 26)

# Stands in for what an assistant said. A private-use character: no template splits or trims it.
_STAND_IN = "\ue0d1"


class Rendered(NamedTuple):
    """A conversation as text, and the spans of it that the assistant wrote, one a turn."""

    text: str
    assistant_spans: list[Span]


def render_messages(
    tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool, where: str
) -> str:
    """Render as transformers' apply_chat_template does.

    Raises UserError naming `where` when there is no chat template or the template fails.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{where}: the tokenizer has no chat template for 'messages': "
            "use a chat model or write records with 'prompt' and 'completion'"
        )
    try:
        return _compiled(tokenizer.chat_template).render(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **tokenizer.special_tokens,
        )
    # A template is a program from elsewhere: beside jinja's own errors it may add None to a string
    # or look up what is not there.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"{where}: the chat template fails on these messages ({error}): "
            "change the messages or the model's chat template"
        ) from error


def render_with_spans(tokenizer: Tokenizer, messages: Messages, *, where: str) -> Rendered:
    """Render a conversation and find what a model would have to write in it.

    A span runs from the end of the generation prompt to the token that closes the turn; white
    space that separates turns is not part of it. Spans are found by rendering alone, so templates
    need no `{% generation %}`, and may rewrite earlier turns (drop their reasoning) or fold the
    system prompt into another turn.
    Raises UserError naming `where` when the template fails, when a turn of the assistant cannot be
    found in the text, and when there is none.
    """
    if not any(message["role"] == "assistant" for message in messages):
        roles = [message["role"] for message in messages]
        raise UserError(
            f"{where}: no turn of an assistant among the roles {roles}, so no token would be "
            "trained: add one or leave the record out"
        )
    text = render_messages(tokenizer, messages, add_generation_prompt=False, where=where)
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            span = _span_between_prefixes(tokenizer, messages, i, text, where)
            start, end = span or _span_by_stand_in(tokenizer, messages, i, text, where)
            spans.append((start, _without_separator(text, start, end, tokenizer.added_tokens)))
    return Rendered(text, spans)


def _generation_prompt_end(
    tokenizer: Tokenizer, messages: Messages, i: int, text: str, where: str
) -> int | None:
    """Where turn i begins, if what precedes it renders to the beginning of the text."""
    try:
        prompt = render_messages(tokenizer, messages[:i], add_generation_prompt=True, where=where)
    except UserError:
        return None  # e.g. a template that refuses an empty conversation; the whole one rendered
    return len(prompt) if text.startswith(prompt) else None


def _span_between_prefixes(
    tokenizer: Tokenizer, messages: Messages, i: int, text: str, where: str
) -> Span | None:
    start = _generation_prompt_end(tokenizer, messages, i, text, where)
    until = render_messages(tokenizer, messages[: i + 1], add_generation_prompt=False, where=where)
    if start is None or start >= len(until) or not text.startswith(until):
        return None
    return start, len(until)


def _span_by_stand_in(
    tokenizer: Tokenizer, messages: Messages, i: int, text: str, where: str
) -> Span:
    """Render the turn with another text to see where its own text begins and ends."""
    turn = {**messages[i], "content": _STAND_IN}
    other = render_messages(
        tokenizer,
        [*messages[:i], turn, *messages[i + 1 :]],
        add_generation_prompt=False,
        where=where,
    )
    last = render_messages(
        tokenizer, [*messages[:i], turn], add_generation_prompt=False, where=where
    )
    rest = other.partition(_STAND_IN)[2]
    start = _generation_prompt_end(tokenizer, messages, i, text, where)
    if start is None:
        start = _common_prefix(text, other)
    end = len(text) - len(rest)
    if other.count(_STAND_IN) != 1 or not text.endswith(rest) or start > end:
        raise UserError(
            f"{where}: turn {i} of the assistant cannot be found in what the chat template makes "
            "of these messages: write the record with 'prompt' and 'completion'"
        )
    closing = last.partition(_STAND_IN)[2]
    return start, end + _common_prefix(closing, text[end:])


def _common_prefix(a: str, b: str) -> int:
    different = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(different, min(len(a), len(b)))


def _without_separator(text: str, start: int, end: int, added_tokens: tuple[str, ...]) -> int:
    """Move the end of a span back over white space that follows the token that closes the turn."""
    closed = start + len(text[start:end].rstrip())
    return closed if text[start:closed].endswith(added_tokens) else end


class _Generation(Extension):
    """Accept `{% generation %}` around what an assistant says; it renders as its content."""

    tags = {"generation"}  # noqa: RUF012 (jinja's interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache
def _compiled(source: str) -> jinja2.Template:
    """A template in the environment that chat templates are written for.

    Templates come with models from elsewhere: they run in jinja's sandbox and cannot change the
    messages.
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
