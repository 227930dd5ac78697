"""What stands around the GPU's kernel, with the kernel's definition in its place; and its lowering.

The kernel itself runs on GPUs alone: experiments/gpu_check.
"""

import re
import types
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models import gpu_attention
from distill_jax.models.attention_pattern import Pattern
from tests.models.attention_oracle import SETTINGS, Setting, check, draw

LENGTH = 140  # is padded to two blocks


class Operator:
    """What tokamax's operators promise, by their definition: outputs, largest score and sum."""

    config = None

    def replace(self, config):
        return self

    def bind(self, *args, **options):
        return types.SimpleNamespace(args=args, kwargs=options, heuristics_config=None)

    def __call__(self, query, key, value, *, first, end, pattern, return_residuals):
        score = self.scores(query, key, first, end, pattern)
        largest = jnp.max(score, axis=-1)
        weight = jnp.exp(score - largest[..., None])
        total = jnp.sum(weight, axis=-1)
        groups = query.shape[2] // value.shape[2]
        value = jnp.repeat(value, groups, axis=2)
        out = jnp.einsum("bnts,bsnh->btnh", weight / total[..., None], value)
        return out.astype(query.dtype), (largest, total)

    def scores(self, query, key, first, end, pattern):
        key = jnp.repeat(key, query.shape[2] // key.shape[2], axis=2)
        score = pattern.scale * jnp.einsum("btnh,bsnh->bnts", query, key)
        if pattern.softcap is not None:
            score = pattern.softcap * jnp.tanh(score / pattern.softcap)
        place = jnp.arange(key.shape[1])
        seen = (place >= first[..., None]) & (place < end[:, None])
        return jnp.where(seen[:, None], score, jnp.finfo(jnp.float32).min)

    @property
    def vjp(self):
        return Backward()


class Backward(Operator):
    """The gradients of a flash kernel: the softmax is exp(score - largest) / total, as given."""

    def __call__(self, sums, out, gradient, query, key, value, *, first, end, pattern):
        largest, total = sums
        score, back = jax.vjp(lambda q, k: self.scores(q, k, first, end, pattern), query, key)
        weight = jnp.exp(score - largest[..., None]) / total[..., None]
        groups = query.shape[2] // value.shape[2]
        of_groups = lambda x: x.reshape(*x.shape[:2], -1, groups, x.shape[-1]).sum(3)
        product = jnp.einsum("btnh,bsnh->bnts", gradient, jnp.repeat(value, groups, axis=2))
        delta = jnp.einsum("btnh,btnh->bnt", out, gradient)
        of_query, of_key = back(weight * (product - delta[..., None]))
        of_value = of_groups(jnp.einsum("bnts,btnh->bsnh", weight, gradient))
        return {"q": of_query, "k": of_key, "v": of_value}


@pytest.fixture
def defined(monkeypatch):
    """The definition in the kernel's place, on a device that has the kernel."""
    operator = lambda pattern, first, end: (
        Operator(), {"first": first, "end": end, "pattern": pattern}
    )  # fmt: skip
    monkeypatch.setattr(gpu_attention, "_operator", operator)
    monkeypatch.setattr(gpu_attention, "lacks", lambda *_: "")


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_it_is_the_definition(setting, defined):
    call = partial(gpu_attention.attend, pattern=setting.pattern, mesh=None)
    check(call, setting, draw(setting, LENGTH), jnp.float32, 1e-5)


def test_what_the_kernel_lacks_is_said():
    lacks = gpu_attention.lacks
    assert "float32" in lacks(jnp.float32, "9.0")
    assert "8.0" in lacks(jnp.bfloat16, "8.0")
    assert "unknown" in lacks(jnp.bfloat16, "")
    with mock.patch("importlib.metadata.version", return_value="0.0.11"):
        assert "pip install tokamax==0.0.12" in lacks(jnp.bfloat16, "9.0")
    with mock.patch("importlib.metadata.version", return_value="0.0.12"):
        assert lacks(jnp.bfloat16, "9.0") == ""


class Hopper(types.SimpleNamespace):
    """A device that tokamax asks what it is."""

    __hash__ = object.__hash__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tokamax's, of JAX
@pytest.mark.parametrize(
    "setting",
    [
        *SETTINGS,
        *(
            Setting(Pattern(128, 0.1, 50.0), True, 8, 2, width)
            for width in (64, 80, 96, 128, 256)
        ),
    ],
    ids=str,
)  # fmt: skip
def test_the_kernel_is_lowered_for_a_gpu(setting):
    """Forward and backward; whether the program also compiles and is right, a GPU alone shows."""
    pytest.importorskip("tokamax")
    device = Hopper(
        platform="gpu", compute_capability="9.0", device_kind="NVIDIA H100", core_count=132
    )
    length = 2 * LENGTH
    of = lambda heads: jax.ShapeDtypeStruct((2, length, heads, setting.width), jnp.bfloat16)
    sink = jax.ShapeDtypeStruct((setting.heads,), jnp.float32) if setting.sinks else None

    def both(query, key, value, segment, sink, gradient):
        call = lambda q, k, v, s: gpu_attention.attend(
            q, k, v, segment, s, pattern=setting.pattern, mesh=None
        )
        out, back = jax.vjp(call, query, key, value, sink)
        return out, back(gradient)

    key, segment = of(setting.kv_heads), jax.ShapeDtypeStruct((2, length), np.int32)
    args = of(setting.heads), key, key, segment, sink, of(setting.heads)
    with (
        mock.patch("jax.extend.backend.get_default_device", return_value=device),
        mock.patch.object(gpu_attention, "lacks", return_value=""),
    ):
        lowered = jax.jit(both).trace(*args).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert text.count("custom_call @mosaic_gpu") >= 3  # forward, queries, keys with values
    shapes = [shape.split("x") for shape in re.findall(r"tensor<([0-9x]+)x\w+>", text)]
    padded = str(-(-length // 128) * 128)
    assert not [shape for shape in shapes if shape.count(padded) > 1]
