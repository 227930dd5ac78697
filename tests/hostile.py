"""Files that somebody made to do harm: a fixed corpus, small to write.

`CORPUS` has for every kind of file the cases by name: the content, or a function that makes the
file at a path; and whether it must be refused (True), must be read (False), or may be either.
"""

import gzip
import io
import json
import os
import socket
import struct
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from experiments.fuzz import seeds

WRONG = {
    "null": None, "true": True, "text": "two", "list": [1], "object": {"a": 1}, "zero": 0,
    "negative": -1, "fraction": 1.5, "billion": 10**9, "trillion": 10**12, "2**63": 2**63,
    "400 digits": 10**400, "nan": float("nan"), "infinity": float("inf"), "surrogate": "\ud800",
}  # fmt: skip


class Case(NamedTuple):
    make: Any
    refused: bool | None = True


def deep(levels, inside="1"):
    return "[" * levels + inside + "]" * levels


def text_lines():
    """jsonl."""
    line = lambda value: json.dumps({"text": value}) + "\n"
    turn = lambda **more: (
        json.dumps({"messages": [{"role": "assistant", "content": "a", **more}]}) + "\n"
    )
    cases = {
        "100,000 brackets": deep(100_000),
        "100,000 open brackets": "[" * 100_000,
        "100,000 open objects": '{"a":' * 100_000,
        "200 levels beside the text": f'{{"text": "a", "x": {deep(200)}}}',
        "200 levels in a turn": turn(x=json.loads(deep(200))),
        "10,000 digits": f'{{"text": {"7" * 10_000}}}',
        "10,000 digits beside": f'{{"text": "a", "x": {"7" * 10_000}}}',
        "surrogate": '{"text": "a\\ud800b"}',
        "surrogate in a prompt": '{"prompt": "\\udfff", "completion": "a"}',
        "surrogate in a label": '{"text": "a", "label": "\\ud800"}',
        "surrogate in a turn": turn(name="\ud800"),
        "surrogate in a role": turn(role="\ud800"),
        "surrogate as a key": '{"messages": [{"role": "assistant", "content": "a", "\\ud800": 1}]}',
        "surrogate in tools": (
            '{"messages": [{"role": "assistant", "content": "a"}], "tools": [{"a": "\\ud800"}]}'
        ),
        "deep tools as text": json.dumps(
            {"messages": [{"role": "assistant", "content": "a"}], "tools": deep(100_000)}
        ),
        "NUL": b'{"text": "a\0b"}',
        "only NUL": b"\0" * 4096,
        "escaped NUL": Case('{"text": "a\\u0000b"}', None),
        "mark of order": Case(b"\xef\xbb\xbf" + line("a").encode(), False),
        "two marks": b"\xef\xbb\xbf\xef\xbb\xbf" + line("a").encode(),
        "carriage returns": Case('{"text": "a"}\r\n{"text": "b"}\r\n', False),
        "only carriage returns": '{"text": "a"}\r{"text": "b"}\r',
        "U+2028": Case('{"text": "a\u2028b"}\n', False),
        "twice a key": Case('{"text": "a", "text": "b"}', False),
        "not UTF-8": b'{"text": "\xff\xfe\xfd"}',
        "overlong": b'{"text": "\xc0\xaf"}',
        "half a character": b'{"text": "\xe2\x82',
        "UTF-16": '{"text": "a"}'.encode("utf-16"),
        "NaN beside": Case('{"text": "a", "x": NaN}', False),
        "NaN alone": "NaN",
        "1e999": Case('{"text": "a", "x": 1e999}', False),
        "a million empty lines": Case(b"\n" * 10**6, True),
        "a million spaces": b" " * 10**6,
        "a line of 6 MB": Case(line("ab " * 2_000_000), False),
        "a line of 40 MB": lambda path: path.write_bytes(b'{"text": "' + b"a" * 40_000_000),
        "a line of lists": '{"x": [' + "[]," * 1_000_000 + "[]]}",
        "a line of numbers": '{"x": [' + "0," * 1_000_000 + "0]}",
        "an array": Case('[{"text": "a"}]', False),
        "no object": '"a"\n',
        "no known field": '{"a": 1}',
        "a thousand fields": json.dumps({f"f{i}": i for i in range(1000)}),
        "turns that are no objects": '{"messages": [1]}',
        "no turns": '{"messages": []}',
        "turns of turns": '{"messages": [[{"role": "user", "content": "a"}]]}',
        "parts that are no text": turn(content=[{"type": "image"}]),
        "parts without text": turn(content=[{"type": "text"}]),
        "calls that are no objects": turn(tool_calls=[1]),
        "deep arguments": Case(turn(tool_calls=[{"name": "f", "arguments": deep(100_000)}]), False),
        "long arguments": Case(turn(tool_calls=[{"name": "f", "arguments": "9" * 10_000}]), False),
        "a label that is a list": Case('{"text": "a", "label": [1]}', None),
        "compressed": b"\x1f\x8b\x08\0" * 9,
        "400 MB of new lines": gzip.compress(b"\n" * 400_000_000, 1),
        "a packed line of 200 MB": gzip.compress(b'{"text": "' + b"a" * 200_000_000, 1),
        "packed twice": gzip.compress(gzip.compress(b'{"text": "a"}')),
        "a window of 2 GB": b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00" * 9,
        "a block of zstd that is no block": b"\x28\xb5\x2f\xfd" + b"\xff" * 99,
        "parquet by content": b"PAR1" * 9,
    }
    for name, value in WRONG.items():
        if name not in ("text",):
            cases[f"text is {name}"] = line(value)
            cases[f"role is {name}"] = turn(role=value)
            cases[f"content is {name}"] = turn(content=value)
            cases[f"messages are {name}"] = Case(json.dumps({"messages": value, "text": "a"}), None)
            cases[f"tools are {name}"] = Case(
                json.dumps({"messages": [{"role": "assistant", "content": "a"}], "tools": value}),
                None,
            )
    return cases


