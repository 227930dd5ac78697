"""The job generate: texts continued, or conversations answered, by one model."""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import jax

from distill_jax import workdir
from distill_jax.data.prompts import shown
from distill_jax.data.text_stream import stream
from distill_jax.progress import Progress, say, say_part
from distill_jax.setup import samples
from distill_jax.setup.models import load_only_model, mesh_of
from distill_jax.setup.owner import Question
from distill_jax.types import UserError


def generate_job(asked: Question, progress: Progress) -> None:
    """What student.path, or else teacher.path, writes after each prompt.

    stdout has the prompts, each line after a `> `, and the texts; on a terminal while they are
    written. All else goes to stderr.
    """
    c = asked.config
    samples.check(c)
    prompts = samples.prompts_of(c)
    if not prompts:
        raise UserError(
            "config.generate.prompts is empty: give texts, as"
            " --config.generate.prompts='(\"Once upon\",)', or a file, as"
            " --config.generate.prompts=@prompts.jsonl"
        )
    with progress.stage("load", "reading the model") as stage:
        read = load_only_model(c, mesh_of(c), stage.advance)
    chat = samples.are_turns(c, read.tokenizer)
    if chat and any(prompt.messages is None for prompt in prompts):
        say(
            "each text is a user's turn in the model's chat template"
            " (--config.generate.chat=false: continue the text itself)",
            sys.stderr,
        )
    if advice := samples.unlike_advice(c, read.tokenizer):
        say(advice, sys.stderr)
    # Several processes run the same programs, whatever the terminal of one of them.
    live = sys.stdout.isatty() and jax.process_count() == 1
    headers = ["\n".join(f"> {x}" for x in shown(prompt).split("\n")) for prompt in prompts]
    subject = (read.model, read.params, read.tokenizer, samples.stop_ids(read.tokenizer))
    with progress.stage("write", "compiling and writing texts"), ExitStack() as aside:
        begin = lambda: aside.enter_context(progress.aside())
        show = _live(headers, read.tokenizer.backend.decode, begin) if live else None
        lines = samples.sample(c, read.path, 0, *subject, time_it=False, chat=chat, show=show)
    for header, line in zip(headers, () if live else lines, strict=False):
        say(f"{header}\n{line['text']}\n")
    path = asked.results / workdir.SAMPLES
    if jax.process_index() == 0:
        workdir.write_lines(path, lines)
    say(f"written to {path}", sys.stderr)


def _live(
    headers: Sequence[str], decode: Callable[[Sequence[int]], str], begin: Callable[[], None]
) -> Callable[[int, list[int], bool], None]:
    """Shows texts while they are written, one after the other in the order of the prompts.

    The texts of a batch are written at once: those after the first wait until it has ended.
    begin() is called before the first.
    """
    latest: dict[int, tuple[list[int], bool]] = {}
    parts = {i: stream(decode) for i in range(len(headers))}
    current, begun = 0, -1

    def show(i: int, tokens: list[int], ended: bool) -> None:
        nonlocal current, begun
        latest[i] = tokens, ended
        while current in latest:
            if begun < current:
                if begun < 0:
                    begin()
                say_part(headers[current], dim="NO_COLOR" not in os.environ)
                say_part("\n")
                begun = current
            text, over = latest[current]
            say_part(parts[current](text, over) + "\n\n" * over)
            if not over:
                return
            current += 1

    return show
