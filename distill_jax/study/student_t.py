"""Student's t, the sum of two scaled t, and the power of a t test, in NumPy alone.

Everything rests on one substitution: with t = sqrt(dof) * tan(angle) the density of Student's t is
proportional to cos(angle) ** (dof - 1), which is smooth on an interval of length pi.
"""

import math
from typing import NamedTuple

import numpy as np

CELLS = 4096  # of a table
LARGEST_DOF = 500.0  # above it the 97.5% quantile is less than 0.3% from the normal's
_ANGLES = np.linspace(-np.pi / 2, np.pi / 2, CELLS + 1)
_NORMAL = np.linspace(-9, 9, CELLS + 1)
_NORMAL_CDF = np.cumsum(np.exp(-(_NORMAL**2) / 2)) / np.sum(np.exp(-(_NORMAL**2) / 2))
_NORMAL_CDF -= np.exp(-(_NORMAL**2) / 2) / np.sum(2 * np.exp(-(_NORMAL**2) / 2))  # trapezoids
_COARSE = slice(None, None, 8)  # the angles that an integral over a table visits


class T(NamedTuple):
    """scale * (a t variable): what an estimate's error looks like when its variance is estimated.

    dof  degrees of freedom, 1 or more.
    cdf  P(angle <= a) at the table's angles.
    """

    scale: float
    dof: float
    cdf: np.ndarray


def t_table(dof: float, scale: float = 1.0) -> T:
    """The table of a t variable; dof is held between 1 and LARGEST_DOF."""
    dof = float(np.clip(dof, 1.0, LARGEST_DOF))
    density = np.cos(_ANGLES) ** (dof - 1)
    density[[0, -1]] = 1.0 if dof == 1 else 0.0  # cos(pi / 2) is not 0 in floating point
    mass = np.cumsum((density[1:] + density[:-1]) / 2)
    return T(float(scale), dof, np.concatenate([[0.0], mass / mass[-1]]))


def t_quantile(probability: float, dof: float) -> float:
    """The t that a t variable stays below with this probability."""
    table = t_table(dof)
    if probability < 0.5:
        return -t_quantile(1 - probability, dof)
    # The upper half read from the other end, where small numbers are exact.
    angle = -np.interp(1 - probability, table.cdf, _ANGLES)
    return math.sqrt(table.dof) * math.tan(angle)


def _upper_tail(values: np.ndarray, table: T) -> np.ndarray:
    """P(scale * t > value)."""
    angle = np.arctan2(values, table.scale * math.sqrt(table.dof))
    return np.interp(-angle, _ANGLES, table.cdf)  # by symmetry: exact where it is small


def sum_tail(value: float, first: T, second: T) -> float:
    """P(X + Y > value) for two independent scaled t variables: the Behrens-Fisher distribution.

    A level of randomness whose scale is 0 is absent; with both absent the sum is 0.
    """
    small, large = sorted((first, second), key=lambda table: table.scale)
    if large.scale == 0:
        return float(value < 0)
    angles = _ANGLES[_COARSE]
    mass = np.cos(angles[1:-1]) ** (small.dof - 1)
    nodes = small.scale * math.sqrt(small.dof) * np.tan(angles[1:-1])
    return float(np.sum(mass * _upper_tail(value - nodes, large)) / np.sum(mass))


def sum_quantile(probability: float, first: T, second: T) -> float:
    """The value that X + Y stays below with this probability, 0.5 or more."""
    low, high = 0.0, sum(t.scale * t_quantile(probability, t.dof) for t in (first, second))
    while sum_tail(high, first, second) > 1 - probability and high > 0:
        high *= 2
    for _ in range(32):
        middle = (low + high) / 2
        if sum_tail(middle, first, second) > 1 - probability:
            low = middle
        else:
            high = middle
    return high


def detectable_shift(dof: float, confidence: float, power: float) -> float:
    """The true effect, in standard errors, that a two-sided t test finds with this power.

    P(error + shift > critical * s) = power, where s, the estimated over the true standard error,
    is sqrt(chi-squared / dof): the noncentral t distribution, integrated over s.
    """
    dof = float(np.clip(dof, 1.0, LARGEST_DOF))
    critical = t_quantile((1 + confidence) / 2, dof)
    s = np.linspace(0, 1 + 6 / math.sqrt(dof), 802)[1:]
    log_density = (dof - 1) * np.log(s) - dof * s**2 / 2
    mass = np.exp(log_density - log_density.max())
    mass /= mass.sum()

    def power_of(shift: float) -> float:
        return float(mass @ np.interp(shift - critical * s, _NORMAL, _NORMAL_CDF))

    low, high = 0.0, critical + 4.0
    while power_of(high) < power:
        high *= 2
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if power_of(middle) < power else (low, middle)
    return high
