"""Random records made in float64 from raw logits, for the tests of what aggregates them."""

import numpy as np

VOCAB = 11


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def one_side(z, labels, prefix):
    log = log_softmax(z)
    q = np.exp(log)
    best = np.argsort(-z, -1, kind="stable")[:, :5]
    return {
        f"{prefix}nll": -log[np.arange(len(z)), labels],
        f"{prefix}confidence": q.max(-1),
        f"{prefix}entropy": -(q * log).sum(-1),
        f"{prefix}brier": ((q - np.eye(z.shape[1])[labels]) ** 2).sum(-1),
        f"{prefix}top5": best.astype(np.int32),
        f"{prefix}top5_probability": np.take_along_axis(q, best, -1),
    }


def columns_of(z, labels, t=None, documents=6):
    """Columns of student logits z [n, V] and teacher logits t in float32, as a pass gives them."""
    n = len(labels)
    document = np.sort(np.arange(n) % documents)
    position = 1 + np.arange(n) - np.searchsorted(document, document)
    columns = {"document": document, "position": position, "token": labels}
    columns = {name: column.astype(np.int32) for name, column in columns.items()}
    columns |= one_side(z, labels, "")
    if t is not None:
        q, p = log_softmax(z), log_softmax(t)
        columns |= one_side(t, labels, "teacher_") | {
            "forward_kl": (np.exp(p) * (p - q)).sum(-1),
            "reverse_kl": (np.exp(q) * (q - p)).sum(-1),
            "total_variation": np.abs(np.exp(p) - np.exp(q)).sum(-1) / 2,
            "agreement_top1": (p.argmax(-1) == q.argmax(-1)).astype(float),
        }
    narrow = lambda x: x.astype(np.float32) if x.dtype == np.float64 else x
    return {name: narrow(column) for name, column in columns.items()}


def logits(seed=0, n=400):
    """(student, teacher, labels): sharp, related distributions that often have the label right."""
    r = np.random.default_rng(seed)
    labels = r.integers(0, VOCAB, n)
    gold = np.eye(VOCAB)[labels] * r.exponential(3, (n, 1))
    t = r.normal(size=(n, VOCAB)) * 2 + gold
    return t + r.normal(size=(n, VOCAB)), t, labels
