"""A pass over held-out text: the values of every counted token, which everything else aggregates.

The device side gives arrays [B, T]; the host side keeps the counted tokens in the order of the
text, whatever the batches, the padding and the devices. Columns: records_file.py.
"""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from distill_jax.data.pack import Rows, places
from distill_jax.evals.records_file import OF_TEACHER
from distill_jax.evals.token_values import (
    MODEL_VALUES,
    PAIR_VALUES,
    check_counted,
    make_token_values,
)
from distill_jax.models.binding import Model
from distill_jax.objective import Teach
from distill_jax.types import COMPILING, Advance, Array, Batch, Params, silent

RecordStep = Callable[[Params, tuple[Params, ...], Batch], dict[str, Array]]

# accuracy_top1 is left out: it follows from top5 and token.
OF_MODEL = tuple(name for name in MODEL_VALUES if name != "accuracy_top1")
RECORDED = (*OF_MODEL, *(OF_TEACHER + name for name in OF_MODEL), *PAIR_VALUES)


def make_record_step(
    student: Model, teach: Teach | None, *, block_tokens: int, mesh: Mesh | None = None
) -> RecordStep:
    """Builds record_step(params, teacher_params, batch) -> columns [B, T] or [B, T, 5], jitted.

    `teach`, block_tokens and mesh as in make_token_values. Beside the values there are `token`,
    `document` and `counted` of the batch.
    """
    of = {"block_tokens": block_tokens, "mesh": mesh}
    token_values = make_token_values(student, teach, RECORDED, **of)

    @jax.jit
    def record_step(params, teacher_params, batch):
        return token_values(params, teacher_params, batch) | {
            "token": batch.labels_BT,
            "document": batch.document_BT,
            "counted": batch.weight_BT > 0,
        }

    return record_step


def collect(
    record_step: RecordStep,
    params: Params,
    teacher_params: tuple[Params, ...],
    batches: Iterable[Batch],
    rows: Rows,
    *,
    advance: Advance = silent,
) -> dict[str, np.ndarray]:
    """The columns of records_file.py, without slices, for every counted token of all rows.

    batches: the rows in order, filled up with padding; host arrays, or arrays over a mesh, also of
    several processes, which then all hold the result. advance: told of the rows that are done.
    Raises UserError where not one token counts and ValueError where the batches are not these rows.
    """
    document_NT, position_NT = places(getattr(rows, "rows", rows))
    parts: list[dict[str, np.ndarray]] = []
    start = 0
    for batch in batches:
        if not start:
            advance(f"{COMPILING} the measures", 0, 0)
            record_step.lower(params, teacher_params, batch).compile()
            advance("rows", 0, 0)
        values = record_step(params, teacher_params, batch)
        values = jax.tree.map(np.asarray, multihost_utils.process_allgather(values, tiled=True))
        counted_BT, document_BT = values.pop("counted"), values["document"]
        here = slice(start, start + len(document_BT))
        expected = document_NT[here]
        known = len(expected)  # what follows is padding, which counts nowhere
        if (document_BT[:known] != expected).any() or counted_BT[known:].any():
            raise ValueError(f"rows {here.start} to {here.stop} of the batches are other rows")
        kept = {name: value[:known][counted_BT[:known]] for name, value in values.items()}
        parts.append(kept | {"position": position_NT[here][counted_BT[:known]]})
        start = here.stop
        advance("rows", min(start, len(document_NT)), len(document_NT))
    if start < len(document_NT):
        raise ValueError(f"the batches hold {start} rows of {len(document_NT)}")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    check_counted(len(columns["token"]))
    order = np.lexsort((columns["position"], columns["document"]))
    first = ("document", "position", "token")
    columns = {name: columns[name] for name in first} | columns
    return {name: column[order] for name, column in columns.items()}
