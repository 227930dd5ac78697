"""Laws of the diagnosis, on records computed in float64 from whole distributions."""

import json

import numpy as np
import pytest

from distill_jax.diagnosis import examples
from distill_jax.diagnosis.causes import (
    CAUSES,
    OWN_TEXT,
    Evidence,
    classify,
    evidence_of,
    hot_mask,
    own_text_drift,
    tail_kl,
)
from distill_jax.diagnosis.where import MINIMUM_COUNT, diagnose
from distill_jax.evals.records_file import Records
from distill_jax.types import UserError

VOCAB = 300
NAMES = {"frequency": tuple(f"{i + 1} of 10" for i in range(10)), "label": ("code", "prose")}


def softmax(logits_nV):
    exp = np.exp(logits_nV - logits_nV.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def five(p_nV):
    ids = np.argsort(-p_nV, axis=1, kind="stable")[:, :5]
    return ids.astype(np.int32), np.take_along_axis(p_nV, ids, 1)


def columns_of(document, position, token, p_nV, q_nV, dtype=np.float32):
    """The columns of one student, straight from their definitions."""
    at = lambda x: x[np.arange(len(token)), token]
    entropy = lambda x: -(x * np.log(x)).sum(1)
    out = {"document": document, "position": position, "token": token}
    for prefix, x in (("", q_nV), ("teacher_", p_nV)):
        ids, probability = five(x)
        out |= {
            f"{prefix}nll": -np.log(at(x)),
            f"{prefix}confidence": x.max(1),
            f"{prefix}entropy": entropy(x),
            f"{prefix}top5": ids,
            f"{prefix}top5_probability": probability,
        }
    out["forward_kl"] = (p_nV * np.log(p_nV / q_nV)).sum(1)
    return {k: v.astype(dtype) if v.dtype == np.float64 else v for k, v in out.items()}


def places(rng, n, documents=25):
    """Documents of different lengths; some positions are not counted, as prompts are not."""
    document = np.sort(rng.integers(0, documents, n)).astype(np.int32)
    position = np.empty(n, np.int32)
    for d in np.unique(document):
        here = document == d
        position[here] = np.sort(rng.choice(3 * here.sum(), here.sum(), replace=False)) + 1
    return document, position


def background(rng, n):
    """Teacher logits like a language model's: a few likely tokens, a long tail."""
    return -1.2 * np.log(np.arange(1, VOCAB + 1)) + 2.0 * rng.normal(size=(n, VOCAB))


def student_logits(rng, logits_nV, blur=0.8, noise=0.7):
    return blur * logits_nV + noise * rng.normal(size=logits_nV.shape)


def with_slices(rng, columns):
    n = len(columns["token"])
    more = {
        "slice_frequency": rng.integers(0, 10, n).astype(np.int16),
        "slice_label": (columns["document"] % 2).astype(np.int16),
    }
    return Records(columns | more, NAMES)


def arms(seed=0, n=600, kd_seeds=1, sft_seeds=1):
    """Records of random models that know their teacher a little."""
    rng = np.random.default_rng(seed)
    document, position = places(rng, n)
    logits = background(rng, n)
    p = softmax(logits)
    token = np.array([rng.choice(VOCAB, p=row) for row in p], np.int32)
    slices = rng.integers(0, 2**31)
    arm = lambda seeds: [
        with_slices(
            np.random.default_rng(slices),
            columns_of(document, position, token, p, softmax(student_logits(rng, logits))),
        )
        for _ in range(seeds)
    ]
    return arm(kd_seeds), arm(sft_seeds) if sft_seeds else None


def text_of(token):
    return f"<{token}>"


def change(records, **columns):
    return Records(records.columns | columns, records.names)


# Planted causes ------------------------------------------------------------------------------


def with_probabilities(p_V, **pairs):
    """p with the probabilities given of some tokens, the others scaled to what is left."""
    ids, values = zip(*pairs.values(), strict=True)
    rest = p_V.copy()
    rest[list(ids)] = 0
    out = rest * (1 - sum(values)) / rest.sum()
    out[list(ids)] = values
    return out


def plant(rng, cause, p_V, q_V, s_V):
    """Distributions (teacher, kd, sft) and a label in which the cause is this one."""
    gold, wrong, third = rng.choice(VOCAB, 3, replace=False)
    u = rng.uniform
    high, low = lambda: (gold, u(0.5, 0.9)), lambda: (gold, u(0.02, 0.1))
    mistake = lambda token: (token, u(0.4, 0.7))
    if cause == "teacher_wrong":
        teacher = with_probabilities(p_V, a=(wrong, u(0.6, 0.95)), b=(gold, u(0.001, 0.04)))
        kd = with_probabilities(q_V, a=(wrong, u(0.05, 0.6)), b=(gold, u(0.05, 0.3)))
        sft = with_probabilities(s_V, a=(gold, u(0.1, 0.6)))
    elif cause == "distillation_made":
        unsure = {"a": (gold, u(0.2, 0.3)), "b": (wrong, u(0.35, 0.4))}
        teacher = with_probabilities(p_V, **({"a": high()} if u() < 0.7 else unsure))
        kd = with_probabilities(q_V, a=mistake(third), b=low())
        sft = with_probabilities(s_V, a=high())
    else:
        teacher = with_probabilities(p_V, a=high())
        kd = with_probabilities(q_V, a=mistake(wrong), b=low())
        sft = with_probabilities(s_V, a=mistake(rng.choice([wrong, third])), b=low())
    return teacher, kd, sft, gold


def planted(seeds, n=900, seed=1, noise=0.25):
    rng = np.random.default_rng(seed)
    document, position = places(rng, n)
    causes = rng.choice(["teacher_wrong", "distillation_made", "capacity"], n)
    logits = background(rng, n)
    q, s = (softmax(student_logits(rng, logits)) for _ in range(2))
    rows = [plant(rng, c, *x) for c, x in zip(causes, zip(softmax(logits), q, s), strict=True)]  # noqa: B905
    p, q, s = (np.stack([row[i] for row in rows]) for i in range(3))
    token = np.array([row[3] for row in rows], np.int32)
    jitter = lambda x: softmax(np.log(x) + noise * rng.normal(size=x.shape))
    p = jitter(p)
    kd = [columns_of(document, position, token, p, jitter(q)) for _ in range(seeds)]
    sft = [columns_of(document, position, token, p, jitter(s)) for _ in range(seeds)]
    return kd, sft, causes


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_planted_causes_are_found(seeds):
    kd, sft, causes = planted(seeds)
    found = np.array(list(CAUSES))[classify(evidence_of(kd, sft))]
    for cause in np.unique(causes):
        recall = (found[causes == cause] == cause).mean()
        precision = (causes[found == cause] == cause).mean()
        assert recall >= 0.95, (cause, recall)
        assert precision >= 0.95, (cause, precision)


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_sft_its_two_classes_become_one(seeds):
    kd, _, causes = planted(seeds)
    found = np.array(list(CAUSES))[classify(evidence_of(kd))]
    assert not {"capacity", "distillation_made"} & set(found)
    assert (found[causes == "teacher_wrong"] == "teacher_wrong").mean() >= 0.95
    assert (found[causes == "capacity"] == "student_wrong").mean() >= 0.95


def test_a_planted_tail_is_found_and_the_order_of_the_top_is_not_one():
    rng = np.random.default_rng(3)
    n = 400
    p = softmax(background(rng, n) / 1.3)
    token = p.argmax(1).astype(np.int32)
    top = np.argsort(-p, 1)[:, :5]
    tail, order = p.copy(), p.copy()
    for row in range(n):
        mass = p[row, top[row]].sum()
        tail[row] *= (1 - mass * 0.6) / (1 - mass)  # the tail is raised at the top's cost
        tail[row, top[row]] = p[row, top[row]] * 0.6
        flat = p[row, top[row]] ** 0.3
        order[row, top[row]] = flat / flat.sum() * mass  # the tail is left as it is
    document, position = places(rng, n)
    names = np.array(list(CAUSES))
    for q, expected in ((tail, "tail"), (order, "other")):
        columns = columns_of(document, position, token, p, q)
        assert (names[classify(evidence_of([columns]))] == expected).mean() >= 0.95


def test_the_copied_mistake_of_an_unsure_teacher_is_the_teachers():
    rng = np.random.default_rng(4)
    base = softmax(background(rng, 1))[0]
    p = with_probabilities(base, a=(1, 0.4), b=(2, 0.3))
    q = with_probabilities(base, a=(1, 0.5), b=(2, 0.2))
    s = with_probabilities(base, a=(1, 0.2), b=(2, 0.5))
    place = [np.array([0], np.int32), np.array([1], np.int32), np.array([2], np.int32)]
    kd, sft = (columns_of(*place, p[None], x[None]) for x in (q, s))
    assert list(CAUSES)[classify(evidence_of([kd], [sft]))[0]] == "teacher_wrong"


def test_half_of_the_seeds_are_no_majority():
    kd, sft, _ = planted(1, n=100)
    right = kd[0] | {"top5": sft[0]["top5"]}
    mixed = evidence_of([kd[0], right], sft)
    assert "distillation_made" not in np.array(list(CAUSES))[classify(mixed)]


def one_token(**changes):
    """Evidence of one token of no class but `other`, with an SFT student."""
    plain = {
        "forward_kl_n": 1.0, "tail_n": 0.0, "agrees_n": 0.0, "nll_n": 3.0, "right_n": 0.0,
        "teacher_nll_n": 3.0, "teacher_right_n": False, "teacher_confidence_n": 0.2,
        "sft_right_n": 0.0,
    }  # fmt: skip
    values = plain | changes
    as_array = lambda value: None if value is None else np.array([value])
    return Evidence(**{name: as_array(value) for name, value in values.items()})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "other"),
        ({"teacher_confidence_n": 0.5}, "teacher_wrong"),
        ({"teacher_confidence_n": 0.49}, "other"),
        ({"teacher_confidence_n": 0.5, "teacher_right_n": True}, "capacity"),
        ({"teacher_nll_n": 4.0}, "teacher_wrong"),
        ({"teacher_nll_n": 3.99}, "other"),
        ({"sft_right_n": 1.0}, "distillation_made"),
        ({"sft_right_n": 1.0, "agrees_n": 1.0}, "teacher_wrong"),
        ({"sft_right_n": 1.0, "teacher_right_n": True}, "distillation_made"),
        ({"sft_right_n": 0.5, "teacher_right_n": True}, "other"),
        ({"sft_right_n": 1.0, "right_n": 0.5}, "other"),
        ({"teacher_right_n": True}, "capacity"),
        ({"teacher_right_n": True, "sft_right_n": None}, "student_wrong"),
        ({"sft_right_n": None}, "other"),
        ({"tail_n": 0.5, "agrees_n": 1.0}, "tail"),
        ({"tail_n": 0.49, "agrees_n": 1.0}, "other"),
        ({"tail_n": 0.9, "agrees_n": 0.5}, "other"),
        ({"tail_n": 0.9, "agrees_n": 1.0, "teacher_confidence_n": 0.6}, "teacher_wrong"),
        ({"right_n": 1.0, "teacher_right_n": True, "sft_right_n": 1.0}, "other"),
    ],
)
def test_thresholds_and_precedence(changes, expected):
    assert list(CAUSES)[classify(one_token(**changes))[0]] == expected


