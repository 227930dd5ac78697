"""The worker that renders chat templates: one for this process, started when first needed."""

import atexit
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.data.template_worker import cpu_s

_AT_ONCE, _BYTES = 256, 2**20  # conversations in a request, and their size if they are several
_ROOT = str(Path(__file__).resolve().parents[2])
# The idle one, by process: one that is forked must not share the pipes of its parent.
_idle: dict[int, subprocess.Popen] = {}
_running: set[subprocess.Popen] = set()


class Answer(NamedTuple):
    """What became of a conversation: a text and spans in it; or why it failed; or the bound that
    the template went over.
    """

    text: str = ""
    spans: Sequence[tuple[int, int]] = ()
    failed: str = ""
    over: str = ""


def ask(
    template: str, special_tokens: Mapping[str, str], asked: Iterable[tuple[Any, Any, int | bool]]
) -> Iterator[Answer]:
    """The answers for (messages, tools, given) each, in order; `given` as in template_worker.py.

    The worker is at the next ones while these are used, and is nobody else's until the last is
    taken. Where the template ends the worker, its answer says so and is the last.
    """
    head = {"template": template, "special_tokens": dict(special_tokens)}
    groups = _groups(_line(each) for each in asked)
    if not (group := next(groups, None)):
        return
    worker = _take()
    try:
        _send(worker, head, group)
        while group:
            answers = _answers(worker, group)
            group = None if answers[-1].over else next(groups, None)
            if group:
                _send(worker, head, group)
            yield from answers
    finally:
        if group:  # some answers are not wanted, and whoever asks next would read them
            _stop(worker)
        elif os.getpid() not in _idle:
            _idle[os.getpid()] = worker
        else:
            _stop(worker)


def _line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _groups(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    group, size = [], 0
    for line in lines:
        if len(group) == _AT_ONCE or (group and size + len(line) > _BYTES):
            yield group
            group, size = [], 0
        group.append(line)
        size += len(line)
    if group:
        yield group


def _send(worker: subprocess.Popen, head: dict[str, Any], group: Sequence[bytes]) -> None:
    """Nothing is lost where the worker is gone: no answer comes, either."""
    with contextlib.suppress(BrokenPipeError):
        worker.stdin.writelines([_line(head | {"asked": len(group)}), *group])
        worker.stdin.flush()


def _answers(worker: subprocess.Popen, group: Sequence[bytes]) -> list[Answer]:
    answers = []
    while len(answers) < len(group) and (answer := _answer(worker)):
        answers.append(answer)
    if len(answers) < len(group):
        answers.append(Answer(over=_why(worker, cpu_s(len(group[len(answers)])))))
    return answers


def _answer(worker: subprocess.Popen) -> Answer | None:
    line = worker.stdout.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    if "bytes" not in head:
        return Answer(**head)
    text = worker.stdout.read(head["bytes"])
    if len(text) < head["bytes"]:
        return None
    return Answer(text.decode(), [tuple(span) for span in head["spans"]])


def _why(worker: subprocess.Popen, seconds: float) -> str:
    """What ended a worker that had so many seconds. RuntimeError where it was no template."""
    _stop(worker, kill=False)
    if worker.returncode == -signal.SIGPROF:
        return f"takes more than {seconds:.0f} s of CPU time"
    if worker.returncode < 0:
        name = signal.Signals(-worker.returncode).name
        return f"crashes the process that renders it ({name})"
    raise RuntimeError(f"{' '.join(worker.args)} ended with code {worker.returncode}")


def _take() -> subprocess.Popen:
    """This process's worker; a new one where it has no idle one, or somebody ended it.

    It is in a session of its own: signals to a terminal's or a launcher's group do not reach it.
    It ends when its stdin is closed, which the end of this process does however it comes.
    """
    worker = _idle.pop(os.getpid(), None)
    if worker and worker.poll() is not None:
        _stop(worker)
        worker = None
    if not worker:
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "distill_jax.data.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)])},
            start_new_session=True,
        )
        _running.add(worker)
        # Answers wait in the pipe while this process is at the ones before.
        with contextlib.suppress(AttributeError, OSError):  # not on every system, or not so much
            fcntl.fcntl(worker.stdout, fcntl.F_SETPIPE_SZ, 2 * _BYTES)
    return worker


def _stop(worker: subprocess.Popen, *, kill: bool = True) -> None:
    if kill:
        worker.kill()
    worker.wait()
    for stream in (worker.stdin, worker.stdout):
        with contextlib.suppress(BrokenPipeError):  # it still held a part of a request
            stream.close()
    _running.discard(worker)


atexit.register(lambda: [_stop(worker) for worker in [*_running]])
