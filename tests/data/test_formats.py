"""Files of every format, compressed or not, and directories of them."""

import gzip
import json
import os
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_jax.data import compressed, sources
from distill_jax.data.directories import files_of
from distill_jax.data.formats import FORMATS, TABLES
from distill_jax.data.json_rows import read_json_rows
from distill_jax.data.rows import How
from distill_jax.data.shapes import parse_fields
from distill_jax.types import UserError
from distill_jax.untrusted import MOST_JSON

RECORDS = [
    {"question": "1 + 1?", "answer": 'a "quoted", é\nline'},
    {"question": "\u2028 and \x85", "answer": "b [ ] { } \\ ;"},
    {"question": "x" * 200_000, "answer": "long"},
]
PAIRS = [(record["question"], record["answer"]) for record in RECORDS]


def read_documents(source, form="", **options):
    return list(sources.read_documents(str(source), form, **options))


def zstd(data):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(data)
    return sink.getvalue().to_pybytes()


PACKINGS = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def table_text(records, delimiter):
    quoted = lambda cell: '"' + cell.replace('"', '""') + '"'
    rows = [records[0].keys(), *(record.values() for record in records)]
    return "".join(delimiter.join(map(quoted, row)) + "\r\n" for row in rows)


CONTENTS = {
    "jsonl": lines(RECORDS),
    "json": json.dumps(RECORDS, indent=2, ensure_ascii=False),
    "csv": table_text(RECORDS, ","),
    "tsv": table_text(RECORDS, "\t"),
}


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("form", CONTENTS)
def test_records_are_the_same_in_every_format(tmp_path, form, mark, packing):
    suffix = FORMATS[form][0]
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(PACKINGS[packing](mark + CONTENTS[form].encode()))
    documents = read_documents(path)
    assert [document.pair for document in documents] == PAIRS
    assert {document.label for document in documents} == {"a"}


def write_stream(path, table):
    with pa.ipc.new_stream(path, table.schema) as file:
        file.write_table(table)


def write_file(path, table):
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


@pytest.mark.parametrize("write", [write_stream, write_file])
def test_arrow_is_read_as_a_file_or_a_stream(tmp_path, write):
    table = pa.Table.from_pylist([record | {"more": [1]} for record in RECORDS])
    write(tmp_path / "a.arrow", table)
    assert [document.pair for document in read_documents(tmp_path / "a.arrow")] == PAIRS


WRITERS = [write_stream, write_file, lambda path, table: pq.write_table(table, path)]


@pytest.mark.parametrize("write", WRITERS)
def test_views_of_texts_are_read_as_texts(tmp_path, write):
    """Also within lists of objects. polars writes such columns."""
    text = pa.string_view()
    turns = [{"role": "user", "content": "a" * 50}, {"role": "assistant", "content": "b"}]
    kind = pa.list_(pa.struct([("role", text), ("content", text)]))
    form = "arrow" if write in WRITERS[:2] else "parquet"
    write(tmp_path / f"a.{form}", pa.table({"text": pa.array(["a", "b" * 50, "c"], text)}))
    write(tmp_path / f"b.{form}", pa.table({"messages": pa.array([turns], kind)}))
    assert [d.text for d in read_documents(tmp_path / f"a.{form}")] == ["a", "b" * 50, "c"]
    assert [d.messages for d in read_documents(tmp_path / f"b.{form}")] == [tuple(turns)]