def arrays():
    """json."""
    record = lambda value: json.dumps({"text": value})
    return {
        "100,000 brackets": deep(100_000),
        "100,000 open objects": "[" + '{"a":' * 100_000,
        "200 levels beside the text": f'[{{"text": "a", "x": {deep(200)}}}]',
        "10,000 digits": f'[{{"text": "a", "x": {"7" * 10_000}}}]',
        "10,000 digits of a record": "[" + "7" * 10_000,
        "a record of 40 MB": lambda path: path.write_bytes(b'[{"text": "' + b"a" * 40_000_000),
        "a record of lists": '[{"x": [' + "[]," * 1_000_000 + "[]]}]",
        "40 MB of spaces": lambda path: path.write_bytes(b"[" + b" " * 40_000_000 + b"1]"),
        "40 MB of commas": lambda path: path.write_bytes(b"[" + b"," * 40_000_000),
        "no end": f"[{record('a')},",
        "no commas": f"[{record('a')} {record('b')}]",
        "two arrays": f"[{record('a')}][{record('b')}]",
        "arrays in an array": f"[[{record('a')}]]",
        "an object of records": '{"data": [{"text": "a"}]}',
        "a packed array of 200 MB": gzip.compress(b"[" + b" " * 200_000_000, 1),
        "surrogate": '[{"text": "\\ud800"}]',
        "half a character": b'[{"text": "\xe2\x82',
        "NUL": b'[{"text": "a\0"}]',
        "only NUL": b"\0" * 4096,
        "UTF-16": '[{"text": "a"}]'.encode("utf-16"),
        "empty": "",
        "spaces": Case(f" [ {record('a')} , {record('b')} ] ", False),
    }


