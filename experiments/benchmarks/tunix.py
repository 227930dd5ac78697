"""Tunix's trainer on the same models: its llama, its logit strategy, its train step."""

import jax
import jax.numpy as jnp

from distill_jax.models.architecture import ModelConfig
from distill_jax.types import Params
from experiments.benchmarks import programs
from experiments.benchmarks.pytorch import Skipped
from experiments.benchmarks.shapes import Case
from experiments.benchmarks.timing import Outcome, Program

ROPE_THETA = 1e6  # the only one that Tunix's llama computes with, whatever its config says


def build(case: Case) -> dict[str, Program]:
    """Teacher forward and train step, two programs as in Tunix's own loop, without its logging.

    Raises Skipped where Tunix is missing or cannot compute the shape.
    """
    try:
        from flax import nnx
        from tunix.distillation import distillation_trainer, strategies
        from tunix.models.llama3 import model as llama3
    except ImportError:
        raise Skipped("google-tunix is not installed") from None
    configs = case.shape.student, case.shape.teacher
    if any(config.rope_theta != ROPE_THETA for config in configs):
        raise Skipped(f"its llama has a rotary base of {ROPE_THETA:g} whatever its config says")
    pair, vocab = case.pair, case.shape.student.vocab
    logits = lambda model, tokens, positions, mask, labels: model(tokens, positions, None, mask)[0]
    strategy = strategies.LogitStrategy(
        logits,
        logits,
        lambda labels, **_: jax.nn.one_hot(labels, vocab),
        temperature=1.0,
        alpha=programs.DIVERGENCE_WEIGHT,
    )
    trainer = distillation_trainer.DistillationTrainer(
        _llama(nnx, llama3, case.shape.student, pair.student_params),
        _llama(nnx, llama3, case.shape.teacher, pair.teacher_params),
        strategy,
        programs.optimizer(),
        distillation_trainer.TrainingConfig(eval_every_n_steps=10**9),
    ).with_gen_model_input_fn(_model_inputs)
    batch = pair.batch
    tokens = jnp.concatenate([batch.tokens_BT, batch.labels_BT[:, -1:]], 1)
    inputs = distillation_trainer.TrainingInput(
        input_tokens=tokens, input_mask=jnp.ones(tokens.shape, bool)
    )
    step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)

    def run():
        # As its loop does before every step: the teacher's logits become a part of the inputs.
        loss, metrics, norm = step(trainer._prepare_inputs(inputs))
        jax.block_until_ready((loss, metrics, norm, nnx.state(trainer.model)))
        return Outcome(float(loss), float(norm))

    return {"tunix": Program(run)}


def _model_inputs(inputs) -> dict:
    """Tokens, positions, a causal mask and the next tokens; the last token is a label only."""
    tokens = inputs.input_tokens[:, :-1]
    rows, length = tokens.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    return {
        "tokens": tokens,
        "positions": jnp.broadcast_to(jnp.arange(length), tokens.shape),
        "mask": jnp.broadcast_to(causal, (rows, length, length)),
        "labels": inputs.input_tokens[:, 1:],
    }


def _llama(nnx, llama3, config: ModelConfig, params: Params):
    """Tunix's llama with the package's parameters."""
    model = llama3.Llama3(
        llama3.ModelConfig(
            num_layers=config.blocks,
            vocab_size=config.vocab,
            embed_dim=config.width,
            hidden_dim=config.neurons,
            num_heads=config.heads,
            head_dim=config.head_width,
            num_kv_heads=config.kv_heads,
            rope_theta=int(config.rope_theta),
            norm_eps=config.norm_eps,
            weight_tying=config.tied,
        ),
        rngs=nnx.Rngs(0),
    )
    copy = lambda place, value: setattr(place, "value", jnp.array(value).reshape(place.value.shape))
    copy(model.embedder.input_embedding, params["embedding"])
    copy(model.final_norm.w, params["final_norm"])
    if not config.tied:
        copy(model.lm_head.w, params["head"])
    attention, feed_forward = params["blocks"]["attention"], params["blocks"]["feed_forward"]
    for i, layer in enumerate(model.layers):
        copy(layer.input_layernorm.w, attention["norm"][i])
        copy(layer.post_attention_layernorm.w, feed_forward["norm"][i])
        for own, name in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            copy(getattr(layer.attn, f"{own}_proj").w, attention[name][i])
        for name in ("gate", "up", "down"):
            copy(getattr(layer.mlp, f"{name}_proj").kernel, feed_forward[name][i])
    return model