# The tail ------------------------------------------------------------------------------------


def exact_tail(p_nV, q_nV):
    """KL less the order within the teacher's top 5, entry by entry."""
    out = []
    for p, q in zip(p_nV, q_nV, strict=True):
        head = np.argsort(-p)[:5]
        a, b = p[head] / p[head].sum(), q[head] / q[head].sum()
        order = p[head].sum() * sum(a * np.log(a / b))
        out.append(sum(p * np.log(p / q)) - order)
    return np.array(out)


def test_the_tails_part_is_exact_where_the_records_show_the_top():
    rng = np.random.default_rng(5)
    logits = background(rng, 300)
    p, q = softmax(logits), softmax(student_logits(rng, logits, 0.9, 0.15))
    token = p.argmax(1).astype(np.int32)
    columns = columns_of(*places(rng, 300), token, p, q, np.float64)
    shown = np.array(
        [set(a) <= {*b, t} for a, b, t in zip(five(p)[0], five(q)[0], token, strict=True)]
    )
    assert 60 < shown.sum() < 300
    np.testing.assert_allclose(tail_kl(columns)[shown], exact_tail(p, q)[shown], atol=1e-12)


def test_the_tails_part_is_close_where_they_do_not():
    rng = np.random.default_rng(6)
    logits = background(rng, 1000)
    p, q = softmax(logits), softmax(student_logits(rng, logits))
    columns = columns_of(*places(rng, 1000), p.argmax(1).astype(np.int32), p, q)
    share = lambda part: part / columns["forward_kl"]
    same = (share(tail_kl(columns)) >= 0.5) == (share(exact_tail(p, q)) >= 0.5)
    agree = columns["top5"][:, 0] == columns["teacher_top5"][:, 0]
    assert same[agree].mean() >= 0.95


