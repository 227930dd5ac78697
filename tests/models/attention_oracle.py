"""Attention in float64 without any blocks, and the settings in which families use it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.attention_pattern import Pattern
from tests.models.conftest import CASES
from tests.models.test_mesh import config_of


class Setting(NamedTuple):
    """What a kernel is asked for: a pattern, sinks or none, and the shape of the heads."""

    pattern: Pattern
    sinks: bool
    heads: int
    kv_heads: int
    width: int

    def __str__(self):
        window, _, softcap = self.pattern
        parts = [f"window{window}" * (window is not None), f"cap{softcap}" * (softcap is not None)]
        parts += ["sinks" * self.sinks, f"{self.heads}over{self.kv_heads}x{self.width}"]
        return "-".join(part for part in parts if part)


class Draw(NamedTuple):
    """Arrays of one call, float64, and the gradient of the output."""

    query_BTNH: np.ndarray
    key_BTKH: np.ndarray
    value_BTKH: np.ndarray
    sink_N: np.ndarray | None
    segment_BT: np.ndarray
    gradient_BTNH: np.ndarray


def _of_families():
    """The settings of all variants; those that differ in the scale alone count once."""
    found = {}
    for name in CASES:
        config = config_of(name)
        scale = config.attention_scale or config.head_width**-0.5
        for is_local in set(config.local_blocks or (False,)):
            window = config.sliding_window if is_local else None
            pattern = Pattern(window, scale, config.attention_softcap)
            shape = config.heads, config.kv_heads, config.head_width
            setting = Setting(pattern, config.attention_sinks, *shape)
            found.setdefault(str(setting), setting)
    return list(found.values())


SETTINGS = [
    *_of_families(),
    Setting(Pattern(window=1, scale=0.5, softcap=None), False, 4, 1, 16),
    Setting(Pattern(window=None, scale=0.5, softcap=2.0), True, 6, 2, 16),
]


def draw(setting: Setting, length: int, seed: int = 0) -> Draw:
    """Two rows: two texts and a quarter of padding; one text with a gap of padding in its row."""
    r = np.random.default_rng(seed)
    of = lambda heads: r.normal(size=(2, length, heads, setting.width))
    segment_BT = np.ones((2, length), np.int32)
    segment_BT[0, length // 3 :] = 2
    segment_BT[0, length - length // 4 :] = 0
    segment_BT[1, 5:9] = 0
    segment_BT[1, 9:] = 2
    sink_N = 2 * r.normal(size=setting.heads) if setting.sinks else None
    key, value = of(setting.kv_heads), of(setting.kv_heads)
    return Draw(of(setting.heads), key, value, sink_N, segment_BT, of(setting.heads))


def naive(query_BTNH, key_BTKH, value_BTKH, segment_BT, sink_N, pattern):
    """The definition: one softmax over all keys that a query sees, and the sink."""
    length, heads = query_BTNH.shape[1:3]
    key, value = (jnp.repeat(x, heads // x.shape[2], axis=2) for x in (key_BTKH, value_BTKH))
    score_BNTS = pattern.scale * jnp.einsum("btnh,bsnh->bnts", query_BTNH, key)
    if pattern.softcap is not None:
        score_BNTS = pattern.softcap * jnp.tanh(score_BNTS / pattern.softcap)
    back_TS = np.arange(length)[:, None] - np.arange(length)
    seen_TS = (back_TS >= 0) & (back_TS < (pattern.window or length))
    same_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]
    score_BNTS = jnp.where((seen_TS & same_BTS)[:, None], score_BNTS, -jnp.inf)
    if sink_N is not None:
        shape = (*score_BNTS.shape[:-1], 1)
        sink_BNT1 = jnp.broadcast_to(sink_N[None, :, None, None], shape)
        score_BNTS = jnp.concatenate([score_BNTS, sink_BNT1], axis=-1)
    weight_BNTS = jax.nn.softmax(score_BNTS, axis=-1)[..., :length]
    return jnp.einsum("bnts,bsnh->btnh", weight_BNTS, value)


def outputs_and_gradients(attend, drawn: Draw, dtype) -> dict[str, np.ndarray]:
    """By name; attend(query, key, value, segment, sink). A sink is float32, as a parameter is."""
    cast = lambda x: None if x is None else jnp.asarray(x, dtype)
    sink_dtype = jnp.promote_types(dtype, jnp.float32)
    sink_N = None if drawn.sink_N is None else jnp.asarray(drawn.sink_N, sink_dtype)
    args = [cast(x) for x in (drawn.query_BTNH, drawn.key_BTKH, drawn.value_BTKH)]

    @jax.jit
    def run(query, key, value, sink, gradient):
        call = lambda q, k, v, s: attend(q, k, v, drawn.segment_BT, s)
        out, backward = jax.vjp(call, query, key, value, sink)
        return out, *backward(gradient)

    found = run(*args, sink_N, cast(drawn.gradient_BTNH))
    names = ("output", "query", "key", "value", "sink")
    return {name: np.asarray(x) for name, x in zip(names, found, strict=True) if x is not None}


def expected(setting: Setting, drawn: Draw) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        call = lambda q, k, v, segment, s: naive(q, k, v, segment, s, setting.pattern)
        return outputs_and_gradients(call, drawn, jnp.float64)


def check(attend, setting: Setting, drawn: Draw, dtype, tolerance: float) -> None:
    """Outputs and all gradients against float64, relative to the largest entry of each, or 1."""
    oracle = expected(setting, drawn)
    for name, x in outputs_and_gradients(attend, drawn, dtype).items():
        error = np.max(np.abs(x.astype(np.float64) - oracle[name]))
        # A NaN is not within it.
        assert error <= tolerance * max(1, np.max(np.abs(oracle[name]))), (name, error)
