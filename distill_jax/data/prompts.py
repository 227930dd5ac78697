"""Prompts: texts to be continued and conversations to be answered, given or in files."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.data.chat import Messages, render_messages
from distill_jax.data.limits import check_length
from distill_jax.data.records import document_from_record
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.data.turns import checked_text
from distill_jax.types import UserError
from distill_jax.untrusted import check_file, parse_json

FILE = "@"  # before the path of a file; doubled, it is a text's own
_FORMS = "a .jsonl file with 'prompt', 'text' or 'messages', or a .txt file with one prompt a line"


class Prompt(NamedTuple):
    """Exactly one of text and messages is set.

    name      where it came from, for error messages
    text      to be continued, or a user's turn to be answered
    messages  a conversation, the next turn of which is the assistant's
    tools     JSON schemas of the tools that the chat template shows
    """

    name: str
    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    tools: tuple[dict[str, Any], ...] | None = None


def read_prompts(given: Iterable[str]) -> list[Prompt]:
    """Prompts that are given as texts, or as `@FILE` for those of a file.

    A .jsonl file has a record per prompt with `prompt`, `text` or `messages`, a .txt file a prompt
    per line. Raises UserError for what is none of these.
    """
    prompts = []
    for i, text in enumerate(given, 1):
        if not isinstance(text, str):
            raise UserError(f"prompt {i} is {text!r}: give texts, in quotes")
        if text.startswith(FILE) and not text.startswith(FILE * 2):
            prompts += _of_file(Path(text.removeprefix(FILE)))
        else:
            own = text[1:] if text.startswith(FILE) else text
            prompts.append(Prompt(f"prompt {i}", text=own))
    return prompts


def read_conversations(given: str, key: str) -> list[Prompt]:
    """A conversation as JSON, or `@FILE` for those of a .jsonl file; none where `given` is empty.

    Raises UserError naming `key` for what is no list of turns.
    """
    if given.startswith(FILE):
        prompts = read_prompts([given])
        for prompt in prompts:
            if prompt.messages is None:
                raise UserError(f"{prompt.name}: no 'messages': name the file in generate.prompts")
        return prompts
    if not given.strip():
        return []
    remedy = """give '[{"role": "user", "content": "Hello"}]', or @FILE.jsonl"""
    turns = parse_json(given, key, remedy)
    return [_conversation({"messages": turns}, key)]


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, *, chat: bool) -> list[int]:
    """The tokens that a model goes on from.

    A text is encoded as the tokenizer does it, without an end of text. A conversation, or with
    `chat` a text as its user's turn, is rendered by the chat template up to where the assistant's
    turn begins; nothing is added, since templates write BOS themselves.
    Raises UserError where the template fails, or where there is nothing to go on from.
    """
    turns = conversation(prompt)
    check_length(sum(len(turn["content"] or "") for turn in turns), prompt.name)
    if prompt.messages is not None or chat:
        text = render_messages(
            tokenizer, turns, add_generation_prompt=True, where=prompt.name, tools=prompt.tools
        )
        ids = tokenizer.offsets.encode(text).ids
    else:
        ids = tokenizer.backend.encode(prompt.text).ids
        ids = ids[:-1] if tokenizer.adds_eos else ids
    if not ids:
        raise UserError(f"{prompt.name} is empty, so there is nothing to go on from: give a text")
    return ids


def conversation(prompt: Prompt) -> Messages:
    """The turns of a prompt; a text is the user's."""
    return prompt.messages or ({"role": "user", "content": prompt.text},)


def shown(prompt: Prompt) -> str:
    """A prompt for a reader: its text, or its turns with who speaks where that is not plain."""
    turns = conversation(prompt)
    if [turn["role"] for turn in turns] == ["user"]:
        return turns[0]["content"]
    calls = lambda turn: json.dumps(turn.get("tool_calls", ""), ensure_ascii=False)
    return "\n".join(f"{turn['role']}: {turn.get('content') or calls(turn)}" for turn in turns)


def _of_file(path: Path) -> list[Prompt]:
    if path.exists():
        check_file(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(
            f"prompts {FILE}{path}: there is no such file: give {_FORMS} (a text that begins with"
            f" {FILE} is written {FILE}{FILE})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {FILE}{path} cannot be read ({error}): give {_FORMS}") from None
    numbered = [(f"{path}:{n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    kinds = {".jsonl": _of_json, ".txt": lambda where, line: Prompt(where, text=line.rstrip("\r"))}
    if path.suffix.lower() not in kinds or not numbered:
        what = "holds no prompt" if not numbered else "is of no known kind"
        raise UserError(f"prompts {FILE}{path}: the file {what}: give {_FORMS}")
    return [kinds[path.suffix.lower()](where, line) for where, line in numbered]


def _of_json(where: str, line: str) -> Prompt:
    record = parse_json(line, where, "write a record on each line")
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if isinstance(prompt, str):
        return Prompt(where, text=checked_text(prompt, "prompt", where))
    if isinstance(prompt, list):
        return _conversation({"messages": prompt, "tools": record.get("tools")}, where)
    return _conversation(record, where)


def _conversation(record: Any, where: str) -> Prompt:
    """A conversation to be answered: an assistant's turn at its end is what is asked for."""
    document = document_from_record(record, where=where, label="")
    messages = document.messages
    if messages is None:
        return Prompt(where, text=document.text)
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where}: no turn before the assistant's: give the user's turn")
    return Prompt(where, messages=messages, tools=document.tools)
