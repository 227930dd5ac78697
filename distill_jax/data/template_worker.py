"""The process that renders chat templates: template_process.py starts it and says when it ends.

A template is a program that came with a model. Here it has bounds: MEMORY for the process, and
cpu_s and characters, which grow with a conversation, for each. A process that needs more time is
ended by the kernel, whatever it is at.

A request is a line of JSON {"template", "special_tokens", "asked"} and so many lines [messages,
tools, given]; given is the number of turns without a span, or true or false for a text alone, with
or without a generation prompt. Each answer is a line {"bytes", "spans"} and the text in UTF-8, or
a line {"failed"} or {"over"}. All is read before anything is answered, so that neither side waits
for the other.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from typing import Any, BinaryIO

from distill_jax.data import turn_spans
from distill_jax.data.templates import Failed, Renderer, TooLong

MEMORY = 768 * 2**20  # bytes of address space, of which Python itself takes some 30 MB


def cpu_s(size: int) -> float:
    """Seconds that a conversation of so many bytes may take; 10,000 short turns are a million."""
    return 3 + size / 2**18


def characters(size: int) -> int:
    """Characters that its text may have."""
    return 2**18 + 20 * size


def main() -> None:
    """Answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also within one instruction
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(ValueError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    receive, send = sys.stdin.buffer, sys.stdout.buffer
    while line := receive.readline():
        request = json.loads(line)
        asked = [receive.readline() for _ in range(request["asked"])]
        for each in asked:
            signal.setitimer(signal.ITIMER_PROF, cpu_s(len(each)))
            answer = _answer(request["template"], request["special_tokens"], each)
            signal.setitimer(signal.ITIMER_PROF, 0)
            _write(send, *answer)


def _answer(template: str, special: dict[str, str], asked: bytes) -> tuple[dict[str, Any], bytes]:
    most = characters(len(asked))
    try:
        messages, tools, given = json.loads(asked)
        render = Renderer(template, special, tools, most)
        if isinstance(given, bool):
            text, spans = render(messages, add_generation_prompt=given), []
        else:
            text, spans = turn_spans.find(render, messages, given)
        data = text.encode()
        return {"bytes": len(data), "spans": spans}, data
    except Failed as error:
        return {"failed": str(error)}, b""
    except TooLong:
        return {"over": f"writes more than {most:,} characters"}, b""
    except MemoryError:
        return {"over": f"needs more than {MEMORY // 2**20} MiB of memory"}, b""


def _write(send: BinaryIO, head: dict[str, Any], text: bytes) -> None:
    send.write(json.dumps(head).encode() + b"\n" + text)
    send.flush()


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, ValueError):  # whoever asked is gone, in the middle of a line
        os._exit(1)
