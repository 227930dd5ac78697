"""Rotary position embeddings: coordinates (i, i + R/2) of each head rotate with the position.

R is how many coordinates of a head turn, from the first on: mostly all of its H. h is R/2.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from distill_jax.types import Array


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of the frequencies for contexts longer than in pretraining.

    kind "linear": every frequency is divided by `factor`.
    kind "llama3" (Llama 3.1): wavelengths longer than original_positions / low_frequency_factor are
    divided by `factor`, those shorter than original_positions / high_frequency_factor stay, and
    those between are interpolated.
    kind "longrope" (2402.13753): the frequency of the i-th pair is divided by short_factors[i], or
    by long_factors[i] in a text of more than original_positions; cosines and sines are multiplied
    by attention_factor.
    kind "yarn" (2309.00071): as llama3, but interpolated along the index of the pair instead of
    the frequency, between the pairs that turn `fast_turns` and `slow_turns` times in the
    pretraining context, rounded outwards where `truncate` says so; attention_factor as above.
    """

    kind: str
    factor: float
    low_frequency_factor: float | None = None
    high_frequency_factor: float | None = None
    original_positions: int | None = None
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0
    fast_turns: float | None = None
    slow_turns: float | None = None
    truncate: bool | None = None

    @property
    def short_texts(self) -> int | None:
        """Positions of the longest text that counts as short; None: all texts are alike."""
        return self.original_positions if self.kind == "longrope" else None


def inverse_frequencies(
    width: int, theta: float, scaling: RopeScaling | None, *, long: bool = False
) -> np.ndarray:
    """Radians per position for each pair of the `width` coordinates that turn, float32 [R/2].

    long: in a text longer than scaling.short_texts. Computed in float32 throughout, because models
    were pretrained with these rounded values.
    """
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    frequencies = np.float32(1.0) / np.float32(theta) ** exponents
    if scaling is None:
        return frequencies
    return SCALINGS[scaling.kind](frequencies, theta, scaling, long).astype(np.float32)


def _linear(frequencies, theta, scaling, long):
    return frequencies / np.float32(scaling.factor)


def _llama3(frequencies, theta, scaling, long):
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    turns = scaling.original_positions * frequencies / np.float32(2 * np.pi)
    # 0 for fewer than `low` turns in the pretraining context, 1 for more than `high`
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 - keep) * frequencies / scaling.factor + keep * frequencies


def _longrope(frequencies, theta, scaling, long):
    factors = scaling.long_factors if long else scaling.short_factors
    return frequencies / np.array(factors, np.float32)


def _yarn(frequencies, theta, scaling, long):
    pairs = len(frequencies)

    def pair_of(turns):
        """The index, not whole, of the pair that turns so often in the pretraining context."""
        return pairs * math.log(scaling.original_positions / (turns * 2 * math.pi), theta)

    low, high = pair_of(scaling.fast_turns), pair_of(scaling.slow_turns)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = (np.arange(pairs, dtype=np.float32) - low) / ((high - low) or 0.001)
    ramp = np.clip(ramp, 0.0, 1.0).astype(np.float32)
    return frequencies / np.float32(scaling.factor) * ramp + frequencies * (1 - ramp)


def rotary_tables(
    position_BT: Array,
    width: int,
    theta: float,
    scaling: RopeScaling | None,
    long_BT: Array | None = None,
) -> tuple[Array, Array]:
    """Cosines and sines of every position's angles, both float32 [B, T, R/2].

    long_BT: whether the position's text is longer than scaling.short_texts; None: there is no such
    difference.
    """
    frequencies = inverse_frequencies(width, theta, scaling)
    if long_BT is not None:
        other = inverse_frequencies(width, theta, scaling, long=True)
        frequencies = jnp.where(long_BT[..., None], other, frequencies)
    angle_BTh = position_BT[..., None].astype(jnp.float32) * frequencies
    factor = 1.0 if scaling is None else scaling.attention_factor
    return jnp.cos(angle_BTh) * factor, jnp.sin(angle_BTh) * factor


def rotate(x_BTNH: Array, cos_BTh: Array, sin_BTh: Array) -> Array:
    """Rotates each head's coordinate pairs by their angles, in float32; returns the dtype of x."""
    pairs, wide = cos_BTh.shape[-1], x_BTNH.astype(jnp.float32)
    first, second, rest = jnp.split(wide, (pairs, 2 * pairs), axis=-1)
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    turned = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(turned, axis=-1).astype(x_BTNH.dtype)


SCALINGS = {"linear": _linear, "llama3": _llama3, "longrope": _longrope, "yarn": _yarn}
