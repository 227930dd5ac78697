"""The terms of the loss, and how they change over a run.

A Term is one summand. A Plan gives the terms at every step. A weight follows a schedule, written
as `constant`, `linear:END`, `cosine:END` (from the weight at the first step
to END at the last) or `steps:100=0.5,200=0` (from that step on, counted from 0). A parameter in
ADAPTIVE follows the loss; its state is part of the training state and of checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import DIVERGENCES
from distill_jax.types import Array, Mean, UserError

CROSS_ENTROPY = "cross_entropy"
LOAD_BALANCE = "load_balance"  # of the student's routers, not of its tokens
MOST_WEIGHT = 1e6  # at the end of a schedule, as config.terms.*.weight at its beginning
FIXED = {"static": True}  # part of the tree's structure: fixed when traced

AdaptiveState = dict[str, Array]
Weight = Callable[[Array], Array]  # step -> weight


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Term:
    """One weighted summand of the loss: a key of DIVERGENCES, cross_entropy on the labels, or
    load_balance of experts.

    A pytree whose leaves are `weight` and `moving`, the parameters that change over a run; all else
    is static. Parameters that are not given have the defaults of DIVERGENCES.

    >>> Term("jsd", 0.5).arguments
    {'beta': 0.5}
    >>> jax.tree.leaves(Term("taid", 0.5, temperature=2.0, moving={"t": 0.7}))
    [0.5, 0.7]
    """

    name: str = field(metadata=FIXED)
    weight: float | Array
    temperature: float = field(default=1.0, metadata=FIXED)
    parameters: tuple[tuple[str, float], ...] = field(default=(), metadata=FIXED)
    moving: dict[str, float | Array] = field(default_factory=dict)

    @property
    def initial(self) -> dict[str, float]:
        """All parameters of the divergence by name, as at the start of a run."""
        return {**DIVERGENCES[self.name].parameters, **dict(self.parameters)}

    @property
    def arguments(self) -> dict[str, float | Array]:
        """All parameters of the divergence by name, as at this step."""
        return self.initial | self.moving


def needs_teacher(terms: tuple[Term, ...]) -> bool:
    """Whether any term compares with a teacher."""
    return any(term.name in DIVERGENCES for term in terms)


def of_tokens(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The terms that are a value of every token."""
    return tuple(term for term in terms if term.name != LOAD_BALANCE)


class Plan(NamedTuple):
    """The loss over a run, as pure functions of the step and of adaptive states.

    init() -> states by term name
    at(step, states) -> the terms with the weights and moving parameters of this step
    follow(step, states, means of the step by term name) -> states for the next step
    """

    init: Callable[[], dict[str, AdaptiveState]]
    at: Callable[[Array, dict[str, AdaptiveState]], tuple[Term, ...]]
    follow: Callable[
        [Array, dict[str, AdaptiveState], Mapping[str, Mean]], dict[str, AdaptiveState]
    ]


def make_plan(
    terms: tuple[Term, ...],
    steps: int,
    schedules: Mapping[str, str] | None = None,
    options: Mapping[str, Mapping[str, float]] | None = None,
) -> Plan:
    """The plan of `terms` over `steps` updates.

    schedules: by term name (absent: constant). options: by name of a term in ADAPTIVE (absent: its
    defaults). Raises UserError for an invalid schedule.

    >>> plan = make_plan((Term("forward_kl", 1.0),), steps=3, schedules={"forward_kl": "linear:0"})
    >>> [float(plan.at(step, plan.init())[0].weight) for step in range(3)]
    [1.0, 0.5, 0.0]
    """
    schedules, options = schedules or {}, options or {}
    weights = [
        make_weight(t.name, schedules.get(t.name, "constant"), t.weight, steps) for t in terms
    ]
    adaptive = {t.name: (ADAPTIVE[t.name], t.initial) for t in terms if t.name in ADAPTIVE}

    def moving(name, states):
        if name not in adaptive:
            return {}
        parameter = ADAPTIVE[name].parameter
        return {parameter: states[name][parameter]}

    def at(step, states):
        return tuple(
            replace(term, weight=weight(step), moving=moving(term.name, states))
            for term, weight in zip(terms, weights, strict=True)
        )

    def follow(step, states, means):
        progress = (step + 1) / steps
        return {
            name: a.follow(
                states[name], means[name], progress, initial, a.options | options.get(name, {})
            )
            for name, (a, initial) in adaptive.items()
        }

    return Plan(
        lambda: {name: a.init(initial) for name, (a, initial) in adaptive.items()}, at, follow
    )


