"""Rows in the order of training or evaluation, batched and prefetched with grain.

The batch of a step is a function of only (rows, batch size, seed, step). It does not depend on
where a run started, on threads, or on how many processes share the batch: each process loads its
rows.
"""

from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from distill_jax.data.pack import Rows
from distill_jax.types import Batch


def train_batches(
    rows: Rows,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    prefetch: int,
    row_slice: slice = slice(None),
) -> Iterator[Batch]:
    """Batches [B, T] of host arrays for the steps from start_step to stop_step - 1.

    Every epoch has every row once, in its own order; a batch may span two epochs. With weights,
    an epoch is one of a source, which begins again where its rows are used up. `batch_size` is B
    of the whole mesh; `row_slice` selects this process's rows. `prefetch` batches are loaded ahead
    by threads; 0 loads each on demand.
    """
    order = _order(rows, seed)
    load = lambda step: _load(rows, _train_indices(order, step, batch_size)[row_slice])
    yield from _ahead(load, start_step, stop_step, prefetch)


def batch_at(
    rows: Rows, step: int, *, batch_size: int, seed: int, row_slice: slice = slice(None)
) -> Batch:
    """The batch of train_batches at a step, or its rows in `row_slice`."""
    return _load(rows, _train_indices(_order(rows, seed), step, batch_size)[row_slice])


def train_rows(rows: Rows, steps: int, *, batch_size: int, seed: int) -> list[int]:
    """The indices of the rows in the first `steps` batches, sorted, each once."""
    order = _order(rows, seed)
    return sorted({i for step in range(steps) for i in _train_indices(order, step, batch_size)})


def eval_batches(
    rows: Rows, *, batch_size: int, prefetch: int, row_slice: slice = slice(None)
) -> Iterator[Batch]:
    """All rows once, in order, as batches [B, T]; the last is filled up with rows of padding."""
    n_batches = -(-len(rows) // batch_size)
    indices = lambda i: range(i * batch_size, (i + 1) * batch_size)
    load = lambda i: _load(rows, indices(i)[row_slice])
    yield from _ahead(load, 0, n_batches, prefetch)


def _order(rows: Rows, seed: int) -> grain.MapDataset:
    """An endless sequence of row indices, shuffled in each epoch.

    With weights, of each source by itself: which source a place is of depends on the weights and
    the place alone, and after so many places each has had its share, to within a row. Shares are
    grain's, exact to a hundredth of the smallest.
    """
    if rows.weights:
        ends = np.cumsum(rows.sizes).tolist()
        sources = [
            _shuffled(end - size, end, [seed, i])
            for i, (size, end) in enumerate(zip(rows.sizes, ends, strict=True))
        ]
        order = grain.MapDataset.mix(sources, rows.weights)
    else:
        order = _shuffled(0, len(rows), seed)
    order[0]  # grain initialises itself at the first access, which is not thread-safe
    return order


def _shuffled(start: int, stop: int, seed: int | list[int]) -> grain.MapDataset:
    # grain shuffles epoch e with seed + e: adjacent seeds must not share epochs.
    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.range(start, stop).shuffle(seed=mixed).repeat()


def _train_indices(order: grain.MapDataset, step: int, batch_size: int) -> list[int]:
    return [order[i] for i in range(step * batch_size, (step + 1) * batch_size)]


def _load(rows: Rows, indices: list[int] | range) -> Batch:
    loaded = [rows[i] if i < len(rows) else rows.padding() for i in indices]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *loaded)


def _ahead(load: Callable[[int], Batch], start: int, stop: int, prefetch: int) -> Iterator[Batch]:
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    batches = iter(grain.MapDataset.range(start, stop).map(load).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()
