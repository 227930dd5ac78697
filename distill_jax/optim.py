"""Learning-rate schedules and the optax chain. Steps are updates; rates are per update."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from distill_jax.types import Params, UserError, path_name
from distill_jax.words import cut


class OptimOptions(NamedTuple):
    """The `optim` part of a config; configs/base.py documents each with its unit."""

    name: str
    schedule: str
    learning_rate: float
    final_fraction: float
    warmup_steps: int
    decay_steps: int
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    clip_norm: float
    muon_learning_rate: float
    muon_momentum: float
    muon_iterations: int
    frozen: tuple[str, ...]


def make_schedule(options: OptimOptions, peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up to `peak`, then a shape of SCHEDULES, down to peak * final_fraction.

    The update after the warm-up has the peak, the last one (number steps - 1) the final rate.
    """
    if options.schedule not in SCHEDULES:
        raise UserError(
            f"config.optim.schedule is {cut(repr(options.schedule))}:"
            f" use one of {', '.join(SCHEDULES)}"
        )
    warmup = options.warmup_steps
    if not 0 <= warmup < steps:
        use = f"0 to {steps - 1}" if steps > 1 else "0"
        raise UserError(f"config.optim.warmup_steps is {warmup} of {steps} steps: use {use}")
    final = peak * options.final_fraction
    shape = SCHEDULES[options.schedule](peak, steps - warmup, options.decay_steps, final)
    # The first update already moves: a warm-up from exactly 0 would waste a batch.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([rise, shape], [warmup])


def _cosine(peak, steps, decay, final):
    return optax.cosine_decay_schedule(peak, max(1, steps - 1), final / peak if peak else 0.0)


def _linear(peak, steps, decay, final):
    return optax.linear_schedule(peak, final, max(1, steps - 1))


def _warmup_stable_decay(peak, steps, decay, final):
    if not 1 <= decay <= steps:
        raise UserError(
            f"config.optim.decay_steps is {decay} with {steps} steps after the warm-up:"
            f" use a number from 1 to {steps} with the schedule wsd"
        )
    # The first update after the warm-up has the peak even where the fall takes all that is left.
    decay = min(decay, steps - 1)
    fall = optax.linear_schedule(peak, final, max(1, decay))
    return optax.join_schedules([optax.constant_schedule(peak), fall], [steps - 1 - decay])


def make_optimizer(options: OptimOptions, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then an optimizer of OPTIMIZERS; weight decay on matrices only.

    Frozen parameters have no moments and never move.
    """
    if options.name not in OPTIMIZERS:
        raise UserError(
            f"config.optim.name is {cut(repr(options.name))}: use one of {', '.join(OPTIMIZERS)}"
        )
    schedule = lambda peak: make_schedule(options, peak, steps)
    chain = [OPTIMIZERS[options.name](options, schedule)]
    if options.clip_norm > 0:
        chain.insert(0, optax.clip_by_global_norm(options.clip_norm))
    optimizer = optax.chain(*chain)
    if not options.frozen:
        return optimizer
    return optax.partition(
        {"trained": optimizer, "frozen": optax.set_to_zero()},
        lambda params: jax.tree.map(
            lambda stays: "frozen" if stays else "trained",
            frozen_parameters(params, options.frozen),
        ),
    )


def frozen_parameters(params: Params, patterns: tuple[str, ...]) -> Params:
    """True for the parameters whose full path, such as `embedding`, matches a pattern.

    Raises UserError for a pattern that matches none, or an invalid one.
    """
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        try:
            found = any(re.fullmatch(pattern, path) for path in paths)
        except re.error as error:
            raise UserError(
                f"config.optim.frozen has {pattern!r}, which is not a regular expression ({error}):"
                " use one such as blocks/attention/.*"
            ) from None
        if not found:
            raise UserError(
                f"config.optim.frozen has {pattern!r}, which matches no parameter: use patterns"
                f" over paths such as {', '.join(paths[:3])}"
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(re.fullmatch(p, path_name(path)) for p in patterns), params
    )


def _adamw(options: OptimOptions, schedule: Callable) -> optax.GradientTransformation:
    return optax.adamw(
        schedule(options.learning_rate),
        b1=options.beta1,
        b2=options.beta2,
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        mask=is_matrix,
    )


def _muon(options: OptimOptions, schedule: Callable) -> optax.GradientTransformation:
    """Muon for the matrices of the blocks, AdamW for all others (Jordan 2024; 2502.16982)."""
    return muon(
        schedule(options.muon_learning_rate),
        ns_steps=options.muon_iterations,
        beta=options.muon_momentum,
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        adam_b1=options.beta1,
        adam_b2=options.beta2,
        adam_weight_decay=0.0,
        adam_learning_rate=schedule(options.learning_rate),
        muon_weight_dimension_numbers=_block_matrices,
        # Updates as large as AdamW's, whatever the shape (2502.16982, section 2.2).
        consistent_rms=0.2,
    )


def is_matrix(params: Params) -> Params:
    """True for weight matrices; norms and biases are stacked vectors and do not decay."""
    vector = ("norm", "bias")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not path_name(path[-1:]).endswith(vector), params
    )


def _block_matrices(params: Params) -> Params:
    """Blocks are stacked [L, in, out], experts [L, E, in, out]: the first axes are a batch."""

    def spec(path, leaf, matrix):
        if not matrix or not path_name(path).startswith("blocks/"):
            return None
        return MuonDimensionNumbers(reduction_axis=leaf.ndim - 2, output_axis=leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(spec, params, is_matrix(params))


SCHEDULES = {
    "cosine": _cosine,
    "linear": _linear,
    "wsd": _warmup_stable_decay,
    "constant": lambda peak, steps, decay, final: optax.constant_schedule(peak),
}
OPTIMIZERS = {"adamw": _adamw, "muon": _muon}
