"""What is timed. A contender is a function of the shared inputs that gives one or more programs.

Every JAX program is compiled before it runs and waits for all of its results.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.lax import optimization_barrier

from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.terms import Term
from distill_jax.study.flops import matrix_flops
from experiments.benchmarks import programs, pytorch, trl, tunix
from experiments.benchmarks.shapes import Case, Pair
from experiments.benchmarks.timing import Outcome, Program

PEAKS = {  # name -> rows, inner, columns of a product, and what computes it
    "peak_xla": ((2048, 2048, 2048), "xla"),
    "peak_numpy": ((2048, 2048, 2048), "numpy"),
    "peak_numpy_wide": ((1024, 512, 16384), "numpy"),
}
PARTS = ("part_teacher", "part_student", "part_loss", "part_optimizer")


class Contender(NamedTuple):
    """build(case) -> programs by name. Contenders of a group are timed in the same rounds."""

    group: str
    build: Callable[[Case], dict[str, Program]]


def compiled(function, *args, donate=(), flops=False) -> tuple[Any, Program]:
    """The executable, and a Program that lacks nothing but a run of its own."""
    start = time.perf_counter()
    jitted = function if hasattr(function, "lower") else jax.jit(function, donate_argnums=donate)
    traced = jitted.trace(*args)
    executable = traced.lower().compile()
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    return executable, Program(
        run=lambda: jax.block_until_ready(executable(*args)),
        compile_seconds=seconds,
        temporary_bytes=None if memory is None else memory.temp_size_in_bytes,
        flops=matrix_flops(traced.jaxpr) if flops else None,
    )


def products(case: Case) -> dict[str, Program]:
    """The four matrix products of a loss alone, in the forms that may be the fastest."""
    inputs = case.loss
    tokens = [x.reshape(-1, x.shape[-1]) for x in (inputs.hidden_BTD, inputs.teacher_hidden_BTD)]
    args = tokens[0], inputs.weight_DV, tokens[1], inputs.teacher_weight_DV
    return {name: compiled(function, *args)[1] for name, function in PRODUCTS.items()}


def products_once(hidden_XD, weight_DV, teacher_XD, teacher_weight_DV):
    """Both heads' products, and the two of a gradient with one of their results in its place.

    Each of the four feeds an output, and the barrier keeps the compiler from multiplying the
    small matrices first.
    """
    student_XV, teacher_XV = optimization_barrier(
        (hidden_XD @ weight_DV, teacher_XD @ teacher_weight_DV)
    )
    return student_XV @ weight_DV.T, hidden_XD.T @ teacher_XV


def products_turned(hidden_XD, weight_DV, teacher_XD, teacher_weight_DV):
    """The same with the last product taken the other way round, and its result [V, D]."""
    student_XV, teacher_XV = optimization_barrier(
        (hidden_XD @ weight_DV, teacher_XD @ teacher_weight_DV)
    )
    return student_XV @ weight_DV.T, teacher_XV.T @ hidden_XD


def products_blocked(hidden_XD, weight_DV, teacher_XD, teacher_weight_DV):
    """products_turned with the logits of one block of tokens at a time."""
    size = min(programs.BLOCK_TOKENS, len(hidden_XD))
    cut = lambda x: x.reshape(-1, size, x.shape[-1])

    def body(total_VD, block):
        hidden, weight = products_turned(block[0], weight_DV, block[1], teacher_weight_DV)
        return total_VD + weight, hidden

    return jax.lax.scan(body, jnp.zeros_like(weight_DV.T), (cut(hidden_XD), cut(teacher_XD)))


def losses(case: Case) -> dict[str, Program]:
    """Forward and backward of forward KL with cross-entropy, and of every divergence alone."""
    wanted = {"loss": programs.FORWARD_KL}
    wanted |= {f"loss_{name}": (Term(name, 1.0),) for name in DIVERGENCES}
    return {
        name: compiled(programs.loss_and_gradients(terms), *case.loss)[1]
        for name, terms in wanted.items()
    }


def peak(case: Case) -> dict[str, Program]:
    """Large products by XLA and by NumPy's BLAS: what the machine can do."""
    made = {}
    for name, ((rows, inner, columns), by) in PEAKS.items():
        r = np.random.default_rng(0)
        left, right = (
            r.standard_normal(size, np.float32) for size in ((rows, inner), (inner, columns))
        )
        flops = 2 * rows * inner * columns
        if by == "xla":
            made[name] = compiled(jnp.matmul, jnp.array(left), jnp.array(right))[1]
        else:
            out = np.empty((rows, columns), np.float32)
            made[name] = Program(partial(np.matmul, left, right, out=out))
        made[name] = made[name]._replace(flops=flops)
    return made


