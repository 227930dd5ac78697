import threading
from itertools import islice

import jax
import numpy as np
import pytest

from distill_jax.data.encode import Tokenized
from distill_jax.data.pack import mixed, pack
from distill_jax.data.pipeline import batch_at, eval_batches, train_batches, train_rows
from distill_jax.data.store import Labels


@pytest.fixture(scope="module")
def rows():
    n = 300
    return pack(
        Tokenized(
            tokens=np.arange(n, dtype=np.uint32),
            trained=np.ones(n, np.uint8),
            offsets=np.arange(0, n + 1, 10),
            labels=("x",) * 30,
        ),
        seq_len=9,
        seed=None,
    )


def concatenated(batches):
    return jax.tree.map(lambda *x: np.concatenate(x), *batches)


def train(rows, start=0, stop=20, *, seed=0, prefetch=2, batch_size=4, row_slice=slice(None)):
    return list(
        train_batches(
            rows,
            batch_size=batch_size,
            seed=seed,
            start_step=start,
            stop_step=stop,
            prefetch=prefetch,
            row_slice=row_slice,
        )
    )


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        for a, b in zip(batch, other, strict=True):
            np.testing.assert_array_equal(a, b)


def documents(batches):
    return np.concatenate([batch.document_BT[:, 0] for batch in batches])


def test_a_batch_is_a_function_of_seed_and_step(rows):
    alone = [batch_at(rows, step, batch_size=4, seed=0) for step in reversed(range(20))]
    assert_equal(train(rows), alone[::-1])


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_the_rows_of_some_steps_are_those_of_their_batches(rows, steps):
    seen = set(documents(train(rows, stop=steps)).tolist())
    assert train_rows(rows, steps, batch_size=4, seed=0) == sorted(seen)


@pytest.mark.parametrize("prefetch", [0, 1, 3, 16])
def test_loading_ahead_changes_nothing(rows, prefetch):
    assert_equal(train(rows, prefetch=prefetch), train(rows, prefetch=2))


@pytest.mark.parametrize("start", [0, 1, 7, 13, 20])
def test_a_resumed_run_sees_what_an_uninterrupted_one_sees(rows, start):
    assert_equal(train(rows, start=start), train(rows)[start:])


@pytest.mark.parametrize("parts", [2, 4])
def test_processes_together_load_the_batch_of_one(rows, parts):
    size = 4 // parts
    slices = [slice(i * size, (i + 1) * size) for i in range(parts)]
    shares = [train(rows, row_slice=part) for part in slices]
    joined = [concatenated(step) for step in zip(*shares, strict=True)]
    assert_equal(joined, train(rows))


def test_every_epoch_has_every_row_once_in_an_order_of_its_own(rows):
    assert len(rows) == 30
    order = documents(train(rows, batch_size=5, stop=18))
    epochs = order.reshape(3, 30)
    for epoch in epochs:
        assert sorted(epoch) == list(range(30))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_no_epoch_of_a_seed_is_an_epoch_of_the_next(rows):
    epochs = set()
    for seed in range(4):
        epochs |= {
            tuple(e)
            for e in documents(train(rows, batch_size=5, stop=18, seed=seed)).reshape(3, 30)
        }
    assert len(epochs) == 12


def test_a_batch_larger_than_the_data_goes_on_with_the_next_epoch(rows):
    (batch,) = train(rows, batch_size=70, stop=1)
    counts = np.bincount(batch.document_BT[:, 0], minlength=30)
    assert set(counts) == {2, 3}


@pytest.mark.parametrize("batch_size", [1, 4, 30, 64])
def test_evaluation_has_every_row_once_in_order(rows, batch_size):
    batches = list(eval_batches(rows, batch_size=batch_size, prefetch=2))
    assert {batch.tokens_BT.shape for batch in batches} == {(batch_size, 9)}
    joined = concatenated(batches)
    np.testing.assert_array_equal(joined.document_BT[:30, 0], np.arange(30))
    assert (joined.document_BT[30:] == -1).all()
    assert not joined.segment_BT[30:].any()
    assert not joined.weight_BT[30:].any()


