"""Per-token records against a float64 oracle that runs every window of every document alone."""

import functools
import re

import jax
import numpy as np
import pytest

from distill_jax.data.encode import Tokenized
from distill_jax.data.pack import pack, places
from distill_jax.data.pipeline import eval_batches
from distill_jax.evals.likelihood import evaluate, make_eval_step
from distill_jax.evals.records import OF_MODEL, collect, make_record_step
from distill_jax.evals.records_file import Records, read_records, write_records
from distill_jax.evals.token_values import PAIR_VALUES
from distill_jax.losses.vocabulary import head_logits
from distill_jax.objective import cached_teacher, live_teacher, mixed_teachers
from distill_jax.sharding import to_global
from distill_jax.types import UserError
from tests import tiny
from tests.evals.random_records import log_softmax, one_side

SEQ_LEN = 16
# Student and teacher vocabularies: equal, and padded on either side.
vocabularies = pytest.mark.parametrize("teacher_vocab", [61, 64, 57])


def make_text(seed=0, documents=14, vocab=57):
    """Documents of 1 to 60 tokens, some longer than a window, a fifth of the tokens not counted."""
    r = np.random.default_rng(seed)
    lengths = np.array([1, 2, 17, 33, 60, *r.integers(2, 40, documents - 5)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = r.integers(0, vocab, offsets[-1]).astype(np.uint32)
    trained = (r.random(offsets[-1]) < 0.8).astype(np.uint8)
    labels = tuple("abc"[i % 3] for i in range(documents))
    return Tokenized(tokens, trained, offsets, labels)


TEXT = make_text()


@functools.cache
def pair(teacher_vocab=61):
    student, teacher = tiny.model(), tiny.model(width=24, blocks=1, vocab=teacher_vocab)
    return student, teacher, tiny.params(student, 1), tiny.params(teacher, 2)


def measure(models, *, batch_size=4, block_tokens=24, seed=None, text=TEXT, mesh=None):
    student, teacher, params, teacher_params = models
    rows = pack(text, seq_len=SEQ_LEN, seed=seed)
    of = {"block_tokens": block_tokens, "mesh": mesh}
    step = make_record_step(student, teacher and live_teacher(teacher), **of)
    batches = eval_batches(rows, batch_size=batch_size, prefetch=0)
    if mesh is not None:
        batches = (to_global(batch, mesh, batch_size) for batch in batches)
    return collect(step, params, (teacher_params,), batches, rows)


@functools.cache
def reference(teacher_vocab=61):
    """What all ways to measure the same pair must give."""
    return measure(pair(teacher_vocab), seed=3)


def windows(text):
    """(document, position of the first label, tokens of the window with its last label)."""
    for d in range(len(text.offsets) - 1):
        document = text.tokens[text.offsets[d] : text.offsets[d + 1]].astype(np.int32)
        for start in range(0, len(document) - 1, SEQ_LEN):
            yield d, start + 1, document[start : start + SEQ_LEN + 1]


def logits_of(model, params, windows_inputs):
    """Float64 logits of each window, which has a row of its own."""
    lengths = np.array([len(inputs) for inputs in windows_inputs])
    place = np.arange(SEQ_LEN)[None].repeat(len(lengths), 0)
    padded = np.zeros(place.shape, np.int32)
    padded[place < lengths[:, None]] = np.concatenate(windows_inputs)
    segment = (place < lengths[:, None]).astype(np.int32)
    hidden = jax.jit(model.apply)(params, padded, segment, place).last_BTD
    logits = np.asarray(head_logits(hidden, model.unembed(params)), np.float64)
    return [row[:length] for row, length in zip(logits, lengths, strict=True)]


def oracle(models, text=TEXT):
    student, teacher, params, teacher_params = models
    parts, cut = [], list(windows(text))
    inputs = [tokens[:-1] for _, _, tokens in cut]
    both = logits_of(student, params, inputs), logits_of(teacher, teacher_params, inputs)
    for (document, first, tokens), z, t in zip(cut, *both, strict=True):
        labels = tokens[1:]
        shared = min(z.shape[1], t.shape[1])
        q, p = log_softmax(z[:, :shared]), log_softmax(t[:, :shared])
        position = first + np.arange(len(labels))
        part = {
            "document": np.full(len(labels), document),
            "position": position,
            "token": labels,
            **one_side(z, labels, ""),
            **one_side(t, labels, "teacher_"),
            "forward_kl": (np.exp(p) * (p - q)).sum(-1),
            "reverse_kl": (np.exp(q) * (q - p)).sum(-1),
            "total_variation": np.abs(np.exp(p) - np.exp(q)).sum(-1) / 2,
            "agreement_top1": p.argmax(-1) == q.argmax(-1),
        }
        counted = text.trained[text.offsets[document] + position] > 0
        parts.append({name: value[counted] for name, value in part.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_close(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        if value.dtype.kind in "iub" and name != "agreement_top1":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], value, rtol=3e-5, atol=2e-6, err_msg=name)


@vocabularies
def test_every_column_equals_numpy(teacher_vocab):
    found = reference(teacher_vocab)
    assert_close(found, oracle(pair(teacher_vocab)))
    assert {name for name in found if name.startswith("teacher_")} == {
        f"teacher_{name}" for name in OF_MODEL
    }
    assert found.keys() >= PAIR_VALUES.keys()
    integers = {name for name, column in found.items() if column.dtype == np.int32}
    assert integers == {"document", "position", "token", "top5", "teacher_top5"}
    assert all(c.dtype == np.float32 for n, c in found.items() if n not in integers)


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 1}, {"batch_size": 7}, {"batch_size": 64, "block_tokens": 1000}, {"seed": 5}],
)
def test_batches_padding_blocks_and_packing_change_nothing(options):
    assert_close(measure(pair(64), **options), reference(64))


