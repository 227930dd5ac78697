"""What must hold on a device: its numbers are those of the CPU, within a limit.

A part is a generator of (what, measure): nothing is computed before measure() is called.
Shapes in names: distill_jax/types.py.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.losses.terms import Term
from distill_jax.models.attention import KERNELS
from distill_jax.models.attention_pattern import Pattern
from distill_jax.sharding import AXES
from experiments.benchmarks import programs
from experiments.benchmarks.contenders import CONTENDERS
from experiments.benchmarks.shapes import Case, Shape, bound, make_case

Part = Iterator[tuple[str, Callable[[], dict]]]
# Of the largest entry. Both sides read the same numbers, rounded to the dtype.
LIMITS = {"float32": 1e-4, "bfloat16": 2e-2}
STEPS = 3


class Heads(NamedTuple):
    """One call of attention: its pattern, sinks or none, and its heads."""

    pattern: Pattern
    sinks: bool
    heads: int
    kv_heads: int
    width: int


def _pattern(window=None, softcap=None):
    return Pattern(window=window, scale=0.1, softcap=softcap)


HEADS = {
    "llama": Heads(_pattern(), False, 8, 2, 64),
    "pythia-2.8b": Heads(_pattern(), False, 4, 4, 80),
    "phi-3": Heads(_pattern(window=200), False, 4, 4, 96),
    "qwen3": Heads(_pattern(), False, 8, 4, 128),
    "gemma-2": Heads(_pattern(window=100, softcap=5.0), False, 4, 2, 256),
    "gpt-oss": Heads(_pattern(window=128), True, 8, 1, 64),
}


def one_device(device) -> Mesh:
    """A mesh of one device: attention takes the form of its platform."""
    return jax.make_mesh(
        (1,) * len(AXES), AXES, devices=[device], axis_types=(AxisType.Auto,) * len(AXES)
    )


def attention(device, length: int) -> Part:
    """Outputs and all gradients of the device's form, of packed rows with padding."""
    for dtype in LIMITS:
        for name, heads in HEADS.items():
            yield f"{name}, {dtype}", partial(_attention, device, heads, length, dtype)


def _attention(device, heads, length, dtype):
    r = np.random.default_rng(0)
    of = lambda count: jnp.asarray(r.normal(size=(2, length, count, heads.width)), dtype)
    query, key, value = of(heads.heads), of(heads.kv_heads), of(heads.kv_heads)
    gradient = of(heads.heads)
    sink_N = jnp.asarray(r.normal(size=heads.heads), jnp.float32) if heads.sinks else None
    segment_BT = np.ones((2, length), np.int32)
    segment_BT[0, length // 3 :] = 2
    segment_BT[:, length - length // 8 :] = 0

    def results(on, dtype):
        mesh = one_device(on)
        form = partial(KERNELS[on.platform], pattern=heads.pattern, mesh=mesh)
        arrays = [x.astype(dtype) for x in (query, key, value)]
        put = lambda x: jax.device_put(x, on)

        @jax.jit
        def run(arrays, segment_BT, sink_N, gradient):
            call = lambda arrays, sink: form(*arrays, segment_BT, sink)
            out, back = jax.vjp(call, arrays, sink_N)
            return out, back(gradient)

        return run(*jax.tree.map(put, (arrays, segment_BT, sink_N, gradient.astype(dtype))))

    with jax.default_matmul_precision("highest"):
        return _compared(results(device, dtype), results(_cpu(), "float32"), dtype)


def loss(device, shape: Shape) -> Part:
    """The fused loss and its gradients, of every divergence; in bfloat16 the usual one."""
    for name in DIVERGENCES:
        yield f"{name}, float32", partial(_loss, device, shape, (Term(name, 1.0),), "float32")
    yield (
        "forward_kl with CE, bfloat16",
        partial(_loss, device, shape, programs.FORWARD_KL, "bfloat16"),
    )


def _loss(device, shape, terms, dtype):
    case = on_cpu(shape, dtype)
    rounded = [x.astype(dtype) for x in case.loss[:4]]

    def results(on, dtype):
        inputs = [x.astype(dtype) for x in rounded] + list(case.loss[4:])
        return jax.jit(programs.loss_and_gradients(terms))(*jax.device_put(inputs, on))

    with jax.default_matmul_precision("highest"):
        return _compared(results(device, dtype), results(_cpu(), "float32"), dtype)


def step(device, shape: Shape) -> Part:
    """The losses of the first steps: forward, backward and the update of whole models."""
    for dtype in LIMITS:
        yield f"losses of {STEPS} steps, {dtype}", partial(_step, device, shape, dtype)


def _step(device, shape, dtype):
    case = on_cpu(shape, dtype)
    with jax.default_matmul_precision("highest"):
        found = losses_of(moved(case, device, dtype))
        expected = losses_of(moved(case, _cpu(), "float32"))
    assert expected[-1] < expected[0], expected
    return _compared(np.array(found), np.array(expected), dtype)


def losses_of(case: Case) -> list[float]:
    with jax.default_device(jax.tree.leaves(case.loss)[0].device):
        program = CONTENDERS["step"].build(case)["step"]
        return [program.run() for _ in range(STEPS)]


def on_cpu(shape: Shape, dtype: str) -> Case:
    """The inputs of a shape, made on the CPU: random numbers of two platforms differ."""
    with jax.default_device(_cpu()):
        return make_case(shape, dtype=dtype)


def moved(case: Case, device, dtype: str) -> Case:
    """The same inputs on a device, for models that compute there and in dtype."""
    mesh, pair = one_device(device), case.pair
    models = [bound(config, dtype, mesh) for config in (case.shape.student, case.shape.teacher)]
    loss, params, batch = jax.device_put((case.loss, pair[2:4], pair.batch), device)
    return case._replace(loss=loss, pair=type(pair)(*models, *params, batch), dtype=dtype)


def _compared(found, expected, dtype) -> dict:
    """The largest error of any array, of its largest entry."""
    error = 0.0
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = (np.asarray(x, np.float64) for x in (one, other))
        worst = np.max(np.abs(one - other)) / max(np.max(np.abs(other)), 1e-30)
        error = max(error, float(worst)) if np.isfinite(worst) else float("inf")
    return {"error": error, "limit": LIMITS[dtype], "met": error <= LIMITS[dtype]}


def _cpu():
    return jax.devices("cpu")[0]