def test_the_label_gives_the_students_probability_outside_its_top():
    rng = np.random.default_rng(7)
    p = softmax(background(rng, 200))
    token = np.argsort(-p, 1)[:, 2].astype(np.int32)
    q = p.copy()
    q[np.arange(200), token] *= 1e-4
    q /= q.sum(1, keepdims=True)
    columns = columns_of(*places(rng, 200), token, p, q, np.float64)
    np.testing.assert_allclose(tail_kl(columns), exact_tail(p, q), atol=1e-12)


# Half of the KL ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_hot_tokens_are_the_fewest_that_carry_half(seed):
    rng = np.random.default_rng(seed)
    kl = rng.gamma(0.3, size=rng.integers(1, 80)) * rng.integers(0, 2, 1)
    hot = hot_mask(kl)
    if not kl.sum():
        assert not hot.any()
        return
    best = next(k for k in range(1, len(kl) + 1) if np.sort(kl)[::-1][:k].sum() >= kl.sum() / 2)
    assert hot.sum() == best
    assert kl[hot].min() >= (kl[~hot].max() if (~hot).any() else 0)


def test_equal_tokens_share_in_equal_parts():
    assert hot_mask(np.ones(10)).tolist() == [True] * 5 + [False] * 5
    assert hot_mask(np.array([0.0, 0.0, 3.0, 0.0])).tolist() == [False, False, True, False]


