"""The only file here that knows how the package puts a loss and a training step together.

Shapes in names: distill_jax/types.py.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_jax.losses.divergences import divergence
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.partial_targets import top_k
from distill_jax.losses.terms import CROSS_ENTROPY, Term, make_plan
from distill_jax.losses.tokens import weighted_mean
from distill_jax.models.binding import Model
from distill_jax.objective import cached_teacher, live_teacher, objective
from distill_jax.step import init_state, make_train_step
from distill_jax.types import Array, Batch, Params, Projected, TrainState, Unembed
from experiments.benchmarks.shapes import Pair

BLOCK_TOKENS = 256
DIVERGENCE_WEIGHT, LABEL_WEIGHT = 0.9, 0.1
FORWARD_KL = (Term("forward_kl", DIVERGENCE_WEIGHT), Term(CROSS_ENTROPY, LABEL_WEIGHT))
KL_ALONE = (Term("forward_kl", 1.0),)
TOP = 64
LEARNING_RATE, BETAS, EPSILON, DECAY = 1e-4, (0.9, 0.95), 1e-8, 0.1


def optimizer() -> optax.GradientTransformation:
    """AdamW on every parameter, without clipping."""
    return optax.adamw(LEARNING_RATE, *BETAS, eps=EPSILON, weight_decay=DECAY)


def loss_and_gradients(terms: tuple[Term, ...]):
    """f(*LossInputs) -> (loss sum, gradients of the student's hidden states and head)."""

    def loss(hidden_BTD, weight_DV, teacher_hidden_BTD, teacher_weight_DV, labels_BT, weight_BT):
        targets = Projected(teacher_hidden_BTD, Unembed(teacher_weight_DV))
        return linear_divergence(
            hidden_BTD,
            Unembed(weight_DV),
            targets,
            labels_BT,
            weight_BT,
            terms=terms,
            block_tokens=BLOCK_TOKENS,
        )[0]

    return jax.value_and_grad(loss, argnums=(0, 1))


class Setup(NamedTuple):
    """What a step is made of: an objective, the teachers' parameters, a batch, the loss's terms."""

    loss: Callable
    teachers: tuple
    batch: Batch
    terms: tuple[Term, ...] = FORWARD_KL


def train_step(setup: Setup):
    """The package's jitted step (state, teachers, batch, key) -> (state, metrics)."""
    return make_train_step(setup.loss, optimizer(), make_plan(setup.terms, 1), microbatches=1)


def fresh_state(setup: Setup, params: Params) -> TrainState:
    """A state of its own buffers, since the step donates them."""
    own = jax.tree.map(jnp.array, params)
    return init_state(own, optimizer(), make_plan(setup.terms, 1))


def arguments(setup: Setup) -> tuple:
    """What the step takes after the state."""
    return setup.teachers, setup.batch, jax.random.key(0)


def live(pair: Pair) -> Setup:
    """The package's objective; the teacher runs in the step."""
    loss = _objective(pair.student, live_teacher(pair.teacher))
    return Setup(loss, (pair.teacher_params,), pair.batch)


def live_kl(pair: Pair) -> Setup:
    """The same with forward KL alone."""
    return live(pair)._replace(terms=KL_ALONE)


def naive(pair: Pair) -> Setup:
    """The same loss from logits [B, T, V] of both models, all tokens at once."""
    student, teacher = pair.student, pair.teacher

    def loss(params, teachers, batch, key, n_tokens, *, terms):
        # One log-softmax per model serves both terms, without a floor: the fastest naive form.
        log_q_BTV = jax.nn.log_softmax(logits(student, params, batch))
        # The teacher may have rows for tokens that the student lacks: padding of its matrix.
        logits_BTV = logits(teacher, teachers[0], batch)[..., : student.config.vocab]
        log_p_BTV = jax.lax.stop_gradient(jax.nn.log_softmax(logits_BTV))
        divergence_BT = divergence("forward_kl", log_q_BTV, log_p_BTV)
        nll_BT = -jnp.take_along_axis(log_q_BTV, batch.labels_BT[..., None], -1)[..., 0]
        total_BT = DIVERGENCE_WEIGHT * divergence_BT + LABEL_WEIGHT * nll_BT
        means = {"forward_kl": divergence_BT, "nll": nll_BT}  # that steps remember
        metrics = {name: weighted_mean(value, batch.weight_BT) for name, value in means.items()}
        return jnp.sum(total_BT * batch.weight_BT) / n_tokens, metrics

    return Setup(loss, (pair.teacher_params,), pair.batch)


def cached_hidden(pair: Pair) -> Setup:
    """The teacher's hidden states lie in the batch, its head alone is a parameter."""
    projected = jax.jit(outputs, static_argnums=0)(pair.teacher, pair.teacher_params, pair.batch)
    stored = {"hidden": projected.hidden_BTD}
    return _cached(pair, "hidden", stored, (projected.unembed[:2],))


def cached_top64(pair: Pair) -> Setup:
    """The teacher's largest logits lie in the batch, with the mass of the others."""

    @jax.jit
    def stored(params, batch):
        top = top_k(
            outputs(pair.teacher, params, batch),
            min(TOP, pair.teacher.config.vocab - 1),
            temperatures=(1.0,),
            policy="tail_bucket",
            block_tokens=BLOCK_TOKENS,
        )
        return {"ids": top.ids_BTE, "logits": top.logits_BTE, "rest": top.rest_BTM}

    return _cached(pair, "top_k", stored(pair.teacher_params, pair.batch), ())


def _cached(pair: Pair, kind: str, stored: dict[str, Array], teachers: tuple) -> Setup:
    teach = cached_teacher(
        kind,
        head=(None, 1.0),
        temperatures=(1.0,),
        policy="tail_bucket",
        vocab=pair.teacher.config.vocab,
    )
    return Setup(_objective(pair.student, teach), teachers, pair.batch._replace(targets=stored))


def _objective(student: Model, teach) -> Callable:
    return partial(objective, student=student, teach=teach, block_tokens=BLOCK_TOKENS)


def outputs(model: Model, params: Params, batch: Batch) -> Projected:
    """A model's final hidden states with its head."""
    hidden = model.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT)
    return Projected(hidden.last_BTD, model.unembed(params))


def logits(model: Model, params: Params, batch: Batch) -> Array:
    """Logits [B, T, V] in float32."""
    projected = outputs(model, params, batch)
    weight_DV = projected.unembed.weight_DV
    return jnp.matmul(projected.hidden_BTD, weight_DV, preferred_element_type=jnp.float32)