def test_a_text_may_be_packed(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one"))
    (tmp_path / "b.md.zst").write_bytes(zstd(b"two"))
    (tmp_path / "c.txt").write_bytes(gzip.compress(b"three"))
    found = read_documents(tmp_path)
    assert [(d.text, d.label) for d in found] == [("one", "a"), ("two", "b"), ("three", "c")]


def test_every_format_is_tested():
    assert FORMATS.keys() == CONTENTS.keys() | {*TABLES, "text"}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (
            "a.json",
            '[{"text": "a"},\n\n{"text": }]',
            "a.json:3: not JSON (record 2: Expecting value)",
        ),
        ("a.json", '[{"text": "a"}\n{"text": "b"}]', "a.json:2: not JSON (a , or ] is missing"),
        ("a.json", '[{"text": "a"},\n', "a.json:2: not JSON (it ends before record 2)"),
        ("a.json", '[{"text": "a"}', "a.json:1: not JSON (it ends after record 1, without a ])"),
        ("a.json", '[{"text": "a"}]\nx', "a.json:2: not JSON (something follows its array)"),
        ("a.json", '[{"text": "a"}, 1]', "a.json:1: record 2 is a number, not an object"),
        ("a.json", '["a", "b"]', "a.json:1: record 1 is of type str, not an object"),
        ("a.json", '[{"text": "a"}, b]', "a.json:1: not JSON (record 2: Expecting value)"),
        ("a.json", '[{"text": "a"},\n]', "not JSON (a , follows record 1, the last): remove it"),
        ("a.csv", "messages\n[{'role': 1}]\n", "a.csv:2: its 'messages': not JSON (Expecting"),
        ("a.csv", "messages\n1\n", "a.csv:2: 'messages' is of type int, not a list of turns"),
        ("a.json", '[\n{"text": "a"},\n{"text": 1}]', "a.json:3: 'text' is of type int"),
        ("a.json", '[{"text": "\udcff"}]', "a.json:1: byte 0xff after this line is not UTF-8"),
        ("a.json", "[]", "holds no document"),
        ("a.json", "", "holds no document"),
        ("a.csv", "text\na\nb,c\n", "a.csv:3: 2 cells, and the header names 1 column: mend"),
        ("a.csv", 'text\na\n"b\nc', 'a.csv:3: a " is not closed, with which lines 3 to 4 are one'),
        (
            "a.csv",
            "text\ra\rb\r",
            "a.csv:1: in the names of columns, a carriage return that ends no",
        ),
        ("a.csv", "text\na\rb\n", "a.csv:2: a carriage return that ends no line"),
        ("a.csv", 'text\n"b\nc"d\n', "a.csv:2: lines 2 to 3: ',' expected after"),
        ("a.csv", 'text\n"b"c\n', "a.csv:2: ',' expected after '\"': mend the quotes"),
        ("a.csv", 'text\na\n""\n', "a.csv:3: its 'text' is null, or an empty cell"),
        ("a.csv", "text\n\udcff\n", "a.csv:2: byte 0 (0xff) is not UTF-8"),
        (
            "a.csv",
            "text;id\na;b\n",
            "a.csv:1: one column, named 'text;id': write the table with ','",
        ),
        ("a.csv", "text,text\na,b\n", "a.csv:1: two columns are named 'text'"),
        ("a.csv", "A dog,A cat\na,b\n", "a.csv:2: no value for 'text'"),
        ("a.csv", "text\n", "holds no document"),
        ("a.csv", "", "holds no document"),
        ("a.arrow", "ARROW1", "a.arrow: unreadable arrow ("),
        ("a.arrow", "", "a.arrow: unreadable arrow ("),
    ],
)
def test_malformed_files_are_named_in_one_line(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError) as caught:
        read_documents(tmp_path / name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packing", [".gz", ".zst"])
@pytest.mark.parametrize("form", CONTENTS)
def test_a_packed_file_that_was_cut_is_one_line(tmp_path, form, packing):
    whole = PACKINGS[packing](CONTENTS[form].encode())
    path = tmp_path / f"a{FORMATS[form][0]}{packing}"
    path.write_bytes(whole[:-3])
    with pytest.raises(UserError, match=r"its (gzip|zstd) stream is damaged or cut") as caught:
        read_documents(path, how=How(skip=True))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("form", ["json", "csv"])
def test_bad_records_of_other_formats_are_left_out(tmp_path, form):
    records = [{"text": "a", "id": "1"}] * 250
    content = {
        "json": json.dumps([*records, {"text": 1}]),
        "csv": table_text(records, ",") + 'a,b,c\n"a"b,c\na,1\n',
    }[form]
    (tmp_path / f"a.{form}").write_text(content)
    told, skip = [], How(skip=True)
    found = read_documents(tmp_path / f"a.{form}", how=skip, tell=told.append)
    assert {document.text for document in found} == {"a"}
    assert f"{ {'json': 1, 'csv': 2}[form] } left out as bad" in told[0]


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "txt"])
@pytest.mark.parametrize("name", ["utf-16", "utf-32"])
def test_text_of_other_widths_is_named_with_what_converts_it(tmp_path, form, name):
    (tmp_path / f"a.{form}").write_bytes('[{"text": "a"}]'.encode(name))
    with pytest.raises(UserError, match=f" is {name.upper()}, .* iconv -f {name.upper()} -t UTF-8"):
        read_documents(tmp_path / f"a.{form}")