def make_weight(name: str, text: str, weight: float, steps: int) -> Weight:
    """A schedule's weight as a function of the step. Raises UserError for an invalid schedule.

    >>> weight = make_weight("jsd", "steps:100=0.5,200=0", 1.0, steps=300)
    >>> [float(weight(step)) for step in (0, 100, 200)]
    [1.0, 0.5, 0.0]
    """
    shape, _, rest = text.partition(":")
    try:
        return SHAPES[shape](weight, rest, steps)
    except (KeyError, ValueError):
        raise UserError(
            f"config.terms.{name}.schedule is {text!r}: use constant, linear:0.1, cosine:0.1 or"
            f" steps:100=0.5,200=0, with rising steps, and weights of 0 to {MOST_WEIGHT:g}"
        ) from None


def _constant(weight: float, rest: str, steps: int) -> Weight:
    if rest:
        raise ValueError
    return lambda step: jnp.float32(weight)


def _linear(weight: float, rest: str, steps: int) -> Weight:
    end = _weight(rest)
    return lambda step: weight + (end - weight) * _progress(step, steps)


def _cosine(weight: float, rest: str, steps: int) -> Weight:
    end = _weight(rest)
    half = lambda step: (1 + jnp.cos(jnp.pi * _progress(step, steps))) / 2
    return lambda step: end + (weight - end) * half(step)


def _steps(weight: float, rest: str, steps: int) -> Weight:
    pairs = [(int(a), _weight(b)) for a, b in (pair.split("=") for pair in rest.split(","))]
    starts = [start for start, _ in pairs]
    if starts != sorted(set(starts)) or not 0 <= starts[0] <= starts[-1] < 2**31:
        raise ValueError

    def at(step):
        value = jnp.float32(weight)
        for start, later in pairs:
            value = jnp.where(step >= start, later, value)
        return value

    return at


def _weight(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MOST_WEIGHT:
        raise ValueError
    return value


def _progress(step: Array, steps: int) -> Array:
    return jnp.clip(step / max(1, steps - 1), 0.0, 1.0)


class Adaptive(NamedTuple):
    """A parameter that follows the mean of its own term. options: name -> default."""

    parameter: str
    options: dict[str, float]
    init: Callable[[Mapping[str, float]], AdaptiveState]
    follow: Callable[..., AdaptiveState]


def _taid_init(parameters: Mapping[str, float]) -> AdaptiveState:
    return {
        "t": jnp.float32(parameters["t"]),
        "momentum": jnp.float32(0.0),
        "loss": jnp.float32(jnp.inf),
    }


def _taid_follow(state, mean, progress, parameters, options) -> AdaptiveState:
    """t rises linearly from its start to 1, faster while the loss falls.

    TAID, 2501.16937, algorithm 1. A step without counted tokens changes nothing. The first loss is
    only stored, for the second to be compared with.
    """
    loss = mean.total / jnp.maximum(mean.count, 1e-9)
    fall = (state["loss"] - loss) / (state["loss"] + 1e-15)
    momentum = options["momentum"] * state["momentum"] + (1 - options["momentum"]) * fall
    line = parameters["t"] + (1 - parameters["t"]) * progress
    faster = state["t"] + options["rate"] * jax.nn.sigmoid(momentum) * (1 - state["t"])
    t = jnp.minimum(1.0, jnp.maximum(line, faster))
    first, seen = jnp.isinf(state["loss"]), mean.count > 0
    after = {
        "t": jnp.where(first, state["t"], t),
        "momentum": jnp.where(first, state["momentum"], momentum),
        "loss": loss,
    }
    return {name: jnp.where(seen, after[name], state[name]).astype("float32") for name in state}


SHAPES: dict[str, Callable[[float, str, int], Weight]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "steps": _steps,
}
ADAPTIVE: dict[str, Adaptive] = {
    # momentum: [0 to 0.999999] share of the loss's mean fall that is kept per step
    # rate: [0 to 1] how fast t may rise per step
    "taid": Adaptive("t", {"momentum": 0.99, "rate": 5e-4}, _taid_init, _taid_follow),
}
