"""One process that ends early ends all: with one line each, the same exit code, and soon."""

import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import cli

SLACK = 3  # the machine of the tests may be busy
MEMBER = """
import sys, time
from distill_jax import streams
from distill_jax.peers import Group, Place
streams.prepare()
count, index, port, timeout_s = map(int, sys.argv[1:5])
group = Group(timeout_s)
group.join(Place(f"localhost:{port}", count, index))
print("met", flush=True)
input()
"""
WAITS = "time.sleep(300)"
BARRIER = """
from jax.experimental import multihost_utils
try:
    multihost_utils.sync_global_devices('here' if index else time.sleep(300))
except Exception:  # of the collective, before the connection says why
    group.await_reason()
    time.sleep(300)
"""


def start(code, count, index, port, timeout_s):
    return subprocess.Popen(
        [sys.executable, "-c", MEMBER + code, *map(str, (count, index, port, timeout_s))],
        cwd=cli.ROOT, env=cli.environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.fixture
def group():
    """Starts processes that run some code once they have met."""
    running = []

    def begin(code, count, members=None, timeout_s=30):
        port = free_port()
        running.extend(start(code, count, i, port, timeout_s) for i in members or range(count))
        if members is None:
            assert [process.stdout.readline() for process in running] == ["met\n"] * count
            for process in running:
                process.stdin.write("\n")
                process.stdin.flush()
        return running

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def ends(processes, within_s):
    """The exit codes and the only lines of some processes, which end within a time."""
    began = time.monotonic()
    told = [process.communicate(timeout=SLACK * within_s)[1] for process in processes]
    assert time.monotonic() - began < SLACK * within_s
    return [process.returncode for process in processes], [text.rstrip("\n") for text in told]


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_of_a_killed_process_end_at_once(group, victim):
    processes = group(BARRIER, 3)
    processes[victim].send_signal(signal.SIGKILL)
    codes, lines = ends([p for i, p in enumerate(processes) if i != victim], 3)
    assert codes == [70, 70]
    assert lines == [f"error: process {victim} of 3 is gone: run again"] * 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_waited_for_as_long_as_was_asked_for(group, victim):
    processes = group(WAITS, 2, timeout_s=15)
    stopped = processes[victim]
    stopped.send_signal(signal.SIGSTOP)
    line = (
        "error: another process of this run did not answer for 15 s (config.distributed.timeout_s):"
        " run again"
    )
    assert ends([processes[1 - victim]], 15 + 5) == ([70], [line])
    stopped.send_signal(signal.SIGCONT)
    codes, lines = ends([stopped], 5)
    assert codes == [70]
    assert lines[0] in (line, f"error: process {1 - victim} of 2 is gone: run again")


@pytest.mark.parametrize("there", [0, 1])
def test_a_process_that_never_starts_is_waited_for_as_long_as_was_asked_for(group, there):
    codes, lines = ends(group(WAITS, 2, [there], timeout_s=10), 10 + 10)
    assert codes == [70]
    assert lines == [
        "error: not all processes of this run met within 10 s (config.distributed.timeout_s): start"
        " each of them with the same --coordinator and --processes"
    ]


def test_a_port_that_is_taken_is_a_line():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(WAITS, 2, 0, port, 30)
        line = (
            f"error: process 0 cannot listen at --coordinator=localhost:{port} (Address already in"
            " use): end what does, or give another port, and run again"
        )
        assert ends([process], 10) == ([70], [line])


@pytest.mark.parametrize("mistaken", [0, 1])
def test_the_line_of_one_is_that_of_all(group, mistaken):
    code = f"group.fail(2, 'error: no such file') if index == {mistaken} else time.sleep(300)"
    assert ends(group(code, 3), 3) == ([2] * 3, ["error: no such file"] * 3)


def test_an_abort_of_the_runtime_is_a_line(group):
    code = "import ctypes\nctypes.CDLL(None).abort() if index else time.sleep(300)"
    line = "error: the runtime gave up (no reason given): run again"
    assert ends(group(code, 2), 3) == ([70] * 2, [line] * 2)


def test_who_is_done_waits_for_the_others(group):
    """Longer than JAX's own patience with a shutdown."""
    code = "time.sleep(0 if index else 14)\ngroup.leave()\nprint('left')"
    processes = group(code, 2, timeout_s=15)
    assert ends(processes, 25) == ([0] * 2, [""] * 2)


def test_a_file_that_one_process_lacks_ends_all_with_its_line(flags, tmp_path):
    port = free_port()
    command = cli.command(
        f"--workdir={tmp_path / 'w'}", *flags, f"--coordinator=localhost:{port}", "--processes=2",
        "--config.log.every=0",
    )  # fmt: skip
    own = [[], [f"--config.data.source={tmp_path / 'absent.jsonl'}"]]
    processes = [
        subprocess.Popen(
            [*command, f"--process={i}", *own[i]], cwd=cli.ROOT, env=cli.environment(), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]  # fmt: skip
    codes, lines = ends(processes, 60)
    assert codes == [2, 2]
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"error: '{tmp_path / 'absent.jsonl'}' matches no file")
