"""Chat templates that want too much, and the process in which they run."""

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from distill_jax import untrusted
from distill_jax.data import template_process, template_worker, tokenizer_file, turn_spans
from distill_jax.data.chat import render_messages, render_with_spans
from distill_jax.data.documents import Document
from distill_jax.data.templates import Renderer
from distill_jax.types import UserError
from tests import cli
from tests.data.test_chat import CHATML, FOLDING, HEADERS, PLAIN, THINKING
from tests.data.test_chat_tools import KOELN, TEMPLATES, call, said

TURNS = (said("user", "Hi"), said("assistant", "Hello"))
TIME, MEM, OUTPUT, FAILS = "of CPU time", "MiB of memory", "writes more than", "template fails"

# What each may not do, and how that ends. Those of TIME are few: each takes its seconds.
HOSTILE = {
    "long text": ("{{ 'a' * 10**10 }}", MEM),
    "long text by a name": ("{% set n = 10**10 %}{{ 'a' * n }}", MEM),
    "wide number": ("{{ '%1000000000s' % 'x' }}", MEM),
    "wide format": ("{{ '{:>1000000000}'.format('x') }}", MEM),
    "centred": ("{{ 'a'|center(10**10) }}", MEM),
    "list": ("{{ ([0] * 10**10)|length }}", MEM),
    "doubled": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}{{ n.x }}",
        MEM,
    ),
    "much": ("{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}", OUTPUT),
    "joined": ("{{ (['a' * 9999] * 9999)|join }}", OUTPUT),
    "indented": ("{{ ('a\n' * 9999)|indent(999) }}", OUTPUT),
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        TIME,
    ),
    "long number": ("{{ 9**99999 }}", FAILS),
    "range": ("{% for i in range(10**9) %}{% endfor %}", FAILS),
    "recursive macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", FAILS),
    "recursive loop": ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", FAILS),
    "deep expression": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", FAILS),
    "deep blocks": ("{% if 1 %}" * 500 + "{% endif %}" * 500, FAILS),
    "half a character": ("{{ '\\ud800' }}", FAILS),
    "mutation": ("{{ messages.append(1) }}", FAILS),
    "globals": ("{{ cycler.__init__.__globals__.os.getpid() }}", FAILS),
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", FAILS),
    "class by filter": ("{{ (messages|attr('__class__')).mro() }}", FAILS),
    "class by format": ("{{ '{0.__class__.__mro__}'.format('') }}", FAILS),
    "included": ("{% include '/etc/passwd' %}", FAILS),
    "imported": ("{% import 'os' as os %}", FAILS),
}


def ours(make_small, template):
    return make_small("smollm", chat_template=template)._replace(template_file="m/chat.jinja")


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_template_may_not_do_is_one_line(make_small, name):
    template, says = HOSTILE[name]
    tokenizer = ours(make_small, template)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=says) as caught:
        render_messages(tokenizer, TURNS, add_generation_prompt=False, where="file:3")
    message = str(caught.value)
    assert message.startswith("file:3: ")
    assert "\n" not in message
    assert len(message) < 1000
    assert says == FAILS or "the chat template m/chat.jinja " in message
    assert time.monotonic() - began < 60
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < template_worker.MEMORY / 1024
    )
    text = render_messages(ours(make_small, "ok"), TURNS, add_generation_prompt=False, where="x")
    assert text == "ok"


def test_the_conversation_on_which_it_happens_is_named(make_small):
    """Those before it are rendered. A power is one instruction, which no handler interrupts."""
    power = "{% set n = messages|length + 7 %}{{ n**(n**n) }}"
    template = "{% if messages[0].content == 'bad' %}" + power + "{% endif %}" + CHATML
    names = [f"file:{i}" for i in range(5)]
    documents = [
        Document(name, "x", messages=(said("user", "bad" if i == 3 else "ok"), TURNS[1]))
        for i, name in enumerate(names)
    ]
    rendered = render_with_spans(ours(make_small, template), documents)
    assert [len(next(rendered).assistant_spans) for _ in range(3)] == [1, 1, 1]
    with pytest.raises(UserError, match=r"^file:3: .* takes more than 3 s of CPU time"):
        next(rendered)


def test_the_worker_is_started_once_and_again_where_it_was_killed(make_small):
    tokenizer = ours(make_small, CHATML)
    text = lambda: render_messages(tokenizer, TURNS, add_generation_prompt=True, where="x")
    first = text()
    worker = template_process._idle[os.getpid()]
    assert text() == first
    assert template_process._idle[os.getpid()] is worker
    worker.kill()
    worker.wait()
    assert text() == first
    assert template_process._idle[os.getpid()] is not worker