def test_columns_are_in_the_order_of_the_text_and_only_counted_tokens_are_there():
    found = reference()
    place = TEXT.offsets[found["document"]] + found["position"]
    counted = TEXT.trained.astype(bool).copy()
    counted[TEXT.offsets[:-1]] = False  # nothing predicts a first token
    np.testing.assert_array_equal(place, np.flatnonzero(counted))
    np.testing.assert_array_equal(found["token"], TEXT.tokens[place])


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_places_are_those_of_every_label(seed):
    rows = pack(TEXT, seq_len=SEQ_LEN, seed=seed)
    document_NT, position_NT = places(rows)
    batch = jax.tree.map(lambda *x: np.stack(x), *[rows[i] for i in range(len(rows))])
    np.testing.assert_array_equal(document_NT, batch.document_BT)
    real = batch.segment_BT > 0
    assert (position_NT[~real] == 0).all()
    labels = TEXT.tokens[TEXT.offsets[document_NT[real]] + position_NT[real]]
    np.testing.assert_array_equal(labels, batch.labels_BT[real])
    once = set(zip(document_NT[real].tolist(), position_NT[real].tolist(), strict=True))
    assert len(once) == real.sum() == (np.diff(TEXT.offsets) - 1).sum()


@vocabularies
def test_training_and_study_measure_the_same(teacher_vocab):
    student, teacher, params, teacher_params = pair(teacher_vocab)
    rows = pack(TEXT, seq_len=SEQ_LEN, seed=None)
    step = make_eval_step(student, live_teacher(teacher), block_tokens=24)
    batches = eval_batches(rows, batch_size=4, prefetch=0)
    known = evaluate(step, params, (teacher_params,), batches)
    found = reference(teacher_vocab)
    assert known["eval/tokens"] == len(found["token"])
    for name in ("nll", "teacher_nll", "forward_kl", "reverse_kl", "agreement_top1"):
        np.testing.assert_allclose(found[name].mean(), known[f"eval/{name}"], rtol=1e-5)
    right = found["top5"][:, 0] == found["token"]
    np.testing.assert_allclose(right.mean(), known["eval/accuracy_top1"], rtol=1e-6)


def test_a_model_alone_and_beside_itself():
    student, _, params, _ = pair()
    alone = measure((student, None, params, None))
    both = measure((student, student, params, params))
    assert set(alone) == {"document", "position", "token", *OF_MODEL}
    for name in OF_MODEL:
        np.testing.assert_array_equal(both[name], both[f"teacher_{name}"])
        np.testing.assert_allclose(both[name], alone[name], rtol=1e-5, atol=1e-6)
    for name in ("forward_kl", "reverse_kl", "total_variation"):
        assert np.abs(both[name]).max() < 1e-6
    assert (both["agreement_top1"] == 1).all()


