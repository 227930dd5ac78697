"""The process that compiles the steps of a plan, as its parent sees it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ml_collections import ConfigDict

from distill_jax.config import flatten
from distill_jax.planning.chips import Topology
from distill_jax.setup import tpu_compiler
from distill_jax.setup.compiling import Compiled

Compile = Callable[[ConfigDict], Compiled]
_ROOT = str(Path(__file__).resolve().parents[2])


def has_tpu_compiler(topology: Topology) -> bool:
    """Whether the chips' own compiler is installed."""
    return topology.chip.platform == "tpu" and tpu_compiler.is_installed()


@contextmanager
def compile_process(topology: Topology) -> Iterator[Compile]:
    """Yields what compiles the step of a config, in a process that ends with the context.

    A compiler that ends its process says so in its answer, and the next step has a new one.
    """
    running: list[subprocess.Popen] = []
    with tempfile.TemporaryFile() as errors:

        def compile_step(c: ConfigDict) -> Compiled:
            if not running:
                running.append(_started(topology, errors))
            worker = running[0]
            with suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(flatten(c)) + "\n")
                worker.stdin.flush()
            if line := worker.stdout.readline():
                return Compiled(**json.loads(line))
            _end(running.pop())
            return Compiled(None, None, f"its compiler ended: {_last_words(errors, worker)}")

        try:
            yield compile_step
        finally:
            for worker in running:
                _end(worker)


def _started(topology: Topology, errors) -> subprocess.Popen:
    tpu, flags = has_tpu_compiler(topology), os.environ.get("XLA_FLAGS", "")
    if not tpu:
        flags += f" --xla_force_host_platform_device_count={topology.chips}"
    variables = {
        "PYTHONPATH": os.pathsep.join([_ROOT, *filter(None, sys.path)]),
        "XLA_FLAGS": flags.strip(),
        "JAX_PLATFORMS": "cpu",
        # A program that is read from a cache says less of its memory.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    words = ["-P", "-m", "distill_jax.setup.compile_worker", *["--tpu"] * tpu]
    return subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=(tpu_compiler.ENVIRONMENT if tpu else {}) | os.environ | variables,
        start_new_session=True,
    )


def _end(worker: subprocess.Popen) -> None:
    worker.kill()
    worker.wait()
    for stream in (worker.stdin, worker.stdout):
        with suppress(BrokenPipeError):  # it still held a part of a request
            stream.close()


def _last_words(errors, worker: subprocess.Popen) -> str:
    errors.seek(0)
    said = errors.read().decode(errors="replace").strip().split("\n")[-1]
    return said[:200] or f"code {worker.returncode}"
