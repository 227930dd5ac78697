"""Per-token records of one model on held-out text, in memory and as one parquet file.

Columns, one entry per counted token, ordered by document and position:
  document, position, token   int32; position is that of the token within its document, from 1
  nll, entropy                nats, of the model's own distribution q
  confidence, brier           max q, and the sum over the vocabulary of (q - [label])²
  top5, top5_probability      [n, 5], the likeliest ids of q, the best first
  teacher_*                   the same of the teacher; absent, like what follows, without one
  forward_kl, reverse_kl      nats, at temperature 1
  total_variation             half of the L1 distance
  agreement_top1              1 where the likeliest tokens of both are the same
  slice_*                     int16, a code into `names`
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from distill_jax.files import written_whole
from distill_jax.types import UserError
from distill_jax.words import first_line

OF_TEACHER = "teacher_"  # before the name of a column that is the teacher's
NAMES = b"slice_names"

Columns = Mapping[str, np.ndarray]


class Records(NamedTuple):
    """Columns of equal length, and for each slice column `slice_x` what its codes are called."""

    columns: dict[str, np.ndarray]
    names: dict[str, tuple[str, ...]]


def write_records(path: Path, records: Records) -> None:
    """Writes the file as a whole or not at all; every number is kept bit by bit."""
    arrays = {name: _to_arrow(column) for name, column in records.columns.items()}
    table = pa.table(arrays).replace_schema_metadata({NAMES: json.dumps(records.names)})
    with written_whole(path) as part:
        parquet.write_table(table, part, compression="zstd")


def read_records(path: Path) -> Records:
    """What write_records has written. Raises UserError where the file is absent or another's."""
    try:
        table = parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be read ({reason}): measure this model again") from None
    metadata = table.schema.metadata or {}
    if NAMES not in metadata:
        raise UserError(f"{path} holds no per-token records: measure this model again")
    names = {name: tuple(values) for name, values in json.loads(metadata[NAMES]).items()}
    return Records({name: _to_numpy(table[name]) for name in table.column_names}, names)


def _to_arrow(column: np.ndarray) -> pa.Array:
    if column.ndim == 1:
        return pa.array(column)
    flat = pa.array(column.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    whole = column.combine_chunks()
    if not pa.types.is_fixed_size_list(whole.type):
        return whole.to_numpy(zero_copy_only=False)
    flat = whole.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, whole.type.list_size)
