"""The jitted training step: teacher forward, student gradient and update in one program."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from distill_jax.losses.terms import Plan
from distill_jax.optim import frozen_parameters
from distill_jax.spikes import followed, is_spike, no_updates
from distill_jax.types import Array, Batch, Mean, Params, TrainState

Objective = Callable[..., tuple[Array, dict[str, Mean]]]
TrainStep = Callable[
    [TrainState, tuple[Params, ...], Batch, Array], tuple[TrainState, dict[str, Mean | Array]]
]


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    *,
    keep_average: bool = False,
) -> TrainState:
    """The state before the first update. keep_average: keep a running average as a teacher."""
    # Separate arrays: a donated buffer may occur in the state only once.
    zero = lambda: jnp.zeros((), jnp.int32)
    adaptive = plan.init()
    return TrainState(
        step=zero(),
        params=params,
        opt_state=optimizer.init(params),
        skipped=zero(),
        skipped_in_a_row=zero(),
        adaptive=adaptive,
        average=jax.tree.map(jnp.copy, params) if keep_average else None,
        spikes=zero(),
        recent=no_updates(plan.at(zero(), adaptive)),
    )


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    *,
    microbatches: int,
    frozen: tuple[str, ...] = (),
    average_decay: float = 0.0,
    spike_factor: float = 0.0,
    state_shardings: TrainState | None = None,
) -> TrainStep:
    """Builds train_step(state, teacher_params, batch, key) -> (state, metrics), jitted.

    The state is donated; the teachers are an argument, so that they are neither constants of the
    program nor donated. The rows of the batch are split into `microbatches`, over which gradients
    are accumulated by a scan. A non-finite update, and a spike (spikes.py), is refused inside the
    program and counted. `plan` gives the terms of the loss at each step; `key` is folded with the
    step. frozen: patterns over parameter paths. average_decay: decay per step of the running
    average of the parameters, where the state has one. spike_factor: of the median gradient norm.
    The new state has `state_shardings`.
    """

    @partial(jax.jit, donate_argnums=0, out_shardings=(state_shardings, None))
    def train_step(state, teacher_params, batch, key):
        n_tokens = jnp.sum(batch.weight_BT)
        terms = plan.at(state.step, state.adaptive)
        key = jax.random.fold_in(key, state.step)
        teachers = tuple(teacher_params)
        if state.average is not None:
            teachers = (*teachers, state.average)

        def part(batch):
            def loss(params):
                # Gradients that nothing uses are not computed.
                params = jax.tree.map(
                    lambda stays, p: jax.lax.stop_gradient(p) if stays else p,
                    frozen_parameters(params, frozen),
                    params,
                )
                return objective(params, teachers, batch, key, n_tokens, terms=terms)

            (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
            return value, metrics, gradient

        if microbatches == 1:
            loss, metrics, gradient = part(batch)
        else:
            loss, metrics, gradient = _accumulate(part, _split(batch, microbatches))
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        spike = finite & is_spike(state.recent, norm, metrics, terms, spike_factor)
        good = finite & ~spike
        keep = partial(_keep, good)
        new = _update(state, optimizer, gradient, keep)
        adaptive = keep(plan.follow(state.step, state.adaptive, metrics), state.adaptive)
        average = keep(_averaged(state.average, new.params, average_decay), state.average)
        new = new._replace(
            skipped=state.skipped + ~finite,
            skipped_in_a_row=(state.skipped_in_a_row + 1) * ~good,
            adaptive=adaptive,
            average=average,
            spikes=state.spikes + spike,
            recent=keep(followed(state.recent, norm, metrics), state.recent),
        )
        return new, {
            "loss": loss,
            "gradient_norm": norm,
            "skipped": new.skipped,
            "spikes": new.spikes,
            "skipped_in_a_row": new.skipped_in_a_row,
            **_moving(terms),
            **metrics,
        }

    return train_step


def _averaged(average, params, decay):
    """decay * average + (1 - decay) * params, in the average's own dtypes."""
    if average is None:
        return None
    return jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype), average, params)


def _moving(terms):
    """The current values of parameters that the plan changes, by `term_parameter`."""
    return {f"{term.name}_{name}": value for term in terms for name, value in term.moving.items()}


def _split(batch: Batch, parts: int) -> Batch:
    """[B, ...] to [parts, B/parts, ...] by stride, so that every device keeps its share of rows."""
    cut = lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    return jax.tree.map(cut, batch)


def _accumulate(part, batches):
    """Sums values, metrics and gradients over scanned micro-batches."""
    first = jax.eval_shape(part, jax.tree.map(lambda x: x[0], batches))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

    def add(total, batch):
        return jax.tree.map(jnp.add, total, part(batch)), None

    return jax.lax.scan(add, zero, batches)[0]


def _update(state, optimizer, gradient, keep):
    """The state after one more step; `keep` refuses what is not good.

    Not optax.apply_if_finite, which applies bad updates once its limit is reached.
    """
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(
        step=state.step + 1,
        params=keep(params, state.params),
        opt_state=keep(opt_state, state.opt_state),
    )


def _keep(good, new, old):
    """`new` where the update was good, otherwise `old`."""
    return jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