def test_a_cached_teacher_is_the_live_one():
    student, teacher, params, teacher_params = pair(64)
    rows = pack(TEXT, seq_len=SEQ_LEN, seed=3)

    apply = jax.jit(teacher.apply)

    def with_targets(batch):
        hidden = apply(
            teacher_params, batch.tokens_BT, batch.segment_BT, batch.position_BT
        ).last_BTD
        return batch._replace(targets={"hidden": np.asarray(hidden)})

    unembed = teacher.unembed(teacher_params)
    teach = cached_teacher("hidden", head=(None, 1.0), temperatures=(1.0,), policy="", vocab=64)
    step = make_record_step(student, teach, block_tokens=24)
    batches = map(with_targets, eval_batches(rows, batch_size=4, prefetch=0))
    head = (unembed.weight_DV, unembed.bias_V)
    assert_close(collect(step, params, (head,), batches, rows), reference(64))


def test_a_mixture_of_equal_teachers_is_the_teacher():
    student, teacher, params, teacher_params = pair(64)
    rows = pack(TEXT, seq_len=SEQ_LEN, seed=3)
    teach = mixed_teachers((teacher, teacher), (0.3, 0.7), "probability")
    step = make_record_step(student, teach, block_tokens=24)
    batches = eval_batches(rows, batch_size=4, prefetch=0)
    assert_close(collect(step, params, (teacher_params,) * 2, batches, rows), reference(64))


def test_no_array_holds_all_logits_and_none_is_sorted():
    vocab = 509  # no other size of the program
    student, teacher = tiny.model(vocab=vocab), tiny.model(width=24, vocab=vocab)
    batch = tiny.batch(rows=4, length=64, vocab=vocab)
    step = make_record_step(student, live_teacher(teacher), block_tokens=16)
    text = step.lower(student.abstract(), (teacher.abstract(),), batch).compile().as_text()
    shapes = [[int(n) for n in dims.split(",")] for dims in re.findall(r"\w+\[([\d,]+)\]", text)]
    over_vocabulary = [int(np.prod(shape)) for shape in shapes if vocab in shape]
    assert 16 * vocab <= max(over_vocabulary) <= 24 * vocab < 4 * 64 * vocab
    # The likeliest entries come from a selection; a sort would cost far more than the two heads.
    assert " sort(" not in text


def test_batches_of_other_rows_are_refused():
    student, _, params, _ = pair()
    rows = pack(TEXT, seq_len=SEQ_LEN, seed=None)
    others = pack(TEXT, seq_len=SEQ_LEN, seed=1)
    step = make_record_step(student, None, block_tokens=64)
    load = lambda of: list(eval_batches(of, batch_size=4, prefetch=0))
    with pytest.raises(ValueError, match="are other rows"):
        collect(step, params, (), load(others), rows)
    with pytest.raises(ValueError, match="are other rows"):
        collect(step, params, (), [*load(rows), load(rows)[0]], rows)
    with pytest.raises(ValueError, match="hold 4 rows of"):
        collect(step, params, (), load(rows)[:1], rows)


def test_nothing_to_count_is_an_error():
    student, _, params, _ = pair()
    text = TEXT._replace(trained=np.zeros_like(TEXT.trained))
    with pytest.raises(UserError, match="0 counted tokens"):
        measure((student, None, params, None), text=text)


def test_a_file_keeps_every_bit(tmp_path):
    columns = {name: column.copy() for name, column in reference().items()}
    columns["nll"][:5] = [np.nan, -0.0, np.inf, 1e-45, np.float32(0.1)]
    columns["slice_x"] = np.arange(len(columns["token"])).astype(np.int16) % 3
    written = Records(columns, {"x": ("a", "<b>", "ö")})
    write_records(tmp_path / "tokens.parquet", written)
    found = read_records(tmp_path / "tokens.parquet")
    assert found.names == written.names
    assert list(found.columns) == list(columns)
    for name, column in columns.items():
        assert found.columns[name].dtype == column.dtype
        assert found.columns[name].tobytes() == column.tobytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.parquet"]


def test_a_file_of_no_token_keeps_its_shape(tmp_path):
    columns = {"token": np.zeros(0, np.int32), "top5": np.zeros((0, 5), np.int32)}
    write_records(tmp_path / "t", Records(columns, {}))
    assert read_records(tmp_path / "t").columns["top5"].shape == (0, 5)


def test_what_is_no_file_of_records_is_one_line(tmp_path):
    (tmp_path / "text").write_text("no parquet")
    for name in ("text", "absent"):
        with pytest.raises(UserError, match="measure this model again") as error:
            read_records(tmp_path / name)
        assert "\n" not in str(error.value)
