"""Decodes parquet and Arrow files in a process of its own, with little memory, for tables.py.

A file of some hundred bytes may unfold to gigabytes: rows that a page counts, values that point at
one long text, pages of zeros. No number in the file says so truly, so the memory is limited.
Imports nothing of the package, which would take seconds.
"""

import json
import os
import resource
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

MEMORY = 3 * 2**28  # bytes, besides what the libraries take themselves
COLUMNS = 1000
OTHERS = 20  # columns that are not read, whose names are given
BATCH_ROWS, BATCH_BYTES, BATCH_VALUES = 1024, 2**27, 2**22
# More than texts are compressed: 200 bytes of each in the file, or a row.
ROWS, ROWS_PER_BYTE = 2**18, 1
BYTES, BYTES_PER_BYTE = 2**27, 200


class Refused(Exception):
    """Why a file is not read."""


def write_batches(path, kind, wholes, more, sink):
    """Writes a file as a stream of Arrow: of the columns those of `wholes`, and of `more`.

    kind: of KINDS. wholes: lists of columns that make a record. Without one of these lists all
    columns are given; with one, the names of the others are, with nulls in them.
    """
    size = os.path.getsize(path)
    schema, batches_of = KINDS[kind](path, size)
    known = {*more, *(name for columns in wholes for name in columns)}
    whole = any(set(columns) <= set(schema.names) for columns in wholes)
    chosen = [i for i, name in enumerate(schema.names) if name in known or not whole]
    if len(chosen) > COLUMNS:
        raise Refused(f"it has {len(chosen):,} columns, and at most {COLUMNS:,} are read")
    others = [pa.field(name, pa.null()) for name in schema.names if whole and name not in known]
    own = [schema.field(i).with_type(_owning(schema.field(i).type)) for i in chosen]
    fields = own + others[:OTHERS]
    rows = unfolded = 0
    with pa.ipc.new_stream(sink, pa.schema(fields)) as stream:
        for batch in batches_of(chosen):
            batch = batch.cast(pa.schema(own))
            values, taken = _size(batch.to_struct_array())
            unfolded, rows = unfolded + taken, rows + len(batch)
            if taken > BATCH_BYTES or values > BATCH_VALUES:
                raise Refused(f"{len(batch):,} rows unfold to {taken:,} bytes, {values:,} values")
            if unfolded > BYTES + BYTES_PER_BYTE * size:
                raise Refused(f"its {size:,} bytes unfold to more than {unfolded:,}")
            _check_rows(rows, size)
            nulls = [pa.nulls(len(batch)) for _ in others[:OTHERS]]
            arrays = [*batch.columns, *nulls]
            stream.write_batch(pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)))


def _parquet(path, size):
    """The schema, and a function that gives the batches of some of its columns.

    Pages are compared with their checksums where they have any.
    """
    # Buffered, a column is read piece by piece and not as a whole.
    file = pq.ParquetFile(
        path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True
    )
    rows, schema = file.metadata.num_rows, file.schema_arrow
    _check_rows(rows, size)
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    average = sum(group.total_byte_size for group in groups) // max(rows, 1)

    def batches(columns):
        names = [schema.names[i] for i in columns]
        return file.iter_batches(_rows_of(average), columns=names, use_threads=False)

    return schema, batches


def _arrow(path, size):
    """The same of an Arrow file, or of a stream, as the library datasets writes them."""
    file = pa.OSFile(path)
    whole = file.read(6) == b"ARROW1"
    file.seek(0)
    opened = pa.ipc.open_file if whole else pa.ipc.open_stream
    schema = opened(file).schema

    def batches(columns):
        file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=columns, use_threads=False)
        reader = opened(file, options=options)
        found = map(reader.get_batch, range(reader.num_record_batches)) if whole else reader
        for batch in found:
            batch.validate()
            if (seen := sum(map(_viewed, batch.columns))) > BYTES + BYTES_PER_BYTE * size:
                raise Refused(f"its {size:,} bytes unfold to {seen:,}")  # it would take hours
            batch.validate(full=True)  # offsets may point anywhere
            count = _rows_of(batch.nbytes // max(len(batch), 1))
            for at in range(0, len(batch), count):
                yield batch.slice(at, count)

    return schema, batches


# What holds values of one type, and how it is made; lists of views become lists of their own.
LISTS = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_),
    (pa.types.is_large_list_view, pa.large_list),
)
KINDS = {"parquet": _parquet, "arrow": _arrow}


def _rows_of(average):
    """How many rows of so many bytes are read at a time."""
    return max(1, min(BATCH_ROWS, 2**22 // max(average, 1)))


def _check_rows(rows, size):
    if rows > ROWS + ROWS_PER_BYTE * size:
        raise Refused(f"it counts {rows:,} rows in {size:,} bytes")


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
        raise Refused(f"it has a column of {kind}, which is not read: cast it to another type")
    else:
        return len(array), array.nbytes
    sizes = [_size(one) for one in inner]
    return len(array) + sum(values for values, _ in sizes), sum(size for _, size in sizes)


def _viewed(array):
    """How many bytes the views in an array point at, the same ones counted each time."""
    kind, types = array.type, pa.types
    if types.is_string_view(kind) or types.is_binary_view(kind):
        lengths = np.frombuffer(array.buffers()[1] or b"", "<i4")[::4]  # of 16 bytes the first
        return int(lengths.clip(0).sum(dtype=np.int64))
    if types.is_struct(kind):
        return sum(_viewed(array.field(i)) for i in range(kind.num_fields))
    return _viewed(array.values) if any(is_it(kind) for is_it, _ in LISTS) else 0


def _owning(kind):
    """The type with values of their own where they are views, which may be many of the same bytes.

    As values are copied, the limit of memory holds for them too.
    """
    types = pa.types
    if types.is_string_view(kind):
        return pa.large_string()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_owning(field.type)) for field in kind])
    for is_it, make in LISTS:
        if is_it(kind):
            return make(kind.value_field.with_type(_owning(kind.value_type)))
    return kind


def _limit_memory():
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))


def main(path, kind, columns):
    """Gives the exit code; a reason is one line on stderr. columns: (wholes, more) as JSON."""
    if sys.platform == "linux":
        _limit_memory()
    try:
        write_batches(path, kind, *json.loads(columns), sys.stdout.buffer)
    except (MemoryError, pa.ArrowMemoryError):
        sys.stderr.write(f"its rows unfold to more than {MEMORY:,} bytes of memory\n")
    except (Refused, pa.ArrowException, OSError, ValueError, KeyError) as error:
        sys.stderr.write((str(error).split("\n")[0] or type(error).__name__) + "\n")
    else:
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