# The whole object ----------------------------------------------------------------------------


def mean_kl(kd):
    return np.mean([r.columns["forward_kl"].astype(np.float64) for r in kd], axis=0)


@pytest.mark.parametrize("kd_seeds", [1, 3])
@pytest.mark.parametrize("sft_seeds", [0, 1, 3])
def test_shares_are_whole_and_every_number_is_json(kd_seeds, sft_seeds):
    kd, sft = arms(kd_seeds=kd_seeds, sft_seeds=sft_seeds)
    found = diagnose(kd, sft, text_of=text_of, kl_own=0.9, kl_data=0.5)
    json.dumps(found, allow_nan=False)
    kl = mean_kl(kd)
    hot = found["half_of_kl_share"] * len(kl)
    assert found["tokens"] == len(kl)
    assert sum(row["tokens"] for row in found["classes"]) == pytest.approx(hot)
    carried = np.sort(kl)[::-1][: round(hot)].sum() / kl.sum()
    assert sum(row["share_of_kl"] for row in found["classes"]) == pytest.approx(carried)
    for kind in NAMES:
        rows = [row for row in found["slices"] if row["slice"].startswith(f"{kind}:")]
        assert sum(row["share_of_kl"] for row in rows) == pytest.approx(1)
        assert sum(row["share_of_tokens"] for row in rows) == pytest.approx(1)
    for row in found["slices"]:
        expected = row["mean_kl"] * row["share_of_tokens"] / kl.mean()
        assert row["share_of_kl"] == pytest.approx(expected)
    named = {row["class"] for row in found["classes"]}
    pair = {"capacity", "distillation_made"}
    assert named == set(CAUSES) - ({"student_wrong"} if sft else pair)


def test_the_order_of_tokens_changes_nothing():
    kd, sft = arms(kd_seeds=2, sft_seeds=2)
    rng = np.random.default_rng(0)

    def shuffled(records):
        order = rng.permutation(len(records.columns["token"]))
        return Records({k: v[order] for k, v in records.columns.items()}, records.names)

    one = diagnose(kd, sft, text_of=text_of)
    assert one == diagnose([shuffled(r) for r in kd], [shuffled(r) for r in sft], text_of=text_of)


def test_the_order_and_the_copies_of_seeds_change_nothing():
    kd, sft = arms(kd_seeds=3, sft_seeds=1)
    one = diagnose(kd, sft, text_of=text_of)
    turned = diagnose([kd[2], kd[0], kd[1]], sft, text_of=text_of)
    numbers = lambda d: json.dumps(d, default=str)
    assert round_floats(json.loads(numbers(one))) == round_floats(json.loads(numbers(turned)))
    copies = diagnose(kd[:1] * 3, sft * 3, text_of=text_of)
    assert round_floats(copies) == round_floats(diagnose(kd[:1], sft, text_of=text_of))