def test_turns_in_a_cell_are_json(tmp_path):
    turns = [{"role": "user", "content": 'a "b",\n'}, {"role": "assistant", "content": "c"}]
    for name in ("messages", "chat"):
        records = [{name: json.dumps(turns), "text": "d"}, {name: json.dumps(turns), "text": ""}]
        (tmp_path / f"{name}.csv").write_text(table_text(records, ","))
    found = read_documents(tmp_path / "messages.csv")
    given = read_documents(tmp_path / "chat.csv", how=How(parse_fields("messages=chat")))
    assert [document.messages for document in found + given] == [tuple(turns)] * 4


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_byte_that_changed_in_a_packed_file_is_told_of_the_packing(tmp_path, form):
    """And not of the JSON, which is what is unpacked wrongly."""
    packed = bytearray(gzip.compress(CONTENTS[form].encode(), compresslevel=0))
    packed[packed.index(b"answer") - 1] ^= 1  # a quote
    (tmp_path / f"a.{form}.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"its gzip stream is damaged or cut"):
        read_documents(tmp_path / f"a.{form}.gz")


@pytest.mark.parametrize("form", ["jsonl", "json", "csv"])
def test_a_file_that_unfolds_to_too_much_is_told_of_the_packing(tmp_path, form, monkeypatch):
    """And not of a line or a record of which nobody knows."""
    monkeypatch.setattr(compressed, "BYTES", 2 * MOST_JSON)
    monkeypatch.setattr(compressed, "BYTES_PER_BYTE", 0)
    start = {"jsonl": b'{"text": "', "json": b'[{"text": "', "csv": b'text\n"'}[form]
    (tmp_path / f"a.{form}.gz").write_bytes(gzip.compress(start + b"a" * 2 * MOST_JSON, 1))
    with pytest.raises(UserError, match=r"unfolds to more than"):
        read_documents(tmp_path / f"a.{form}.gz")


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        (range(1000), r"a.csv:302: a .* is not closed, with which lines 302 to 1302 are one"),
        ([*range(20), 'x"y'], r"22 of 322 records are bad, .*a.csv:302: lines 302 to 323: "),
    ],
)
def test_a_quote_does_not_hide_what_follows_it(tmp_path, rest, says):
    """Neither one that is never closed, nor one that is closed much later."""
    rows = [*(f"{i},good" for i in range(300)), '1,"not closed', *(f"{i},more" for i in rest)]
    (tmp_path / "a.csv").write_text("\n".join(["x,text", *rows]) + "\n")
    with pytest.raises(UserError, match=says):
        read_documents(tmp_path / "a.csv", how=How(skip=True))


def test_of_records_of_many_lines_a_bad_one_counts_as_one(tmp_path):
    rows = ['1,"a\nb\nc"'] * 150 + ['1,"a\nb\nc"d']
    (tmp_path / "a.csv").write_text("\n".join(["x,text", *rows]) + "\n")
    told = []
    assert len(read_documents(tmp_path / "a.csv", how=How(skip=True), tell=told.append)) == 150
    assert "; 1 left out as bad: " in told[0]


