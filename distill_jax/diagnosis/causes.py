"""Which tokens carry half of the KL to the teacher, and which of a few causes fits each token.

NumPy on the columns of evals/records_file.py. n counts tokens; several records are the seeds of one
arm on the same tokens: nats are means over seeds, and a model is right or wrong at a token where
more than half of its seeds are.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from distill_jax.evals.calibration import right
from distill_jax.evals.records_file import Columns

SURE = 0.5  # the teacher's largest probability from which its top-1 counts as confident
NATS = 1.0  # so much more NLL than the student makes the teacher the worse guide: a factor e
TAIL = 0.5  # share of a token's KL from which its place is the teacher's tail
OWN_TEXT = 0.5  # KL on the student's own text above that on the data, as a share of the latter
TINY = 1e-12  # the least probability that is divided by


class Evidence(NamedTuple):
    """What the rules look at, one entry per token. NLL and KL in nats, the rest shares or bool."""

    forward_kl_n: np.ndarray
    tail_n: np.ndarray  # share of forward_kl that the teacher's tail carries
    agrees_n: np.ndarray  # share of seeds whose top-1 is the teacher's
    nll_n: np.ndarray
    right_n: np.ndarray  # share of seeds whose top-1 is the label
    teacher_nll_n: np.ndarray
    teacher_right_n: np.ndarray  # bool
    teacher_confidence_n: np.ndarray
    sft_right_n: np.ndarray | None


class Cause(NamedTuple):
    """In words, and as a rule: bool [n], or None where the evidence cannot tell."""

    what: str
    rule: Callable[[Evidence], np.ndarray | None]


def evidence_of(kd: Sequence[Columns], sft: Sequence[Columns] | None = None) -> Evidence:
    """Averages over the seeds of the distilled arm, and of plain fine-tuning where it is given."""
    teacher = kd[0]
    kl_n = mean_over_seeds(kd, forward_kl)
    tail_n = mean_over_seeds(kd, tail_kl) / np.where(kl_n > 0, kl_n, 1.0)
    return Evidence(
        forward_kl_n=kl_n,
        tail_n=tail_n,
        agrees_n=mean_over_seeds(kd, lambda c: c["top5"][:, 0] == c["teacher_top5"][:, 0]),
        nll_n=mean_over_seeds(kd, lambda c: c["nll"]),
        right_n=mean_over_seeds(kd, right),
        teacher_nll_n=teacher["teacher_nll"].astype(np.float64),
        teacher_right_n=right(teacher, "teacher_"),
        teacher_confidence_n=teacher["teacher_confidence"].astype(np.float64),
        sft_right_n=mean_over_seeds(sft, right) if sft else None,
    )


def mean_over_seeds(seeds: Sequence[Columns], value: Callable[[Columns], np.ndarray]) -> np.ndarray:
    """The float64 mean [n] of a value of each seed."""
    return np.mean([np.asarray(value(columns), np.float64) for columns in seeds], axis=0)


def forward_kl(columns: Columns) -> np.ndarray:
    """Nats; what rounding made negative is 0."""
    return np.maximum(columns["forward_kl"].astype(np.float64), 0.0)


def tail_kl(columns: Columns) -> np.ndarray:
    """The part of each token's KL(teacher || student) that is not about the teacher's top 5, nats.

    With H the teacher's top 5, P and Q their mass in teacher and student, the chain rule gives
    KL(p || q) = P KL(p|H || q|H) + KL(P || Q) + (1-P) KL(p|not H || q|not H), three parts none of
    which is negative. The first is the order within the top 5; the other two, how much mass lies
    outside and where, are the tail's. An entry of H that is neither the label nor in the student's
    own top 5 has an unknown q: it is taken as the largest that the student's top 5 leaves room for.
    """
    p_n5 = columns["teacher_top5_probability"].astype(np.float64)
    q_n5 = _student_probability(columns)
    mass_n = p_n5.sum(1)
    ratio_n = np.maximum(mass_n, TINY) / np.maximum(q_n5.sum(1), TINY)
    log_n5 = np.log(np.maximum(p_n5, TINY)) - np.log(np.maximum(q_n5, TINY))
    order_n = (p_n5 * log_n5).sum(1) - mass_n * np.log(ratio_n)
    total_n = forward_kl(columns)
    return np.clip(total_n - order_n, 0.0, total_n)


def _student_probability(columns: Columns) -> np.ndarray:
    """The student's probability of each of the teacher's top 5, [n, 5]."""
    ids_n5, known_n5 = columns["teacher_top5"], columns["top5"]
    own_n5 = columns["top5_probability"].astype(np.float64)
    same_n55 = ids_n5[:, :, None] == known_n5[:, None, :]
    q_n5 = (same_n55 * own_n5[:, None, :]).sum(2)
    label_n5 = ids_n5 == columns["token"][:, None]
    q_n5 = np.where(label_n5, np.exp(-columns["nll"].astype(np.float64))[:, None], q_n5)
    unknown_n5 = ~(same_n55.any(2) | label_n5)
    left_n = np.maximum(1.0 - own_n5.sum(1), 0.0) / np.maximum(unknown_n5.sum(1), 1)
    return np.where(unknown_n5, np.minimum(own_n5[:, -1], left_n)[:, None], q_n5)


def hot_mask(kl_n: np.ndarray) -> np.ndarray:
    """The fewest tokens that carry half of the KL, bool [n]; equal ones: the earlier first.

    Not one where there is no KL.
    """
    hot_n = np.zeros(kl_n.shape, bool)
    order = np.argsort(-kl_n, kind="stable")
    carried = np.cumsum(kl_n[order])
    if kl_n.size and carried[-1] > 0:
        hot_n[order[: np.searchsorted(carried, carried[-1] / 2) + 1]] = True
    return hot_n


def classify(evidence: Evidence) -> np.ndarray:
    """The cause of each token, as its place in CAUSES: the first whose rule holds. int [n]."""
    rules = [cause.rule(evidence) for cause in CAUSES.values()]
    nowhere = np.zeros(evidence.forward_kl_n.shape, bool)
    return np.argmax([nowhere if rule is None else rule for rule in rules], axis=0)


def possible_causes(evidence: Evidence) -> tuple[str, ...]:
    """The names of the causes whose rules this evidence can answer."""
    return tuple(name for name, cause in CAUSES.items() if cause.rule(evidence) is not None)


def own_text_drift(kl_own: float | None, kl_data: float | None) -> dict[str, object] | None:
    """The part `exposure` of report.json: whether the student drifts on its own text.

    Records are of the data's text, so no rule on tokens can see this. Given are the KL to the
    teacher on the student's own and on the data's continuations of the same prompts, nats per
    token; None: not measured.
    """
    if kl_own is None or kl_data is None:
        return None
    gap = float(kl_own - kl_data)
    return {
        "kl_own": float(kl_own),
        "kl_data": float(kl_data),
        "gap": gap,
        "threshold": OWN_TEXT,
        "found": gap > 0 and gap >= OWN_TEXT * kl_data,
        "what": "On its own text the student is further from its teacher than on the data: errors"
        " add up while it writes, which training on the data's text alone never shows it.",
    }


def teacher_wrong(e: Evidence) -> np.ndarray:
    """See CAUSES."""
    sure = ~e.teacher_right_n & (e.teacher_confidence_n >= SURE)
    worse = e.teacher_nll_n - e.nll_n >= NATS
    if e.sft_right_n is None:
        return sure | worse
    return sure | worse | (~e.teacher_right_n & (e.agrees_n > 0.5) & (e.sft_right_n > 0.5))


def _with_sft(rule: Callable[[Evidence], np.ndarray]) -> Callable[[Evidence], np.ndarray | None]:
    """The same rule, which cannot tell without a fine-tuned student."""
    return lambda e: None if e.sft_right_n is None else rule(e)


# In order of precedence: a token has the first cause whose rule holds.
CAUSES: dict[str, Cause] = {
    "teacher_wrong": Cause(
        f"The teacher's likeliest token is not the one that stands there, at a confidence of at"
        f" least {SURE:.0%}, or its NLL is {NATS:g} nat or more above the student's, or the student"
        " copied its mistake where plain fine-tuning is right: following the teacher hurts here."
        " Even a calibrated teacher is wrong in as many cases as its confidence lacks to 100%.",
        teacher_wrong,
    ),
    "distillation_made": Cause(
        "Plain fine-tuning has the token right and the distilled student has not: distilling lost"
        " it.",
        _with_sft(lambda e: (e.sft_right_n > 0.5) & (e.right_n < 0.5)),
    ),
    "capacity": Cause(
        "The teacher has the token right and neither student has: one of this size and training"
        " does not get it from labels either.",
        _with_sft(lambda e: e.teacher_right_n & (e.right_n < 0.5) & (e.sft_right_n < 0.5)),
    ),
    "student_wrong": Cause(
        "The teacher has the token right and the student has not. Without a student that was"
        " fine-tuned on the labels, too small a student and what distilling broke look the same.",
        lambda e: None if e.sft_right_n is not None else e.teacher_right_n & (e.right_n < 0.5),
    ),
    "tail": Cause(
        f"Student and teacher have the same likeliest token, and at least {TAIL:.0%} of the KL is"
        " about what lies outside the teacher's five likeliest.",
        lambda e: (e.agrees_n > 0.5) & (e.tail_n >= TAIL),
    ),
    "other": Cause(
        "No rule fits: mostly tokens that nobody predicts, or whose KL is the order within the"
        " teacher's five likeliest.",
        lambda e: np.ones(e.forward_kl_n.shape, bool),
    ),
}
