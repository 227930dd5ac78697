"""Chat messages as text, and the spans of it that the assistant wrote.

Templates are rendered in a process of their own (template_process.py), by turn_spans.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from distill_jax.data.documents import Document
from distill_jax.data.template_process import Answer, ask
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.data.turn_spans import STAND_IN, Messages, Span
from distill_jax.types import UserError


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
    asked = [(messages, tools, add_generation_prompt)]
    [answer] = _rendered(tokenizer, [where], asked)
    return answer.text


def render_with_spans(tokenizer: Tokenizer, documents: Sequence[Document]) -> Iterator[Rendered]:
    """Renders conversations, and finds the spans that the assistant has to generate.

    A span runs from the end of the generation prompt to the token that closes the turn, without the
    white space between turns. The first turns, that a document has been given, have none.
    Raises UserError naming the document if there is no chat template or it fails, or if an
    assistant turn cannot be found in the text, or if there is none.
    """
    asked = ((d.messages, d.tools, d.given) for d in documents)
    for answer in _rendered(tokenizer, [d.name for d in documents], asked):
        spans = [
            (start, _without_separator(answer.text, start, end, tokenizer.added_tokens))
            for start, end in answer.spans
        ]
        yield Rendered(answer.text, spans)


def turn_end(tokenizer: Tokenizer, messages: Messages, *, where: str) -> int | None:
    """The token that closes the assistant's next turn; None where the template puts none.

    Raises UserError naming `where` if the template fails.
    """
    turn = {"role": "assistant", "content": STAND_IN}
    text = render_messages(tokenizer, [*messages, turn], add_generation_prompt=False, where=where)
    added = tokenizer.backend.get_added_tokens_decoder()
    closing = tokenizer.offsets.encode(text.rpartition(STAND_IN)[2]).ids
    return next((token for token in closing if token in added), None)


def _rendered(
    tokenizer: Tokenizer, names: Sequence[str], asked: Iterable[tuple[Any, Any, int | bool]]
) -> Iterator[Answer]:
    """Texts of conversations whose names are for errors; one that fails is a UserError."""
    if tokenizer.chat_template is None and names:
        raise UserError(
            f"{names[0]}: the tokenizer has no chat template, which turns need: use a chat model,"
            " or records whose 'prompt' and 'completion' are text, with data.template plain"
        )
    answers = ask(tokenizer.chat_template, tokenizer.special_tokens, asked)
    for name, answer in zip(names, answers, strict=False):
        if answer.failed:
            raise UserError(f"{name}: {answer.failed}")
        if answer.over:
            raise UserError(
                f"{name}: the chat template {tokenizer.template_file} {answer.over} on these"
                " messages: shorten them, or use another chat template"
            )
        yield answer


def _without_separator(text: str, start: int, end: int, added_tokens: tuple[str, ...]) -> int:
    """The end of a span without white space after the token that closes the turn."""
    closed = start + len(text[start:end].rstrip())
    return closed if text[start:closed].endswith(added_tokens) else end
