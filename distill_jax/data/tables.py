"""Rows of parquet and Arrow files, decoded within bounds by a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from distill_jax.data import table_worker
from distill_jax.types import UserError
from distill_jax.untrusted import check_file
from distill_jax.words import first_line


def read_rows(
    path: Path,
    wholes: Sequence[Sequence[str]] = (),
    more: Sequence[str] = (),
    kind: str = "parquet",
) -> Iterator[dict[str, Any]]:
    """Each row as {column: value}, of the columns in `wholes` and `more`, with None in the others.

    wholes: groups of columns that make a record. Of a file without any whole group, all columns
    are given. kind: parquet or arrow.
    Raises UserError for a file that is damaged, whose pages differ from their checksums, or that
    unfolds to far more than its size.
    """
    check_file(path)
    command = [sys.executable, "-P", table_worker.__file__, str(path.absolute()), kind]
    command.append(json.dumps([wholes, more]))
    # The system's allocator asks for what it needs; others reserve more than the worker may have.
    environment = {**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    worker = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a signal to stop is for this process, which saves first
    )
    with worker:
        try:
            with pa.ipc.open_stream(worker.stdout) as batches:
                for batch in batches:
                    yield from batch.to_pylist()
            reason = ""
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = first_line(error)
        finally:  # also where no more rows are wanted
            worker.stdout.close()
        told = worker.stderr.read().decode(errors="replace").split("\n")[0]
    if worker.returncode or reason:
        reason = told or reason or f"its reader ended with {worker.returncode}"
        raise UserError(f"{path}: unreadable {kind} ({reason}): write the file again")
