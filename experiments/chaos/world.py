"""Models and text that are small enough for hundreds of runs, and real processes on them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests import cli

FLAGS = (
    "--config=configs/base.py", "--config.data.seq_len=32", "--config.data.batch_size=8",
    "--config.eval.batch_size=8", "--config.optim.warmup_steps=1", "--config.model.block_tokens=64",
    "--config.data.held_out_fraction=0.2", "--config.watchdog_s=600",
    "--config.log.every=0",
)  # fmt: skip


def make(directory: Path) -> list[str]:
    """Writes a teacher, a student and a text, and gives the words of a command that uses them."""
    directory.mkdir(parents=True, exist_ok=True)
    cli.write_model(directory / "teacher", seed=1, width=24, blocks=3)
    cli.write_model(directory / "student", seed=2)
    cli.write_text(directory / "text.jsonl", documents=200)
    return [
        *FLAGS,
        f"--config.teacher.path={directory / 'teacher'}",
        f"--config.student.path={directory / 'student'}",
        f"--config.data.source={directory / 'text.jsonl'}",
    ]


def tidy_when_terminated() -> None:
    """SIGTERM raises, so that what was started is ended, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as here:
        here.bind(("localhost", 0))
        return here.getsockname()[1]


def start(
    words: list[str], number: int, of: int, port: int, output: Path, checkout: Path
) -> subprocess.Popen:
    """One process of a group by hand; what it writes to stderr goes to a file."""
    place = [f"--coordinator=localhost:{port}", f"--processes={of}", f"--process={number}"]
    if of == 1:
        place = []
    with output.open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "distill_jax.main", *words, *place],
            cwd=checkout, env=environment(), stdout=subprocess.DEVNULL, stderr=file,
        )  # fmt: skip


def environment() -> dict[str, str]:
    """One CPU device for each process; compiled programs are shared."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}


def steps_done(workdir: Path) -> int:
    """How many lines a run has written, which is about how many steps it took."""
    with contextlib.suppress(OSError):
        return (workdir / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def wait_for(what, limit_s: float, every_s: float = 0.05) -> bool:
    """Whether something becomes true within a time."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(every_s)
    return bool(what())


@contextlib.contextmanager
def ending(processes: list[subprocess.Popen]) -> Iterator[None]:
    """Whatever happens inside, none of the processes stays behind."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
