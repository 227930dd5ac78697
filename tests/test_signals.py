"""A signal ends a real process with 75 and one line, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import cli

# What a process does when the signal comes; it says `busy` just before.
BUSY = {
    "imports": "import distill_jax.main as m, builtins\n"
    "before = builtins.__import__\n"
    "def slow(name, *more, **named):\n"
    "    if name.startswith('jax'):\n"
    "        print('busy', flush=True); time.sleep(60)\n"
    "    return before(name, *more, **named)\n"
    "builtins.__import__ = slow\n"
    "m.run()\n",
    "compiles": "import jax, jax.numpy as jnp\n"
    "signals.watch()\n"
    "def long(x):\n"
    "    for _ in range(4000):\n"
    "        x = jnp.sin(x) @ x\n"
    "    return x\n"
    "lowered = jax.jit(long).lower(jnp.zeros((8, 8)))\n"
    "print('busy', flush=True)\n"
    "lowered.compile()\n",
    "is called by XLA": "import jax, jax.numpy as jnp\n"
    "signals.watch()\n"
    "def back(x):\n"
    "    print('busy', flush=True)\n"
    "    for _ in range(10**9): pass\n"
    "    return x\n"
    "x = jax.ShapeDtypeStruct((), 'float32')\n"
    "jax.jit(lambda y: jax.pure_callback(back, x, y))(1.0).block_until_ready()\n",
    "has nothing to save yet": "signals.watch()\n"
    "with signals.saving() as stop:\n"
    "    print('busy', flush=True)\n"
    "    time.sleep(60)\n",
    "saves": "signals.watch()\n"
    "with signals.saving() as stop:\n"
    "    stop.begun.set()\n"
    "    print('busy', flush=True)\n"
    "    stop.asked.wait()\n"
    "    os.kill(os.getpid(), signal.SIGTERM)\n"
    "    time.sleep(60)\n",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(code):
    head = "import os, signal, sys, time\nfrom distill_jax import signals\n"
    head += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # the tests may run under nohup
    words = [sys.executable, "-c", head + code]
    return subprocess.Popen(
        words, cwd=cli.ROOT, env=cli.environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("doing", BUSY)
def test_a_signal_ends_the_process_whatever_it_does(doing):
    number = SIGNALS[list(BUSY).index(doing) % len(SIGNALS)]
    with start(BUSY[doing]) as process:
        assert process.stdout.readline() == "busy\n", process.stderr.read()
        process.send_signal(number)
        began = time.monotonic()
        lines = process.stderr.read().splitlines()
        assert process.wait(timeout=10) == 75, lines
        assert time.monotonic() - began < 2
    assert lines[-1].startswith("error: stopped by SIG")
    assert len(lines) == (2 if doing == "saves" else 1)


def test_a_second_signal_waits_for_a_save_that_is_being_written():
    code = (
        "signals.watch()\n"
        "def finish():\n"
        "    time.sleep(0.5)\n"
        "    print('written', flush=True)\n"
        "with signals.saving(finish) as stop:\n"
        "    stop.begun.set()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    stop.asked.wait()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    with start(code) as process:
        assert process.stdout.read() == "written\n"
        assert process.wait(timeout=10) == 75


def test_forked_children_have_the_usual_signals_and_do_not_stay():
    """A child that is stopped does not stop its parent; one that runs goes with its parent."""
    code = (
        "import multiprocessing\n"
        "signals.watch()\n"
        "new = lambda: multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "first, second = new(), new()\n"
        "first.start(); second.start()\n"
        "first.terminate(); first.join()\n"
        "print(first.exitcode, second.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    with start(code) as process:
        code, pid = map(int, process.stdout.readline().split())
        assert code == -signal.SIGTERM
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 75
        process.stderr.read()  # ends when no child holds it
    deadline = time.monotonic() + 5
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_nohup_stays_in_force():
    code = "signals.watch()\nos.kill(os.getpid(), signal.SIGHUP)\ntime.sleep(0.2)\nprint('alive')\n"
    with start(f"signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{code}") as process:
        assert process.stdout.read() == "alive\n"


def test_a_signal_at_the_very_end_changes_nothing():
    code = (
        "import atexit\n"
        "signals.watch()\n"
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.2)))\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, me=os.getpid()):\n"
        "        kill(me, 15)\n"
        "sys.late = Late()\n"
        "signals.ignore()\n"
    )
    with start(code) as process:
        assert process.stderr.read() == ""
        assert process.wait(timeout=10) == 0
