"""What is timed on a device: the step against others, decoding, a row of 32,768 tokens."""

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.binding import bind
from distill_jax.sampling import make_continue
from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.pytorch import Skipped
from experiments.benchmarks.ratios import Spec, by_name, paired
from experiments.benchmarks.shapes import Shape, make_case
from experiments.benchmarks.timing import measure
from experiments.gpu_check.laws import Part

DTYPE = "bfloat16"
COMPARED = ("step", "naive", "torch_eager", "torch_compile")
ROUNDS = 15
PROMPT, NEVER = 32, -1  # tokens of a prompt; a stop token that no model writes


def steps(shape: Shape, seconds: float) -> Part:
    """The package's step, the naive one and PyTorch's, each run once a round for `seconds`."""
    made = {}
    for name in COMPARED:
        yield f"{name}: first run", partial(_built, made, name, shape)
    yield "rounds", lambda: _rounds(made, shape, seconds)
    made.clear()


def _built(made, name, shape):
    """Compiles a contender and runs it once; what does not fit, or cannot run here, raises."""
    try:
        program = CONTENDERS[name].build(make_case(shape, dtype=DTYPE))[name]
    except Skipped as reason:
        return {"skipped": str(reason)}
    program.run()
    made[name] = program
    return {"compile_seconds": program.compile_seconds, "temporary_bytes": program.temporary_bytes}


def _rounds(made, shape, seconds):
    samples = measure(made, rounds=ROUNDS, seconds=seconds)
    walls = by_name(samples)
    found = {}
    for name, rounds in walls.items():
        middle = float(np.median([wall for wall, _ in rounds.values()]))
        found[name] = {"seconds": middle, "tokens_per_second": shape.rows * shape.length / middle}
    for name in walls:
        if name != "step" and "step" in walls:
            spec = Spec(f"step ÷ {name}", ("step",), (name,), None)
            ratio = paired(spec, shape.name, walls)
            found[name] |= {"step_divided_by_it": ratio.median, "interval": [ratio.low, ratio.high]}
    return {"programs": found}


def decode(shape: Shape, new_tokens: int) -> Part:
    """Greedy texts of the teacher's shape, all rows at once; the second run is timed."""
    yield (
        f"{shape.rows} rows, {new_tokens} new tokens each, {DTYPE}",
        partial(_decode, shape, new_tokens),
    )


def _decode(shape, new_tokens):
    model = bind(shape.teacher, param_dtype=DTYPE, compute_dtype=DTYPE, remat="none")
    params = jax.jit(model.init)(jax.random.key(0))
    plan = make_continue(
        model, max_new_tokens=new_tokens, temperature=0.0, stop_ids=(NEVER,), cache_dtype=DTYPE
    )
    prompts_BT = jnp.ones((shape.rows, PROMPT), jnp.int32)
    length_B = jnp.full(shape.rows, PROMPT, jnp.int32)
    keys_B = jax.random.split(jax.random.key(0), shape.rows)

    def run():
        begun = jax.block_until_ready(plan.begin(params, prompts_BT, length_B))
        return _timed(lambda: plan.go_on(params, begun, prompts_BT, length_B, keys_B, new_tokens))

    run()
    seconds = run()
    return {"seconds": seconds, "tokens_per_second": shape.rows * new_tokens / seconds}


def long(shape: Shape) -> Part:
    """One step of a long row."""
    yield f"{shape.length:,} tokens in a row, {DTYPE}", partial(_long, shape)


def _long(shape):
    made = {}
    found = _built(made, "step", shape)
    seconds = _timed(made["step"].run)
    return found | {"seconds": seconds, "tokens_per_second": shape.length / seconds}


def _timed(run: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start