def csv_tables():
    """csv."""
    return {
        "a cell without an end": lambda path: path.write_text('text\n"' + "a\n" * 20_000_000),
        "a row without an end": lambda path: path.write_text("text\n" + '"a\n",' * 8_000_000),
        "40 MB of commas": lambda path: path.write_text("text\n" + "," * 40_000_000),
        "a header of 20 MB": lambda path: path.write_text("ab," * 7_000_000 + "text\na"),
        "a header of quotes": lambda path: path.write_text('"' + "a\n" * 20_000_000),
        "a packed cell of 200 MB": gzip.compress(b'text\n"' + b"a" * 200_000_000, 1),
        "100,000 empty rows": "text\n" + "\n" * 100_000,
        "NUL": b"text\na\0b\n",
        "UTF-16": "text\na\n".encode("utf-16"),
        "not UTF-8": b"text\n\xff\n",
        "no header": "a dog\na cat\n",
        "a header alone": "text\n",
        "empty": "",
        "only carriage returns": Case("text\ra\rb\r", None),
        "quotes": 'text\n"a""\n',
        "a formula": Case("text\n=HYPERLINK(1)\n", False),
        "U+2028": Case("text\na\u2028b\n", False),
    }


def parquet(table, **options):
    sink = io.BytesIO()
    options = {"compression": "zstd", "write_page_checksum": True, **options}
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), sink, **options)
    return sink.getvalue()


