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
    tokenizer: Tokenizer, messages: Messages, *, add_generation_prompt: bool, where: str
) -> str:
    """Renders as transformers' apply_chat_template does.

    Raises UserError naming `where` if there is no chat template or the template fails.
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
    # A template is a program: besides jinja's own errors it may add None to a string or look up a
    # missing key.
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise UserError(
            f"{where}: the chat template fails on these messages ({error}): "
            "change the messages or the model's chat template"
        ) from error


def render_with_spans(tokenizer: Tokenizer, messages: Messages, *, where: str) -> Rendered:
    """Renders a conversation and finds the spans that the assistant has to generate.

    A span runs from the end of the generation prompt to the token that closes the turn, without the
    white space between turns. Spans are found only by rendering, so templates need no
    `{% generation %}` and may rewrite earlier turns (drop their reasoning) or merge the system
    prompt into another turn.
    Raises UserError naming `where` if the template fails, or if an assistant turn cannot be found
    in the text, or if there is none.
    """
    if not any(message["role"] == "assistant" for message in messages):
        roles = [message["role"] for message in messages]
        raise UserError(
            f"{where}: no assistant turn among the roles {roles}, so no token would be "
            "trained: add one or remove the record"
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
    """Where turn i begins, if the turns before it render to a prefix of the text."""
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
    """Renders the turn with other content to find where its own begins and ends."""
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
            f"{where}: turn {i}, of the assistant, cannot be found in the rendered chat "
            "template: write the record with 'prompt' and 'completion'"
        )
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