def test_evaluation_in_parts_is_the_whole(rows):
    whole = list(eval_batches(rows, batch_size=4, prefetch=0))
    parts = [
        list(eval_batches(rows, batch_size=4, prefetch=2, row_slice=s))
        for s in (slice(0, 1), slice(1, 4))
    ]
    joined = [concatenated(step) for step in zip(*parts, strict=True)]
    assert_equal(joined, whole)


def test_a_loader_left_early_leaves_no_thread(rows):
    before = set(threading.enumerate())
    batches = train_batches(rows, batch_size=4, seed=0, start_step=0, stop_step=2**31, prefetch=3)
    assert len(list(islice(batches, 3))) == 3
    assert set(threading.enumerate()) - before
    batches.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
    assert set(threading.enumerate()) <= before


SIZES = (7, 40, 3)


def mixture(weights, sizes=SIZES):
    parts = []
    for i, size in enumerate(sizes):
        offsets = np.arange(0, 10 * size + 1, 10)
        tokens = np.arange(offsets[-1], dtype=np.uint32) + 1000 * i
        text = Tokenized(
            tokens, np.ones(len(tokens), np.uint8), offsets, Labels("x", offsets[1:] * 0)
        )
        parts.append(pack(text._replace(trained_tokens=9 * size), seq_len=9, seed=0))
    return mixed(parts, weights)


def sources_in(batches):
    return [batch.tokens_BT[:, 0] // 1000 for batch in batches]


def test_the_rows_of_a_mixture_are_those_of_its_sources():
    rows = mixture(())
    every = concatenated(train(rows, 0, 25, batch_size=2))
    assert len(rows) == sum(SIZES)
    first = sorted(every.tokens_BT[:, 0].tolist())
    assert first == [1000 * i + 10 * d for i, size in enumerate(SIZES) for d in range(size)]
    starts = np.cumsum([0, *SIZES])
    source, place = every.tokens_BT[:, 0] // 1000, every.tokens_BT[:, 0] % 1000 // 10
    np.testing.assert_array_equal(every.document_BT[:, 0], starts[source] + place)
    np.testing.assert_array_equal(every.labels_BT, every.tokens_BT + 1)


@pytest.mark.parametrize("weights", [(1, 1, 1), (0.7, 0.2, 0.1), (1, 1e3, 3)])
def test_each_source_has_its_share_at_every_place(weights):
    found = np.concatenate(sources_in(train(mixture(weights), 0, 300)))
    share = np.array(weights) / sum(weights)
    for i in range(3):
        counts = np.cumsum(found == i)
        assert np.abs(counts - share[i] * np.arange(1, len(found) + 1)).max() < 2


def test_a_source_that_is_used_up_begins_again_in_another_order():
    rows = mixture((0.5, 0.4, 0.1))
    every = concatenated(train(rows, 0, 40))
    mine = every.tokens_BT[every.tokens_BT[:, 0] < 1000, 0]
    epochs = mine[: len(mine) // 7 * 7].reshape(-1, 7)
    assert len(epochs) > 5
    assert all(sorted(epoch) == list(range(0, 70, 10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 3


@pytest.mark.parametrize("weights", [(), (0.5, 0.4, 0.1)])
def test_a_mixture_is_a_function_of_seed_and_step(weights):
    rows, again = mixture(weights), mixture(weights)
    whole = train(rows, 0, 12)
    assert_equal(whole[5:], train(again, 5, 12, prefetch=0))
    assert_equal([whole[7]], [batch_at(again, 7, batch_size=4, seed=0)])
    assert (whole[0].tokens_BT != train(rows, 0, 1, seed=1)[0].tokens_BT).any()
    seen = {row for step in range(12) for row in whole[step].document_BT[:, 0].tolist()}
    assert len(train_rows(rows, 12, batch_size=4, seed=0)) == len(seen)


def test_sources_of_one_size_have_orders_of_their_own():
    rows = mixture((1, 1, 1), sizes=(9, 9, 9))
    every = concatenated(train(rows, 0, 27, batch_size=1)).tokens_BT[:, 0]
    orders = {tuple(every[every // 1000 == i] % 1000) for i in range(3)}
    assert len(orders) == 3
