"""Decodes a parquet file in a process of its own, with little memory; data/parquet.py starts it.

A file of some hundred bytes may unfold to gigabytes: rows that a page counts, values that point at
one long text, pages of zeros. No number in the file says so truly, so the memory is limited.
Imports nothing of the package, which would take seconds.
"""

import json
import os
import resource
import sys

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MEMORY = 3 * 2**28  # bytes, besides what the libraries take themselves
COLUMNS = 1000
BATCH_ROWS, BATCH_BYTES, BATCH_VALUES = 1024, 2**27, 2**22
# More than texts are compressed: 200 bytes of each in the file, or a row.
ROWS, ROWS_PER_BYTE = 2**18, 1
BYTES, BYTES_PER_BYTE = 2**27, 200


class Refused(Exception):
    """Why a file is not read."""


def write_batches(path, wholes, more, sink):
    """Writes a file as a stream of Arrow: of the columns those of `wholes`, and of `more`.

    wholes: lists of columns that make a record. Without one of these lists all columns are given.
    Pages are compared with their checksums where they have any.
    """
    size = os.path.getsize(path)
    # Buffered, a column is read piece by piece and not as a whole.
    file = pq.ParquetFile(
        path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
    )
    rows = file.metadata.num_rows
    if rows > ROWS + ROWS_PER_BYTE * size:
        raise Refused(f"it counts {rows:,} rows in {size:,} bytes")
    names = file.schema_arrow.names
    known = {*more, *(name for columns in wholes for name in columns)}
    whole = any(set(columns) <= set(names) for columns in wholes)
    columns = [name for name in names if name in known] if whole else names
    if len(columns) > COLUMNS:
        raise Refused(f"it has {len(columns):,} columns, and at most {COLUMNS:,} are read")
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    average = sum(group.total_byte_size for group in groups) // max(rows, 1)
    batch_rows = max(1, min(BATCH_ROWS, 2**22 // max(average, 1)))
    schema = pa.schema([file.schema_arrow.field(name) for name in columns])
    unfolded = 0
    with pa.ipc.new_stream(sink, schema) as stream:
        for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
            values, taken = _size(batch.to_struct_array())
            unfolded += taken
            if taken > BATCH_BYTES or values > BATCH_VALUES:
                raise Refused(f"{len(batch):,} rows unfold to {taken:,} bytes, {values:,} values")
            if unfolded > BYTES + BYTES_PER_BYTE * size:
                raise Refused(f"its {size:,} bytes unfold to more than {unfolded:,}")
            stream.write_batch(batch)


def _size(array):
    """(values, bytes) of an array as Python will have it, lists and structs gone through."""
    kind, types = array.type, pa.types
    if types.is_dictionary(kind):  # Python has a text of its own for every index
        lengths = pc.take(pc.fill_null(pc.binary_length(array.dictionary), 0), array.indices)
        return len(array), pc.sum(lengths, min_count=0).as_py()
    if types.is_struct(kind):
        inner = array.flatten()
    elif types.is_map(kind):
        inner = [array.keys, array.items]
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = [array.flatten()]
    elif types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType):
        raise Refused(f"it has a column of {kind}")
    else:
        return len(array), array.nbytes
    sizes = [_size(one) for one in inner]
    return len(array) + sum(values for values, _ in sizes), sum(size for _, size in sizes)


def _limit_memory():
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def main(path, columns):
    """Gives the exit code; a reason is one line on stderr. columns: (wholes, more) as JSON."""
    if sys.platform == "linux":
        _limit_memory()
    try:
        write_batches(path, *json.loads(columns), sys.stdout.buffer)
    except (MemoryError, pa.ArrowMemoryError):
        sys.stderr.write(f"its rows unfold to more than {MEMORY:,} bytes of memory\n")
    except (Refused, pa.ArrowException, OSError, ValueError, KeyError) as error:
        sys.stderr.write((str(error).split("\n")[0] or type(error).__name__) + "\n")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
