"""What is read from compiled programs and fresh processes, and not timed in rounds."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks import programs
from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.ratios import Ratio, interval
from experiments.benchmarks.shapes import (
    SHAPES,
    LossInputs,
    Pair,
    Shape,
    bound,
    llama,
    make_batch,
    make_case,
)

ROOT = Path(__file__).resolve().parents[2]
MEMORY_LIMIT, COMPILE_LIMIT = 1.5, 1.5
TOKENS = (1024, 16 * 1024)
DEPTHS = (4, 32)
REPEATS = 3
TINY_WIDTH, TINY_VOCAB, TINY_LENGTH = 64, 256, 32


def memory(shape: Shape) -> list[Ratio]:
    """Temporaries of the loss's forward and backward at 16k tokens over those at 1k."""
    few, many = (loss_temporaries(shape, tokens) for tokens in TOKENS)
    what = f"loss temporaries, {TOKENS[1] // 1024}k ÷ {TOKENS[0] // 1024}k tokens"
    return [Ratio(what, shape.name, many / few, None, None, None, MEMORY_LIMIT)]


def loss_temporaries(shape: Shape, tokens: int) -> int:
    """Bytes; the program is compiled for abstract inputs, so nothing is allocated."""
    f32 = lambda *size: jax.ShapeDtypeStruct(size, np.float32)
    rows, length = shape.rows, tokens // shape.rows
    student, teacher = shape.student, shape.teacher
    inputs = LossInputs(
        f32(rows, length, student.width),
        f32(student.width, student.vocab),
        f32(rows, length, teacher.width),
        f32(teacher.width, teacher.vocab),
        jax.ShapeDtypeStruct((rows, length), np.int32),
        f32(rows, length),
    )
    function = programs.loss_and_gradients(programs.FORWARD_KL)
    return jax.jit(function).lower(*inputs).compile().memory_analysis().temp_size_in_bytes


def compile_time(shape: Shape) -> list[Ratio]:
    """Seconds to compile the step of deep models over those of shallow ones, tiny widths."""
    seconds = {depth: [] for depth in DEPTHS}
    for _ in range(REPEATS):
        for depth in DEPTHS:
            seconds[depth].append(_in_process("compile", str(depth))["seconds"])
    values = np.array(seconds[DEPTHS[1]]) / np.array(seconds[DEPTHS[0]])
    what = f"compile time, {DEPTHS[1]} ÷ {DEPTHS[0]} blocks"
    low, high = interval(values)
    return [Ratio(what, "tiny", float(np.median(values)), low, high, None, COMPILE_LIMIT)]


def compile_seconds(depth: int) -> float:
    """Tracing and compiling the step of two models of `depth` blocks."""
    config = llama(TINY_WIDTH, depth, TINY_VOCAB)
    model = bound(config)
    params, batch = model.abstract(), make_batch(Shape("tiny", config, config, 2, TINY_LENGTH))
    setup = programs.live(Pair(model, model, params, params, batch))
    step = programs.train_step(setup)
    state = jax.eval_shape(lambda params: programs.fresh_state(setup, params), params)
    start = time.perf_counter()
    step.lower(state, *programs.arguments(setup)).compile()
    return time.perf_counter() - start


def process_peak(shape: str, contender: str) -> int:
    """Peak resident bytes of a process that runs one contender alone, once it is warm.

    Linux only: compiling and making the inputs are left out by resetting the kernel's mark.
    """
    return _in_process("peak", shape, contender)["bytes"]


def _peak_here(shape: str, contender: str) -> int:
    built = CONTENDERS[contender].build(make_case(SHAPES[shape]))
    for program in built.values():
        program.run()
    Path("/proc/self/clear_refs").write_text("5")
    for program in built.values():
        program.run()
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def _in_process(*arguments: str) -> dict:
    command = [sys.executable, "-m", "experiments.benchmarks.probes", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


PROBES = {"memory": memory, "compile": compile_time}

if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    found = {"seconds": compile_seconds(int(rest[0]))} if task == "compile" else {}
    print(json.dumps(found or {"bytes": _peak_here(*rest)}))