def test_answers_that_nobody_took_are_not_the_next_ones(make_small):
    tokenizer = ours(make_small, CHATML)
    documents = [Document("d", "x", messages=TURNS)] * 600
    left = render_with_spans(tokenizer, documents)
    first = next(left)
    other = ours(make_small, "{{ messages[0].content }}{{ messages[1].content }}" + "|")
    assert render_messages(other, TURNS, add_generation_prompt=False, where="x") == "HiHello|"
    assert next(left) == first
    left.close()
    assert render_messages(other, TURNS, add_generation_prompt=False, where="x") == "HiHello|"


def test_the_worker_ends_with_its_parent_and_hears_no_signal_of_the_group():
    """Also where the parent is killed, in the middle of a conversation."""
    program = (
        "from distill_jax.data import template_process as p\n"
        "import os, sys\n"
        "next(p.ask('ok', {}, [([], None, False)]))\n"
        "print(p._idle[os.getpid()].pid, flush=True)\n"
        "sys.stdin.readline()\n"
        "next(p.ask('{{ 9**(9**9) }}', {}, [([], None, False)]))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=-1, stdout=-1, stderr=-1, start_new_session=True
    )
    worker = int(parent.stdout.readline())
    parent.stdin.write(b"\n")
    parent.stdin.flush()
    time.sleep(0.5)
    assert os.getpgid(worker) != parent.pid
    os.killpg(parent.pid, signal.SIGKILL)
    assert parent.wait() == -signal.SIGKILL
    assert parent.stderr.read() == b""
    until = time.monotonic() + 60
    while time.monotonic() < until and os.path.exists(f"/proc/{worker}"):
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")
    for stream in (parent.stdin, parent.stdout, parent.stderr):
        stream.close()


def test_the_bounds_are_those_that_are_published():
    text = " ".join((cli.ROOT / "SECURITY.md").read_text().split())
    base, more = template_worker.cpu_s(0), template_worker.cpu_s(256 * 2**10)
    assert f"{base:.0f} s of CPU time and a second for each 256 KiB" in text
    assert more == base + 1
    assert f"{template_worker.MEMORY // 2**20} MiB of memory" in text
    most, growth = template_worker.characters(0), template_worker.characters(1)
    assert f"{most:,} characters of text and {growth - most} for each byte" in text
    assert (
        f"{tokenizer_file.MOST_BYTES // 2**20} MiB, ids below {tokenizer_file.MOST_IDS:,}" in text
    )
    assert f"at most {tokenizer_file.MOST_GROWTH} times as long" in text
    assert f"{untrusted.MOST_JSON // 2**20} MiB, {untrusted.DEEPEST} levels" in text


LONG = {
    "chatml": CHATML, "headers": HEADERS, "thinking": THINKING, "folding": FOLDING, "plain": PLAIN,
} | {
    name: template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    for name, template in TEMPLATES.items()
}  # fmt: skip


def long_chat(turns, *, calls):
    chat = [said("system", "Be brief.")]
    while len(chat) < turns:
        i = len(chat)
        chat.append(said("user", f"Question {i}?"))
        if calls and i % 5 < 2:
            chat += [
                {"role": "assistant", "content": None, "tool_calls": [call(KOELN)]},
                said("tool", f"rain {i}"),
            ]
        thought = f"<think>\nso {i}\n</think>\n\n" if i % 3 == 0 else ""
        chat.append(said("assistant", f"{thought}Answer {i}."))
    return chat


def rendering(template):
    special = {"bos_token": "<bos>", "eos_token": "<|im_end|>"}
    counted = []
    render = Renderer(template, special, None, 10**9)
    return lambda turns, **more: (counted.append(len(turns)), render(turns, **more))[1], counted


@pytest.mark.parametrize("name", LONG)
def test_spans_of_long_chats_are_the_same_and_take_linear_time(name, monkeypatch):
    chat = long_chat(turn_spans.WHOLE + 20, calls=name in TEMPLATES)
    render, counted = rendering(LONG[name])
    found = turn_spans.find(render, chat, 3)
    few = sum(counted)
    longer, more = rendering(LONG[name])
    turn_spans.find(longer, long_chat(2 * len(chat), calls=name in TEMPLATES), 3)
    assert sum(more) < 2.5 * few
    monkeypatch.setattr(turn_spans, "WHOLE", 10**6)
    assert turn_spans.find(render, chat, 3) == found


def test_a_long_chat_that_is_no_sum_of_its_parts_is_rendered_as_a_whole():
    """Each turn has its number, which a window does not know."""
    template = (
        "{% for m in messages %}{{ loop.index }}[{{ m.role }}] {{ m.content + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ messages|length + 1 }}[assistant] {% endif %}"
    )
    chat = long_chat(turn_spans.WHOLE + 2, calls=False)
    text, spans = turn_spans.find(rendering(template)[0], chat, 0)
    said_there = [text[a:b] for a, b in spans]
    assert said_there == [f"{m['content']}<|im_end|>" for m in chat if m["role"] == "assistant"]