def test_an_array_is_read_with_the_memory_of_a_record(tmp_path):
    """Also where its lines are long, and its records longer than what is read at a time."""
    record = {"text": 'a [ \\ " ] b' * 20_000}
    with open(tmp_path / "a.json", "w") as file:
        file.write("[" + ",".join([json.dumps(record)] * 100) + "]")
    tracemalloc.start()
    assert sum(row.record == record for row in read_json_rows(tmp_path / "a.json")) == 100
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 12 * len(record["text"]) < (tmp_path / "a.json").stat().st_size / 4


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "a.json").write_text('[{"text": "a"}]')
    (tmp_path / "sub" / "c.csv.gz").write_bytes(gzip.compress(b"text\nc\n"))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "load.py").write_text("code")
    (tmp_path / "dataset_infos.json").write_text('{"a": 1}')
    (tmp_path / "card.json").write_text('{\n"a": 1}')
    (tmp_path / ".git" / "x.jsonl").write_text("x")
    return tmp_path


def test_a_directory_is_all_of_its_records_and_what_is_left_out_is_named(directory):
    told = []
    found = read_documents(directory, tell=told.append)
    assert [document.text for document in found] == ["a", "b", "c"]
    assert told[0].endswith(
        "3 files, 3 records read as text: text; files not read: README.md, card.json, load.py"
    )
    (directory / "b.jsonl").rename(directory / "sub" / "b.jsonl")
    assert [document.text for document in read_documents(directory / "s*")] == ["b", "c"]


def test_what_is_no_file_of_a_directory_is_named(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.jsonl").write_text('{"text": "a"}')
    os.mkfifo(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to("gone")
    (tmp_path / "d").symlink_to("more")
    told = []
    assert [document.text for document in read_documents(tmp_path, tell=told.append)] == ["a"]
    assert told[0].endswith("; files not read: b.jsonl, c.jsonl, d")


def test_a_directory_of_texts_is_a_text_per_file(tmp_path):
    for name in ("b.txt", "a.md", "c.py"):
        (tmp_path / name).write_text(name)
    told = []
    assert [d.text for d in read_documents(tmp_path, tell=told.append)] == ["a.md", "b.txt"]
    assert told[0].endswith("files not read: c.py")


def saved(directory, texts, shards):
    """As `datasets` writes a data set: shards in its order, which is not that of their names."""
    directory.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        write_stream(directory / name, pa.table({"text": texts[i::shards]}))
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (directory / "state.json").write_text(json.dumps(state))
    (directory / "dataset_info.json").write_text("{\n}")


def test_what_datasets_saved_is_read(tmp_path):
    saved(tmp_path / "one", ["a", "b", "c"], 2)
    told = []
    found = read_documents(tmp_path / "one", tell=told.append)
    assert [document.text for document in found] == ["a", "c", "b"]
    assert "not read" not in told[0]
    for name in ("test", "train"):
        saved(tmp_path / "dict" / name, [name], 1)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    assert [document.text for document in read_documents(tmp_path / "dict")] == ["train"]
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["test", "valid"]}')
    with pytest.raises(UserError, match=r"has the splits test, valid: give the directory of one"):
        files_of(str(tmp_path / "dict"))


@pytest.mark.parametrize("name", ["../x.arrow", "/etc/x.arrow", "..", "", 1, None])
def test_the_shards_of_a_saved_data_set_are_beside_it(tmp_path, name):
    saved(tmp_path / "one", ["a"], 1)
    (tmp_path / "one" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(UserError, match=r"state.json names the file"):
        files_of(str(tmp_path / "one"))


def test_a_shard_that_is_gone_is_one_line(tmp_path):
    saved(tmp_path / "one", ["a"], 1)
    next((tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(UserError, match=r"data-00000-of-00001.arrow cannot be read"):
        files_of(str(tmp_path / "one"))


def test_names_of_columns_that_are_not_read_are_told(tmp_path):
    """Of the columns of tables, only those that make a record are decoded."""
    table = pa.table({"text": ["a"], "instruction": ["b"], "output": ["c"]})
    pq.write_table(table, tmp_path / "a.parquet")
    told = []
    read_documents(tmp_path / "a.parquet", tell=told.append)
    assert told[0].endswith("1 record read as text: text (not read: instruction, output)")


def test_a_record_over_many_lines_of_a_table_is_bounded(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"' + "a\n" * (MOST_JSON // 2))
    with pytest.raises(UserError, match=r"a.csv:2: .* look for a \" that is not closed"):
        read_documents(tmp_path / "a.csv")