def repeated(text, rows):
    """A column of one text, which stands in the file once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), [text])


def tables():
    """parquet."""
    plain = {"text": [f"the fox {i}" for i in range(2000)]}
    good = parquet(plain)
    one = lambda value, kind: {"text": pa.array([value], kind)}
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    nested = pa.string()
    for _ in range(150):
        nested = pa.list_(nested)
    large = 2**30  # bytes of a page with the values that a file has once
    cases = {
        "empty": b"",
        "four bytes": b"PAR1",
        "two marks": b"PAR1PAR1",
        "a footer of 2**31": b"PAR1" + b"\xff\xff\xff\x7fPAR1",
        "no rows": Case(parquet({"text": pa.array([], pa.string())}), True),
        "320 GB of one text": parquet(
            {"text": repeated("a" * 2**24, 20_000)}, dictionary_pagesize_limit=large
        ),
        "10 million rows": parquet({"text": repeated("a", 10_000_000)}),
        "10 million nulls": parquet({"text": pa.nulls(10_000_000, pa.string())}),
        "a text of 200 MB": lambda path: path.write_bytes(parquet({"text": ["a" * 200_000_000]})),
        "10 million turns": parquet(
            {"messages": pa.ListArray.from_arrays([0, 10_000_000], pa.nulls(10_000_000))}
        ),
        "10 million texts in a row": parquet(
            {
                "messages": pa.ListArray.from_arrays(
                    [0, 10_000_000], repeated("a", 10_000_000).cast(pa.string())
                )
            }
        ),
        "3,000 columns": parquet({f"c{i}": [1] for i in range(3000)}),
        "150 lists in each other": parquet({"text": pa.array([None], nested)}),
        "texts are numbers": parquet(one(1, pa.int64())),
        "texts are bytes": parquet(one(b"\xff", pa.binary())),
        "texts are dates": parquet(one(0, pa.timestamp("ns"))),
        "texts are lists": parquet(one(["a"], pa.list_(pa.string()))),
        "texts are null": parquet(one(None, pa.string())),
        "texts have no type": parquet(one(None, pa.null())),
        "texts are structs": parquet(one({"a": 1}, pa.struct([("a", pa.int8())]))),
        "texts are large": Case(parquet(one("a", pa.large_string())), False),
        "texts of a dictionary": Case(parquet({"text": repeated("a", 5)}), False),
        "turns are null": parquet({"messages": pa.array([None], turns)}),
        "turns are empty": parquet({"messages": pa.array([[]], turns)}),
        "turns with bytes": parquet(
            {"messages": [[{"role": "assistant", "content": "a", "x": b"\xff"}]]}
        ),
        "turns with dates": parquet(
            {"messages": [[{"role": "assistant", "content": "a", "x": np.datetime64(0, "s")}]]}
        ),
        "tools of bytes": parquet(
            {"messages": [[{"role": "assistant", "content": "a"}]], "tools": [b"\xff"]}
        ),
        "a label of bytes": Case(parquet({"text": ["a"], "label": [b"\xff"]}), None),
        "twice a column": Case(
            parquet(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"])),
            None,
        ),
        "text that is no UTF-8": parquet(
            {"text": pa.array([b"a\xffb"], pa.binary()).view(pa.string())}
        ),
    }
    for part in range(1, 12):
        cases[f"{part} of 12 parts"] = good[: len(good) * part // 12]
    return cases


def arrow(table, file=False, **options):
    sink = io.BytesIO()
    table = table if isinstance(table, pa.Table) else pa.table(table)
    options = pa.ipc.IpcWriteOptions(**options)
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(
        sink, table.schema, options=options
    ) as to:
        to.write_table(table)
    return sink.getvalue()


def offsets(*numbers):
    """A stream with a column of texts whose offsets lie."""
    good = arrow({"text": ["abc"[:i] for i in range(1, len(numbers))]})
    true = np.cumsum([0, *range(1, len(numbers))]).astype(np.int32).tobytes()
    assert good.count(true) == 1
    return good.replace(true, np.array(numbers, np.int32).tobytes())


def views(length, count):
    """An array of `count` texts, which are all the same `length` bytes."""
    view = struct.pack("<i4sii", length, b"aaaa", 0, 0)
    buffers = [None, pa.py_buffer(view * count), pa.py_buffer(b"a" * length)]
    return pa.Array.from_buffers(pa.string_view(), count, buffers)


def arrow_files():
    """arrow."""
    plain = {"text": [f"the fox {i}" for i in range(2000)]}
    good, whole = arrow(plain), arrow(plain, file=True)
    huge = bytearray(good)
    at = huge.index(b"\xff\xff\xff\xff", 8)
    huge[at + 4 : at + 8] = struct.pack("<i", 2**31 - 1)
    cases = {
        "empty": b"", "the mark": b"ARROW1", "two marks": b"ARROW1\0\0" * 2,
        "a footer of 2**31": b"ARROW1\0\0" + b"\xff\xff\xff\x7fARROW1",
        "a message of 2**31": bytes(huge),
        "no rows": arrow({"text": pa.array([], pa.string())}),
        "offsets beyond the data": offsets(0, 1, 10**6, 10**6),
        "offsets that fall": offsets(0, 5, 2, 3),
        "negative offsets": offsets(-5, 3, 4, 5),
        "10 million nulls": arrow({"text": pa.nulls(10_000_000)}),
        "a text of 400 MB in zstd": lambda path: path.write_bytes(
            arrow({"text": ["a" * 400_000_000]}, compression="zstd")
        ),
        "10 million rows in zstd": arrow({"text": repeated("a", 10_000_000)}, compression="zstd"),
        "views of a text": Case(arrow({"text": pa.array(["a" * 10**6], pa.string_view())}), False),
        "a million views of a text": arrow({"text": views(10**6, 10**6)}),
        "a list of a million views": arrow(
            {"text": pa.ListArray.from_arrays([0, 10**6], views(10**6, 10**6))}
        ),
        "a column of runs": arrow(
            {"text": pa.RunEndEncodedArray.from_arrays(pa.array([10**9], pa.int64()), ["a"])}
        ),
        "3,000 columns": arrow({f"c{i}": [1] for i in range(3000)}),
        "text that is no UTF-8": arrow(
            {"text": pa.array([b"a\xffb"], pa.binary()).view(pa.string())}
        ),
        "texts of a dictionary": Case(arrow({"text": repeated("a", 5)}), False),
        "parquet by content": b"PAR1" * 9,
        "packed": gzip.compress(good),
    }  # fmt: skip
    for part in range(1, 12, 4):
        cases[f"{part} of 12 parts of a stream"] = Case(good[: len(good) * part // 12], None)
        cases[f"{part} of 12 parts of a file"] = whole[: len(whole) * part // 12]
    return cases


def flips(count=60):
    """parquet with checksums and one changed byte; where it is read, its texts must be the same."""
    good = parquet({"text": [f"the fox {i}" for i in range(200)]}, compression="none")
    r = np.random.default_rng(0)
    for at in r.choice(len(good) - 8, count, replace=False):
        changed = bytearray(good)
        changed[at] ^= 1 << int(r.integers(8))
        yield int(at), bytes(changed)


def config(**changes):
    return json.dumps({**seeds.CONFIG, **changes})


def configs():
    """config.json of a model whose weights are there."""
    cases = {
        "empty": "", "a list": "[]", "null": "null", "NaN": "NaN", "not UTF-8": b"\xff{}",
        "100,000 brackets": deep(100_000), "nested in a value": config(x=json.loads(deep(150))),
        "10,000 digits": config()[:-1] + f', "x": {"9" * 10_000}}}',
        "40 MB": lambda path: path.write_bytes(b" " * 40_000_000 + config().encode()),
        "twice a key": Case(config()[:-1] + ', "vocab_size": 10}', True),
        "no family": config(model_type=None),
        "heads do not divide": config(num_key_value_heads=3),
        "heads of odd width": config(head_dim=7),
        "more heads than width": config(head_dim=None, num_attention_heads=64),
        "other width": config(hidden_size=64), "other vocabulary": config(vocab_size=271),
        "more blocks": config(num_hidden_layers=3), "fewer blocks": config(num_hidden_layers=1),
        "4,096 blocks": config(num_hidden_layers=4096),
        "layer types": config(model_type="qwen3", layer_types=["x"] * 2),
        "layer types of numbers": config(model_type="qwen3", layer_types=[1, 2]),
        "a million layer types": config(model_type="qwen3", layer_types=["full_attention"] * 10**6),
        "rope is a text": config(rope_scaling="linear"), "rope is a list": config(rope_scaling=[1]),
        "rope of a kind": config(rope_scaling={"full_attention": 3}),
        "low above high": config(
            rope_scaling={**seeds.CONFIG["rope_scaling"], "low_freq_factor": 5.0}
        ),
    }  # fmt: skip
    for name, value in WRONG.items():
        for key in ("model_type", *seeds.CONFIG, "sliding_window", "quantization_config"):
            cases[f"{key} is {name}"] = Case(config(**{key: value}), None)
        for key in seeds.CONFIG["rope_scaling"]:
            changed = {**seeds.CONFIG["rope_scaling"], key: value}
            cases[f"rope {key} is {name}"] = Case(config(rope_scaling=changed), None)
        for family in ("gemma3_text", "qwen2", "qwen3", "mistral"):
            for key in ("num_hidden_layers", "sliding_window", "layer_types", "max_window_layers",
                        "query_pre_attn_scalar", "sliding_window_pattern",
                        "rope_parameters"):  # fmt: skip
                changes = {"model_type": family, "use_sliding_window": True, key: value}
                cases[f"{family} {key} is {name}"] = Case(config(**changes), None)
    return cases


def index(weight_map):
    return json.dumps({"metadata": {}, "weight_map": weight_map})


def indexes():
    """model.safetensors.index.json; two valid files stand beside it, and one in the parent."""
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    cases = {
        "a list": "[]", "a list of names": json.dumps({"weight_map": [first, second]}),
        "empty": index({}), "none": "{}", "deep": deep(100_000), "number": index({"a": 1}),
        "a file that lacks": index({"a": "model-00003-of-00003.safetensors"}),
        "only one of two": index({"a": first}),
        "no safetensors": index({"a": "config.json"}),
        "a million entries": index(dict.fromkeys(map(str, range(10**6)), first)),
        "a long name": index({"a": "x" * 100_000 + ".safetensors"}),
        "names of no weights": Case(index({"a": first, "b": first, "c": second}), False),
    }  # fmt: skip
    for name in (
        "../x.safetensors", "/etc/x.safetensors", "./../x.safetensors", "a/../../x.safetensors",
        "sub/x.safetensors", "..", ".", "", "x\0.safetensors", "..\\x.safetensors",
        "\ud800.safetensors",
        "~/x.safetensors", "file:///x.safetensors", "C:\\x.safetensors", "x.bin", ".safetensors\n",
    ):  # fmt: skip
        cases[f"{name[:30]!r}"] = index({"a": first, "b": second, "c": name})
    return cases


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape=(1,), begin=0, end=2, dtype="F16"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def weights():
    """model.safetensors beside a valid config.json."""
    nothing = tensor((0,), end=0)
    described = json.dumps(tensor()).encode()
    cases = {
        "empty": b"", "seven bytes": b"1234567", "no header": struct.pack("<Q", 0),
        "an empty header": safetensors({}), "no JSON": safetensors(b"{"),
        "deep": safetensors(deep(100_000).encode()), "a list": safetensors([]),
        "overlap": safetensors({"a": tensor(), "b": tensor()}, b"12"),
        "beyond the end": safetensors({"a": tensor(end=10**12, shape=(5 * 10**11,))}, b"12"),
        "a gap": safetensors({"a": tensor(begin=2, end=4)}, b"1234"),
        "backwards": safetensors({"a": tensor(begin=2, end=0)}, b"12"),
        "overflow": safetensors({"a": tensor(shape=(2**32, 2**32, 2**32))}, b"12"),
        "negative": safetensors({"a": tensor(shape=(-1,))}, b"12"),
        "fraction": safetensors({"a": tensor(shape=(1.5,))}, b"12"),
        "too long a shape": safetensors({"a": tensor(shape=(1,) * 100_000)}, b"12"),
        "zero": safetensors({"a": tensor(shape=(0,), end=0)}),
        "100,000 of nothing": safetensors(dict.fromkeys(map(str, range(10**5)), nothing)),
        "more data": safetensors({"a": tensor()}, b"123456"),
        "twice a name": safetensors(b'{"a":%b,"a":%b}' % (described, described), b"12"),
        "a name of 1 MB": safetensors({"a" * 10**6: tensor()}, b"12"),
        "a surrogate": safetensors(b'{"\\ud800":%b}' % described, b"12"),
        "metadata is a list": safetensors({"__metadata__": [1]}),
    }  # fmt: skip
    for length in (1, 2**20, 10**8, 10**9, 2**31, 2**32, 2**63, 2**64 - 1):
        cases[f"a header of {length} bytes"] = safetensors({}, length=length)
    for dtype in ("F8", "F8_E4M3", "F4", "BOOL", "I64", "U8", "C64", "F99", "", 7, None):
        cases[f"dtype {dtype!r}"] = safetensors({"a": tensor(dtype=dtype)}, b"12")
    names = {name: shape for name, (_, shape) in seeds.shapes().items()}
    for dtype, size in (("F8_E4M3", 1), ("BOOL", 1), ("I64", 8), ("U16", 2), ("F8_E5M2", 1)):
        at, header = 0, {}
        for name, shape in names.items():
            count = int(np.prod(shape)) * size
            header[name] = tensor(shape, at, at + count, dtype)
            at += count
        cases[f"weights of {dtype}"] = safetensors(header, b"\0" * at)
    return cases


# GGUF, by hand.
def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def entry(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def place(name="a", shape=(4,), kind=0, offset=0, dimensions=None):
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def gguf_file(entries=(), tensors=(), data=b"", keys=None, places=None, version=3):
    head = struct.pack(
        "<IQQ",
        version,
        len(tensors) if places is None else places,
        len(entries) if keys is None else keys,
    )
    whole = b"GGUF" + head + b"".join(entries) + b"".join(tensors)
    return whole + b"\0" * (-len(whole) % 32) + data


def gguf_files():
    """model.gguf. Those that are refused for a weight or key that lacks got through the header."""
    number = lambda value: struct.pack("<I", value)
    array = lambda kind, count, rest=b"": struct.pack("<IQ", kind, count) + rest
    nested = array(9, 1) * 5000 + array(4, 1, number(1))
    data = b"\0" * 64
    cases = {
        "empty": b"", "the mark": b"GGUF", "other": b"FUGG" + b"\0" * 99,
        "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "nothing": gguf_file(),
        "overlap": gguf_file((), [place("a"), place("b")], data),
        "overlap by a part": gguf_file((), [place("a", (16,)), place("b", offset=32)], data),
        "out of the file": gguf_file((), [place(offset=2**40)], data),
        "offset at the end of numbers": gguf_file((), [place(offset=2**64 - 32)], data),
        "too large": gguf_file((), [place(shape=(2**40,))], data),
        "overflow": gguf_file((), [place(shape=(2**62, 2**62, 4))], data),
        "no dimension": gguf_file((), [place(shape=())], data),
        "2**31 dimensions": gguf_file((), [place(dimensions=2**31)], data),
        "a zero": gguf_file((), [place(shape=(4, 0))], data),
        "half a block": gguf_file((), [place(shape=(7,), kind=2)], data),
        "twice a tensor": gguf_file((), [place(), place(offset=32)], data),
        "twice a key": gguf_file([entry("a", 4, number(1))] * 2),
        "arrays in arrays": gguf_file([entry("a", 9, nested)]),
        "alignment 0": gguf_file([entry("general.alignment", 4, number(0))]),
        "alignment 3": gguf_file([entry("general.alignment", 4, number(3))]),
        "alignment 2**31": gguf_file([entry("general.alignment", 4, number(2**31))], [place()]),
        "alignment is a text": gguf_file([entry("general.alignment", 8, text("32"))]),
        "architecture is a list": gguf_file(
            [entry("general.architecture", 9, array(4, 1, number(1)))]
        ),
        "architecture is a number": gguf_file([entry("general.architecture", 4, number(1))]),
        "a key that is no UTF-8": gguf_file([entry(b"\xff", 4, number(1))]),
        "a text that is no UTF-8": gguf_file([entry("a", 8, text(b"\xff"))]),
        "a million numbers": gguf_file([entry("a", 9, array(0, 10**6, b"\0" * 10**6))]),
        "9 million numbers": lambda path: path.write_bytes(
            gguf_file([entry("a", 9, array(0, 9 * 10**6, b"\0" * 9 * 10**6))])
        ),
        "100,000 keys": gguf_file([entry(str(i), 4, number(1)) for i in range(10**5)]),
    }  # fmt: skip
    for count in (2**20, 2**31, 2**60, 2**63, 2**64 - 1):
        cases[f"{count} keys"] = gguf_file(keys=count)
        cases[f"{count} tensors"] = gguf_file(places=count)
        cases[f"a text of {count}"] = gguf_file([text("a") + struct.pack("<IQ", 8, count)])
        cases[f"a name of {count}"] = gguf_file([struct.pack("<Q", count)])
        for kind in (0, 4, 7, 8, 9, 12):
            name = f"an array of {count} of type {kind}"
            cases[name] = gguf_file([entry("a", 9, array(kind, count))])
    for kind in (13, 99, 2**31, 2**32 - 1):
        cases[f"value of type {kind}"] = gguf_file([entry("a", kind, number(1))])
        cases[f"tensor of type {kind}"] = gguf_file((), [place(kind=kind)], data)
    for version in (0, 1, 4, 2**31):
        cases[f"version {version}"] = gguf_file(version=version)
    return cases


def changed_gguf(good):
    """A valid file cut everywhere, and with other values for its keys."""
    for part in range(40):
        yield f"{part} of 40 parts", good[: len(good) * part // 40]
    for key in (b"llama.block_count", b"llama.attention.head_count", b"llama.context_length",
                b"llama.attention.key_length", b"llama.embedding_length",
                b"tokenizer.ggml.eos_token_id"):  # fmt: skip
        at = good.index(key) + len(key)
        for value in (0, 270, 10**9, 2**32 - 1):
            changed = good[: at + 4] + struct.pack("<I", value) + good[at + 8 :]
            yield f"{key.decode()} is {value}", changed
        for kind in (5, 6, 7, 8, 9):
            yield f"{key.decode()} of type {kind}", good[:at] + bytes([kind]) + good[at + 1 :]


def a_socket(path):
    """The name of a socket may be short only."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


# What stands where a file is expected.
NO_FILES = {
    "a FIFO": os.mkfifo,
    "a link to a FIFO": lambda path: (
        os.mkfifo(path.with_name("fifo")), path.symlink_to("fifo")
    ),
    "a directory": lambda path: path.mkdir(),
    "a loop": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a socket": a_socket,
}  # fmt: skip
CORPUS = {
    "jsonl": text_lines, "json": arrays, "csv": csv_tables, "parquet": tables, "arrow": arrow_files,
    "config": configs, "index": indexes,
    "safetensors": weights, "gguf": gguf_files,
}  # fmt: skip
