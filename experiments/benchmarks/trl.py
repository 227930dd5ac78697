"""TRL's distillation losses on the same models as transformers has them, with PyTorch's AdamW."""

import math
import os
from types import SimpleNamespace

import jax
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.types import Params
from experiments.benchmarks import pytorch
from experiments.benchmarks.pytorch import Skipped
from experiments.benchmarks.shapes import Case
from experiments.benchmarks.timing import Outcome, Program

# Names of a block's matrices in the package and in transformers.
MATRICES = {
    "attention": {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
    },
    "feed_forward": {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
}
NORMS = {"attention": "input_layernorm", "feed_forward": "post_attention_layernorm"}


def build(case: Case) -> dict[str, Program]:
    """The loss of GKDTrainer and that of DistillationTrainer, each in a step of forward KL.

    The steps are what the trainers do of arithmetic: both forward passes, the loss, the backward
    pass, the gradient's norm, AdamW. No data loader, no accelerate, no logging, no generation.
    Raises Skipped where TRL is missing, and on other devices than a CPU.
    """
    try:
        import torch
        import transformers
        from trl.experimental.gkd import GKDTrainer
        from trl.trainer.distillation_trainer import _chunked_divergence_loss
    except ImportError:
        raise Skipped("trl is not installed") from None
    if jax.devices()[0].platform != "cpu":
        raise Skipped("its models lie on the CPU alone")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # The last position of a row has no next token, so a row has one more token than positions.
    batch = case.pair.batch
    tokens = np.concatenate([batch.tokens_BT, batch.labels_BT[:, -1:]], 1)
    ids = torch.from_numpy(tokens.astype(np.int64))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def gkd(student, teacher):
        trainer = SimpleNamespace(
            teacher_model=teacher, beta=0.0, generalized_jsd_loss=GKDTrainer.generalized_jsd_loss
        )
        return GKDTrainer.compute_loss(trainer, student, inputs | {"labels": ids})

    def chunked(student, teacher):
        hidden = lambda model: model.model(**inputs, use_cache=False).last_hidden_state[:, :-1]
        with torch.no_grad():
            of_teacher = hidden(teacher)
        heads = student.lm_head.weight, teacher.lm_head.weight
        counted = torch.ones_like(ids[:, 1:])
        return _chunked_divergence_loss(hidden(student), of_teacher, *heads, counted, beta=0.0)[0]

    made = {}
    for name, loss in {"trl_gkd": gkd, "trl_chunked": chunked}.items():
        student, teacher = (
            _llama(torch, transformers, *side)
            for side in (
                (case.shape.student, case.pair.student_params),
                (case.shape.teacher, case.pair.teacher_params),
            )
        )
        made[name] = _step(torch, student.train(), teacher.eval(), loss)
    return made


def _step(torch, student, teacher, loss) -> Program:
    leaves = list(student.parameters())
    optimizer = pytorch.adamw(torch, leaves, pytorch.faster(torch, leaves))

    def run():
        optimizer.zero_grad(set_to_none=True)
        value = loss(student, teacher)
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(leaves, math.inf)
        optimizer.step()
        return Outcome(value.item(), norm.item())

    return Program(run)


def _llama(torch, transformers, config: ModelConfig, params: Params):
    """transformers' llama with the package's parameters."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.neurons,
            num_hidden_layers=config.blocks,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tied,
            attn_implementation="sdpa",
        )
    )
    tensor = lambda x: torch.from_numpy(np.array(x, order="C"))
    weights = {
        "model.embed_tokens": tensor(params["embedding"]),
        "model.norm": tensor(params["final_norm"]),
        "lm_head": tensor(params["embedding"] if config.tied else params["head"].T),
    }
    for half, names in MATRICES.items():
        own = params["blocks"][half]
        for i in range(config.blocks):
            weights[f"model.layers.{i}.{NORMS[half]}"] = tensor(own["norm"][i])
            for name, theirs in names.items():
                weights[f"model.layers.{i}.{theirs}"] = tensor(own[name][i].T)
    model.load_state_dict({f"{name}.weight": value for name, value in weights.items()})
    return model
