"""Several processes of one run on this machine, started together and again after a failure.

    python -m distill_jax.launch --processes=4 -- --config=CONFIG --workdir=DIR

It imports neither JAX nor the program, so that it is there at once and stays small.
"""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

from distill_jax import streams
from distill_jax.visible import visible

HELP = """\
Start several processes of one run on this machine, and again where they fail.

  python -m distill_jax.launch --processes=N [--restarts=R] -- FLAGS OF distill_jax.main

  --processes  how many; on GPUs each takes the one of its own number
  --restarts   failures in a row, without a new checkpoint between, after which it gives up;
               10 where it is not given

The whole group is started again after 1, 2, 4, ... 60 seconds where it ends with 70, 74 or 75, or
where one is killed. It ends with the exit code of the group. SIGINT, SIGTERM and SIGHUP go to all
processes, which save and end; a second one ends them at once. None outlives the launcher.
"""
AGAIN = (70, 74, 75)
FINAL = (2, 3, 76)  # of one process, whatever the others end with
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_S = 20.0  # for the others, once one has failed
LONGEST_PAUSE_S = 60.0
PARENT = "DISTILL_JAX_LAUNCHER"  # tells a process who started it
PRODUCTS = ("checkpoints/step_*", "arms/*/*/result.json", "shard-*", "report.json")


class Asked(NamedTuple):
    """A command line. words: the flags of each process."""

    processes: int
    restarts: int
    words: list[str]


class Signalled:
    """Which signals came; each goes on to the processes that run."""

    def __init__(self):
        self.received: list[int] = []
        self.processes: list[subprocess.Popen] = []
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                signal.signal(number, self._hear)

    def _hear(self, number, frame):
        self.received.append(number)
        for process in self.processes:
            process.send_signal(number)


def run() -> NoReturn:
    """Runs the command line of this process and ends with the exit code of the group."""
    streams.prepare()
    before = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    if "--help" in before or "-h" in before:
        print(HELP, end="")
        sys.exit(0)
    try:
        asked = parse(sys.argv[1:])
    except ValueError as error:
        _print(f"error: {error}")
        sys.exit(2)
    sys.exit(launch(asked, Signalled()))


def parse(words: list[str]) -> Asked:
    """The flags before -- and the words after it. Raises ValueError with a line for a user."""
    if "--" not in words:
        raise ValueError("no -- among the words: --processes=2 -- --config=FILE --workdir=DIR")
    middle = words.index("--")
    numbers = {"processes": 0, "restarts": 10}
    for word in words[:middle]:
        found = re.fullmatch(r"--(processes|restarts)=(\d{1,5})", word)
        if not found:
            raise ValueError(f"{word!r} before the -- is neither --processes=N nor --restarts=R")
        numbers[found[1]] = int(found[2])
    if not numbers["processes"]:
        raise ValueError("--processes is missing: say how many, at least 1")
    own = words[middle + 1 :]
    for word in own:
        if re.match(r"--?(coordinator|process|processes|(no)?distributed)(=|$)", word):
            raise ValueError(f"{word} after the --: the launcher gives it to each process itself")
    return Asked(words=own, **numbers)


def launch(asked: Asked, signalled: Signalled) -> int:
    """Runs the group until it need not be run again, and gives its exit code."""
    failures = 0
    while True:
        before = products(asked.words)
        code = together(asked, signalled)
        if code not in AGAIN or signalled.received or _unread():
            return code
        failures = 1 if products(asked.words) - before else failures + 1
        if failures > asked.restarts:
            _say(f"ended with {code} {failures} times in a row without a new checkpoint: gives up")
            return code
        pause = min(2.0 ** (failures - 1), LONGEST_PAUSE_S)
        _say(
            f"the run ended with {code}: starts again in {pause:g} s (--restarts={asked.restarts})"
        )
        until = time.monotonic() + pause
        while time.monotonic() < until:
            if signalled.received:
                return 75
            time.sleep(0.05)


def together(asked: Asked, signalled: Signalled) -> int:
    """Starts all processes, waits for all, and gives the exit code of the group."""
    readers, errors = [], []
    port = _free_port()
    for i in range(asked.processes):
        place = [f"--coordinator=localhost:{port}", f"--processes={asked.processes}"]
        place = [*place, f"--process={i}"] if asked.processes > 1 else []
        process = subprocess.Popen(
            [sys.executable, "-m", "distill_jax.main", *asked.words, *place],
            env={"JAX_LOCAL_DEVICE_IDS": str(i)} | os.environ | {PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            # Process 0 has the terminal; the others print nothing but what goes wrong.
            stdout=subprocess.DEVNULL if i else None,
            stderr=subprocess.PIPE if i else None,
            process_group=0,  # else Ctrl-C would reach it twice
        )
        signalled.processes.append(process)
        if i:
            readers.append(threading.Thread(target=_read, args=(i, process, errors), daemon=True))
            readers[-1].start()
    for number in signalled.received:  # one came while they were started
        for process in signalled.processes:
            process.send_signal(number)
    codes = _wait(signalled.processes)
    signalled.processes.clear()
    for reader in readers:
        reader.join(timeout=2.0)
    if codes[0] <= 0:  # it has told nothing
        for line in dict.fromkeys(errors):
            _print(line)
    return code_of(codes, bool(signalled.received))


def code_of(codes: list[int], signalled: bool) -> int:
    """The exit code of a group; negative ones are of processes that a signal ended.

    >>> code_of([70, -9, 70], False), code_of([70, 2], False), code_of([75, -15], True)
    (70, 2, 75)
    """
    for code in (*FINAL, 0):
        if code in codes and (code or not any(codes)):
            return code
    if signalled:
        return 75
    return next((code for code in (75, 74) if code in codes), 70)


def products(words: list[str]) -> set[Path]:
    """What a run has written that it need not do again."""
    text = "\n".join(words)
    found = re.search(r"(?m)^--?workdir(?:=|\n)(.+)$", text)
    directory = Path(os.path.expanduser(found[1])) if found else None
    paths = (path for name in PRODUCTS for path in directory.glob(name)) if directory else ()
    return {path for path in paths if ".orbax" not in path.name}


def _wait(processes):
    """Their exit codes. Those that do not end soon after a failed one are killed."""
    deadline = None
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return codes
        if deadline is None and any(codes):
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.05)


def _read(number, process, errors):
    """Errors are kept: those of all processes are mostly one, which process 0 tells."""
    with process.stderr as lines:
        for line in lines:
            text = line.decode(errors="replace").rstrip("\n")
            if text.startswith("error: "):
                errors.append(text)
            elif text:
                _print(f"process {number}: {text}")


def _free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _unread():
    """Whether whoever read stdout, such as head, is gone."""
    pipe = select.poll()
    pipe.register(1, 0)  # only tells of errors
    return bool(pipe.poll(0))


def _say(text):
    _print(f"launch: {text}")


def _print(line):
    print(visible(line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    run()
