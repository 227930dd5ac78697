"""Chat templates: programs that come with models, rendered in jinja's sandbox.

Only template_worker.py imports this, in a process of its own that starts quickly: nothing here
imports JAX.
"""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from distill_jax.data.tool_calls import for_template

# The date that templates see: fixed, so that the same data always gives the same tokens.
TODAY = datetime.datetime(2024, 7, 26)


class Failed(Exception):
    """The template fails on these messages, or their turns cannot be found: one line."""


class TooLong(Exception):
    """The template writes more than it may."""


class Renderer(NamedTuple):
    """Renders messages as transformers' apply_chat_template does.

    most: characters that a text may have. Raises Failed or TooLong.
    """

    source: str
    special_tokens: Mapping[str, str]
    tools: Sequence[dict[str, Any]] | None
    most: int

    def __call__(
        self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool = False
    ) -> str:
        try:
            text = _compiled(self.source).render(
                messages=for_template(messages),
                add_generation_prompt=add_generation_prompt,
                tools=self.tools or None,
                documents=None,
                **self.special_tokens,
            )
            text.encode()
        except MemoryError:
            raise
        # A template is a program: besides jinja's own errors it may add None to a string, look up
        # a missing key, call itself for ever, or write half a character.
        except Exception as error:
            reason = " ".join(str(error).split())[:500]
            raise Failed(
                f"the chat template fails on these messages ({reason}): "
                "change the messages or the model's chat template"
            ) from error
        if len(text) > self.most:
            raise TooLong
        return text


class _Generation(Extension):
    """Accepts `{% generation %}` around an assistant's content; it renders as the content."""

    tags = {"generation"}  # noqa: RUF012 (jinja's interface)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache
def _compiled(source: str) -> jinja2.Template:
    """A compiled template in the environment that chat templates expect; it changes no messages."""
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
