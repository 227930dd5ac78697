"""Held-out metrics against a float64 NumPy oracle, whatever the batches and padding."""

import jax
import numpy as np
import pytest

from distill_jax.evals.likelihood import LOGGED, evaluate, make_eval_step
from distill_jax.evals.token_values import MODEL_VALUES
from distill_jax.losses.vocabulary import head_logits
from distill_jax.objective import live_teacher
from distill_jax.types import Batch, UserError
from tests import tiny


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def pair():
    student, teacher = tiny.model(), tiny.model(width=24, vocab=tiny.VOCAB + 3)
    return student, teacher, tiny.params(student, 1), tiny.params(teacher, 2)


def logits(model, params, batch):
    hidden = model.apply(params, batch.tokens_BT, batch.segment_BT, batch.position_BT).last_BTD
    return np.asarray(head_logits(hidden, model.unembed(params)), np.float64)


def oracle(pair, batch):
    student, teacher, student_params, teacher_params = pair
    z, t = logits(student, student_params, batch), logits(teacher, teacher_params, batch)
    shared = tiny.VOCAB
    q, p = log_softmax(z[..., :shared]), log_softmax(t[..., :shared])
    gold = lambda x: -np.take_along_axis(log_softmax(x), batch.labels_BT[..., None], -1)[..., 0]
    return {
        "nll": gold(z),
        "teacher_nll": gold(t),
        "accuracy_top1": z.argmax(-1) == batch.labels_BT,
        "agreement_top1": q.argmax(-1) == p.argmax(-1),
        "forward_kl": (np.exp(p) * (p - q)).sum(-1),
        "reverse_kl": (np.exp(q) * (q - p)).sum(-1),
    }


def measure(pair, batches, *, block_tokens=16):
    step = make_eval_step(pair[0], live_teacher(pair[1]), block_tokens=block_tokens)
    return evaluate(step, pair[2], (pair[3],), batches)


@pytest.mark.parametrize("name", LOGGED)
def test_every_metric_equals_numpy(pair, name):
    batch = tiny.batch()
    values, weight = oracle(pair, batch)[name], batch.weight_BT
    expected = (values * weight).sum() / weight.sum()
    np.testing.assert_allclose(
        measure(pair, [batch])[f"eval/{name}"], expected, rtol=2e-5, atol=1e-6
    )


def test_batches_blocks_and_padding_change_nothing(pair):
    batch = tiny.batch(rows=4)
    halves = [Batch(*(x[i : i + 2] for x in batch[:-1])) for i in (0, 2)]
    empty = jax.tree.map(np.zeros_like, batch)
    whole = measure(pair, [batch])
    for other in (
        measure(pair, halves),
        measure(pair, [batch, empty]),
        measure(pair, [batch], block_tokens=12),
    ):
        assert other["eval/tokens"] == whole["eval/tokens"] == int(batch.weight_BT.sum())
        for name, value in whole.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-7)


def test_a_model_alone_has_no_measure_against_a_teacher(pair):
    step = make_eval_step(pair[0], None, block_tokens=16)
    alone = evaluate(step, pair[2], (), [tiny.batch()])
    known = {f"eval/{name}" for name in LOGGED if name in MODEL_VALUES}
    assert set(alone) == known | {"eval/perplexity", "eval/tokens"}
    nll = alone["eval/nll"]
    np.testing.assert_allclose(nll, measure(pair, [tiny.batch()])["eval/nll"], rtol=1e-6)
    np.testing.assert_allclose(np.log(alone["eval/perplexity"]), nll, rtol=1e-12)


def test_only_what_is_asked_for_is_computed_and_an_unknown_name_is_an_error(pair):
    student, teacher, *_ = pair
    batch, shapes = tiny.batch(), (student.abstract(), (teacher.abstract(),))

    def program(*names):
        step = make_eval_step(student, live_teacher(teacher), block_tokens=16, names=names)
        return step.lower(*shapes, batch).compile()

    selects = lambda compiled: "topk" in compiled.as_text().lower()
    work = lambda compiled: compiled.cost_analysis()["flops"]
    one, both, alone = program("forward_kl"), program("forward_kl", "reverse_kl"), program("nll")
    assert [selects(p) for p in (one, alone, program("agreement_top1"))] == [False, False, True]
    assert work(alone) < 0.8 * work(one)
    assert work(one) < work(both)
    with pytest.raises(ValueError, match=r"no such per-token values: \['perplexity'\]"):
        program("perplexity")


def test_a_model_against_itself(pair):
    student, _, params, _ = pair
    step = make_eval_step(student, live_teacher(student), block_tokens=16)
    same = evaluate(step, params, (params,), [tiny.batch()])
    assert same["eval/agreement_top1"] == 1.0
    assert abs(same["eval/forward_kl"]) < 1e-6
    assert same["eval/nll"] == same["eval/teacher_nll"]


def test_nothing_to_count_is_an_error_and_not_zero(pair):
    batch = tiny.batch()
    with pytest.raises(UserError, match="0 counted tokens"):
        measure(pair, [batch._replace(weight_BT=np.zeros_like(batch.weight_BT))])