def whole(name: str, setup: Callable[[Pair], programs.Setup], *, flops=False):
    """A contender that is the package's step; each run updates the state of the last."""

    def build(case):
        made = setup(case.pair)
        rest = programs.arguments(made)
        kept = [programs.fresh_state(made, case.pair.student_params)]
        step, program = compiled(programs.train_step(made), kept[0], *rest, flops=flops)

        def run():
            kept[0], metrics = step(kept[0], *rest)
            jax.block_until_ready(kept[0])
            return Outcome(float(metrics["loss"]), float(metrics["gradient_norm"]))

        return {name: program._replace(run=run)}

    return Contender("step", build)


def parts(case: Case) -> dict[str, Program]:
    """What a step consists of, each a program of its own."""
    pair = case.pair
    # The head is the loss's part; without it here no zeros are written as its gradient.
    body = {name: value for name, value in pair.student_params.items() if name != "head"}
    head = {name: value for name, value in pair.student_params.items() if name == "head"}

    def student_gradient(body, head, batch, cotangent_BTD):
        hidden = lambda body: programs.outputs(pair.student, body | head, batch).hidden_BTD
        hidden_BTD, pull = jax.vjp(hidden, body)
        return hidden_BTD, pull(cotangent_BTD)

    teacher_hidden = lambda params, batch: programs.outputs(pair.teacher, params, batch).hidden_BTD
    cotangent_BTD = case.loss.hidden_BTD
    built = (
        compiled(teacher_hidden, pair.teacher_params, pair.batch)[1],
        compiled(student_gradient, body, head, pair.batch, cotangent_BTD)[1],
        compiled(programs.loss_and_gradients(programs.FORWARD_KL), *case.loss)[1],
        _update_alone(pair.student_params),
    )
    return dict(zip(PARTS, built, strict=True))


def _update_alone(params) -> Program:
    optimizer = programs.optimizer()
    gradient = jax.tree.map(lambda p: jnp.full_like(p, 1e-3), params)

    def update(params, opt_state, gradient):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    own = jax.tree.map(jnp.array, params)
    kept = [(own, optimizer.init(own))]
    executable, program = compiled(update, *kept[0], gradient, donate=(0, 1))

    def run():
        kept[0] = jax.block_until_ready(executable(*kept[0], gradient))

    return program._replace(run=run)


PRODUCTS = {f.__name__: f for f in (products_once, products_turned, products_blocked)}

# Cheap ones first: what fails or is refused then does so early.
CONTENDERS = {
    "peak": Contender("step", peak),
    "matmuls": Contender("loss", products),
    "loss": Contender("loss", losses),
    "parts": Contender("step", parts),
    "cached_top64": whole("cached_top64", programs.cached_top64),
    "cached_hidden": whole("cached_hidden", programs.cached_hidden),
    "step": whole("step", programs.live, flops=True),
    "step_kl": whole("step_kl", programs.live_kl),
    "naive": whole("naive", programs.naive),
    "torch_eager": Contender("step", lambda case: pytorch.build(case, compiled=False)),
    "torch_compile": Contender("step", lambda case: pytorch.build(case, compiled=True)),
    "tunix": Contender("step", tunix.build),
    "trl": Contender("step", trl.build),
}