def round_floats(tree):
    if isinstance(tree, dict):
        return {k: round_floats(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [round_floats(v) for v in tree]
    return float(f"{tree:.9g}") if isinstance(tree, float) else tree


def test_a_student_equal_to_its_teacher_has_nothing_to_divide():
    kd, _ = arms(sft_seeds=0)
    zero = np.zeros_like(kd[0].columns["forward_kl"])
    zero[::3] = -1e-7  # what rounding leaves
    found = diagnose([change(kd[0], forward_kl=zero)], text_of=text_of)
    json.dumps(found, allow_nan=False)
    assert found["half_of_kl_share"] is None
    assert found["worst"] == found["passages"] == found["vocabulary"] == []
    assert {row["share_of_kl"] for row in found["classes"] + found["slices"]} == {None}
    assert {row["mean_kl"] for row in found["positions"]} == {0.0}


def test_vocabulary_is_ranked_by_its_share():
    kd, _ = arms(n=1500, sft_seeds=0)
    rows = diagnose(kd, text_of=text_of)["vocabulary"]
    token, kl = kd[0].columns["token"], mean_kl(kd)
    totals = {
        text_of(t): kl[token == t].sum()
        for t in set(token.tolist())
        if (token == t).sum() >= MINIMUM_COUNT
    }
    expected = sorted(totals, key=totals.get, reverse=True)[:20]
    assert [row["text"] for row in rows] == expected
    for row in rows:
        assert row["share_of_kl"] == pytest.approx(totals[row["text"]] / kl.sum())
        assert row["mean_kl"] * row["count"] == pytest.approx(totals[row["text"]])


def test_a_label_seen_too_seldom_is_not_listed():
    kd, _ = arms(n=400, sft_seeds=0)
    token, kl = (kd[0].columns[name].copy() for name in ("token", "forward_kl"))
    seldom, often = 2 * VOCAB, 2 * VOCAB + 1
    token[: MINIMUM_COUNT - 1], kl[: MINIMUM_COUNT - 1] = seldom, 50.0
    token[-MINIMUM_COUNT:], kl[-MINIMUM_COUNT:] = often, 40.0
    found = diagnose([change(kd[0], token=token, forward_kl=kl)], text_of=text_of)
    texts = [row["text"] for row in found["vocabulary"]]
    assert texts[0] == text_of(often)
    assert text_of(seldom) not in texts


def test_one_terrible_document_does_not_fill_the_examples():
    kd, sft = arms(n=800)
    kl = kd[0].columns["forward_kl"] + 5.0 * (kd[0].columns["document"] == 7)
    rows = diagnose([change(kd[0], forward_kl=kl)], sft, text_of=text_of)["worst"]
    assert [row["document"] for row in rows].count(7) == examples.PER_DOCUMENT


def test_positions_fall_into_powers_of_two():
    kd, _ = arms(sft_seeds=0)
    rows = diagnose(kd, text_of=text_of)["positions"]
    position, kl = kd[0].columns["position"], mean_kl(kd)
    seen = 0
    for row in rows:
        here = (position >= row["low"]) & (position <= row["high"])
        assert row["high"] == 2 * row["low"] - 1
        assert row["mean_kl"] == pytest.approx(kl[here].mean())
        seen += here.sum()
    assert seen == len(position)


def test_worst_examples_are_hot_spread_and_side_by_side():
    kd, sft = arms(n=1200, kd_seeds=3, sft_seeds=3)
    found = diagnose(kd, sft, text_of=text_of)
    rows = found["worst"]
    assert len(rows) == examples.WORST
    documents = [row["document"] for row in rows]
    assert max(documents.count(d) for d in documents) <= examples.PER_DOCUMENT
    hot = {row["class"]: row["tokens"] for row in found["classes"]}
    # Five classes at most, so that twelve examples show each that has a hot token.
    assert {row["class"] for row in rows} == {name for name, tokens in hot.items() if tokens}
    c, kl = kd[0].columns, mean_kl(kd)
    for row in rows:
        i = np.flatnonzero((c["document"] == row["document"]) & (c["position"] == row["position"]))
        assert row["forward_kl"] == kl[i[0]]
        assert row["gold"] == text_of(c["token"][i[0]])
        for name, seeds in (("kd", kd), ("sft", sft)):
            nll = [r.columns["nll"][i[0]] for r in seeds]
            seed = seeds[nll.index(np.median(nll))].columns
            shown = [(t["text"], t["probability"]) for t in row[name]]
            ids, p = seed["top5"][i[0]], seed["top5_probability"][i[0]]
            assert shown == [(text_of(t), float(x)) for t, x in zip(ids, p, strict=True)]
        assert [t["text"] for t in row["teacher"]] == [text_of(t) for t in c["teacher_top5"][i[0]]]


def test_context_is_of_the_same_document_and_shows_gaps():
    columns = {
        "document": np.array([0, 0, 1, 1, 1, 1]),
        "position": np.array([1, 2, 1, 2, 5, 6]),
        "token": np.array([10, 11, 12, 13, 14, 15]),
    }
    text = [examples.context(columns, i, text_of) for i in range(6)]
    assert text == ["", "<10>", "", "<12>", "<12><13> … ", "<12><13> … <14>"]


def test_passages_are_the_hottest_stretches(monkeypatch):
    kd, sft = arms(n=700)
    monkeypatch.setattr(examples, "PASSAGE", 9)
    labels = [f"domain {d}" for d in range(25)]
    rows = diagnose(kd, sft, text_of=text_of, document_labels=labels)["passages"]
    document, kl = kd[0].columns["document"], mean_kl(kd)
    best = {}
    for d in np.unique(document):
        here = np.flatnonzero(document == d)
        length = min(9, len(here))
        starts = here[: len(here) - length + 1]
        best[d] = max((kl[s : s + length].sum(), -s) for s in starts)
    expected = sorted(best, key=best.get, reverse=True)[:3]
    assert [row["document"] for row in rows] == expected
    for row in rows:
        assert row["label"] == f"domain {row['document']}"
        start = -best[row["document"]][1]
        values = [token["forward_kl"] for token in row["tokens"]]
        assert values == kl[start : start + len(values)].tolist()
    hot = hot_mask(kl)
    marked = [t["class"] is not None for row in rows for t in row["tokens"]]
    places = [i for row in rows for i in stretch(document, kl, row, best)]
    assert marked == hot[places].tolist()


def stretch(document, kl, row, best):
    start = -best[row["document"]][1]
    return range(start, start + len(row["tokens"]))


def test_drift_on_own_text_is_of_the_run_and_no_cause():
    assert own_text_drift(None, 1.0) is None
    assert own_text_drift(1.0, None) is None
    assert not own_text_drift(1.0 + OWN_TEXT - 1e-6, 1.0)["found"]
    assert own_text_drift(1.0 + OWN_TEXT, 1.0)["found"]
    assert not own_text_drift(0.0, 0.0)["found"]
    assert "exposure" not in CAUSES


def test_what_cannot_be_diagnosed_is_refused_in_one_line():
    kd, sft = arms(kd_seeds=2)
    c = kd[0].columns
    empty = Records({k: v[:0] for k, v in c.items()}, NAMES)
    alone = {k: v for k, v in c.items() if k != "forward_kl" and not k.startswith("teacher_")}
    twice = Records({k: np.concatenate([v, v[:7]]) for k, v in c.items()}, NAMES)
    shorter = Records({k: v[:-1] for k, v in c.items()}, NAMES)
    broken = c["nll"].copy()
    broken[3] = np.nan
    for given, message in (
        (([], None), "0 tokens"),
        (([empty], None), "0 tokens"),
        (([Records(alone, NAMES)], None), "needs a teacher"),
        (([twice], None), "7 tokens twice"),
        (([kd[0], shorter], None), "differ in document"),
        ((kd, [change(sft[0], token=c["token"] + 1)]), "differ in token"),
        ((kd, [change(sft[0], nll=broken)]), "1 values of nll"),
    ):
        with pytest.raises(UserError, match=message) as error:
            diagnose(*given, text_of=text_of)
        assert "\n" not in str(error.value)


def test_plain_fine_tuning_needs_no_teacher_columns():
    kd, sft = arms()
    less = {
        k: v
        for k, v in sft[0].columns.items()
        if k != "forward_kl" and not k.startswith("teacher_")
    }
    full = diagnose(kd, sft, text_of=text_of)
    assert full == diagnose(kd, [Records(less, NAMES)], text_of=text_of)
