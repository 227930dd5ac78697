"""The jitted training step: teacher forward, student gradient and update in one program."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from distill_jax.losses.reduce import merge
from distill_jax.optim import frozen_parameters
from distill_jax.types import Array, Batch, Mean, Params, TrainState

Objective = Callable[..., tuple[Array, dict[str, Mean]]]
TrainStep = Callable[[TrainState, Params | None, Batch], tuple[TrainState, dict[str, Mean | Array]]]


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update."""
    # Three arrays and not one thrice: a donated buffer may stand in the state only once.
    zero = lambda: jnp.zeros((), jnp.int32)
    return TrainState(zero(), params, optimizer.init(params), zero(), zero())


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int,
    frozen: tuple[str, ...] = (),
    state_shardings: TrainState | None = None,
) -> TrainStep:
    """Builds train_step(state, teacher_params, batch) -> (state, metrics), jitted.

    The state is donated; the teacher is an argument, so that it is neither baked into the program
    nor donated. The rows of the batch are cut into `microbatches` that are scanned, their
    gradients added. An update that is not finite is refused inside the program and counted.
    `frozen` are patterns over parameter paths; the new state keeps `state_shardings`.
    """

    @partial(jax.jit, donate_argnums=0, out_shardings=(state_shardings, None))
    def train_step(state, teacher_params, batch):
        n_tokens = jnp.sum(batch.weight_BT)

        def part(batch):
            def loss(params):
                # Gradients that nothing uses are not computed.
                params = jax.tree.map(
                    lambda stays, p: jax.lax.stop_gradient(p) if stays else p,
                    frozen_parameters(params, frozen),
                    params,
                )
                return objective(params, teacher_params, batch, n_tokens)

            (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
            return value, metrics, gradient

        if microbatches == 1:
            loss, metrics, gradient = part(batch)
        else:
            loss, metrics, gradient = _accumulate(part, _split(batch, microbatches))
        return _update(state, optimizer, loss, metrics, gradient)

    return train_step


def _split(batch: Batch, parts: int) -> Batch:
    """[B, ...] to [parts, B/parts, ...] by stride, so that every device keeps its share of rows."""
    cut = lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
    return jax.tree.map(cut, batch)


def _accumulate(part, batches):
    """Sums values, metrics and gradients over scanned micro-batches."""
    first = jax.eval_shape(part, jax.tree.map(lambda x: x[0], batches))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)

    def add(total, batch):
        loss, metrics, gradient = part(batch)
        merged = {name: merge(total[1][name], metrics[name]) for name in metrics}
        return (total[0] + loss, merged, jax.tree.map(jnp.add, total[2], gradient)), None

    return jax.lax.scan(add, zero, batches)[0]


def _update(state, optimizer, loss, metrics, gradient):
    """Applies a finite update and refuses any other, whatever was refused before.

    optax.apply_if_finite is not used because past its limit it applies the bad update.
    """
    norm = optax.tree.norm(gradient)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(good, a, b), new, old)
    bad = (~good).astype(jnp.int32)
    state = TrainState(
        state.step + 1,
        keep(params, state.params),
        keep(opt_state, state.opt_state),
        state.skipped + bad,
        (state.skipped_in_a_row + 1) * bad,
    )
    return state, {
        "loss": loss,
        "gradient_norm": norm,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
        **metrics,
    }
