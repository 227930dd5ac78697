import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill_jax.data import sources
from distill_jax.data.documents import fingerprint
from distill_jax.data.files import READERS
from distill_jax.data.formats import FORMATS, OF_SUFFIX
from distill_jax.data.sources import SOURCES
from distill_jax.types import UserError

RECORDS = [
    {"text": "one\u2028still one é"},
    {"prompt": "a", "completion": "b"},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
]


def read_documents(source, form=""):
    return list(sources.read_documents(source, form))


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")


def write_parquet(path, records):
    pq.write_table(pa.Table.from_pylist(records), path)


def write_arrow(path, records):
    table = pa.Table.from_pylist(records)
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table, max_chunksize=1)


WRITERS = {"jsonl": write_jsonl, "parquet": write_parquet, "arrow": write_arrow}
RECORD_SUFFIXES = sorted(suffix for suffix, name in OF_SUFFIX.items() if name in WRITERS)


@pytest.mark.parametrize("suffix", [*RECORD_SUFFIXES, ".JSONL"])
@pytest.mark.parametrize("record", RECORDS, ids=["text", "pair", "messages"])
def test_records_come_back_as_written(tmp_path, suffix, record):
    path = tmp_path / f"corpus{suffix}"
    WRITERS[OF_SUFFIX[suffix.lower()]](path, [record, record])
    documents = read_documents(str(path))
    assert [d.name for d in documents] == [f"{path}:1", f"{path}:2"]
    assert {d.label for d in documents} == {"corpus"}
    document = documents[0]
    got = {"text": document.text, "messages": document.messages and list(document.messages)}
    got["prompt"], got["completion"] = document.pair or (None, None)
    assert {name: value for name, value in got.items() if value is not None} == record


def test_text_files_are_one_document_each_in_the_order_of_paths(tmp_path):
    for name in ("b.TXT", "a.md", "c.rst"):
        (tmp_path / name).write_bytes(f"{name}\r\n".encode("utf-8-sig"))
    (tmp_path / "folder").mkdir()
    documents = read_documents(str(tmp_path / "*"))
    assert [(d.text, d.label) for d in documents] == [
        ("a.md\r\n", "a"),
        ("b.TXT\r\n", "b"),
        ("c.rst\r\n", "c"),
    ]


def test_a_path_with_glob_characters_is_a_path_first(tmp_path):
    path = tmp_path / "a[1].txt"
    path.write_text("x")
    assert read_documents(str(path))[0].text == "x"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n\n{"text": }\n', "a.jsonl:3: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "a"}\n', "a.jsonl:2: no 'text' among"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "a.jsonl:2: byte 10 (0xff)"),
        ("a.jsonl", b"\n", "holds no document"),
        ("a.txt", b"abc\x80", "a.txt: byte 3 (0x80)"),
        ("a.parquet", b"not parquet", "a.parquet: unreadable parquet"),
        ("a.parquet", b"", "a.parquet: unreadable parquet"),
        ("a.txt", b"", "holds no document"),
        ("a.txt", "ab".encode("utf-16"), "a.txt is UTF-16"),
        ("a.txt", b"a\0b", "a.txt: byte 1 is 0, as in binary files"),
    ],
)
def test_malformed_files_are_named_in_one_line(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_documents(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_format_has_a_reader_and_a_suffix():
    assert set(READERS) == set(FORMATS) == set(OF_SUFFIX.values())


def call(**arguments):
    return {"function": {"name": "f", "arguments": arguments}}


CONVERSATIONS = [
    {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": [call(city="b"), call(day=3)]},
            {"role": "tool", "content": "7", "tool_call_id": "1"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"name": "f", "parameters": {"city": "string"}}, {"name": "g"}],
    },
    {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}],
    },
]


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=["messages", "prompt"])
def test_what_arrow_fills_with_null_is_read_as_it_was_written(tmp_path, conversation):
    """In parquet every object has the fields of all the others."""
    write_jsonl(tmp_path / "a.jsonl", [conversation])
    [written] = read_documents(str(tmp_path / "a.jsonl"))
    for kind in ("parquet", "arrow"):
        WRITERS[kind](tmp_path / f"a.{kind}", [conversation])
        [read] = read_documents(str(tmp_path / f"a.{kind}"))
        assert read._replace(name="") == written._replace(name="")
        assert fingerprint([read]) == fingerprint([written])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.part", b' [\n{"text": "a"}]', "--config.data.format=json or rename it to .json"),
        ("a.part", b'{"text": "a"}\n{"text": "b"}\n', "--config.data.format=jsonl"),
        ("a.json", b'{\n"data": []}', "is one JSON object over many lines"),
        (
            "a.jsonl.bz2",
            b"BZh9",
            "in a way that is not read (gzip and zstd are): unpack it with bun",
        ),
        ("a.jsonl.gz", b'{"text": "a"}', "is no gzip file: rename it, or copy it again"),
        ("a.jsonl.gz", b"\x28\xb5\x2f\xfd", "is zstd by its content"),
        ("a.txt.zst", b"", "is empty"),
        (
            "a.parquet.gz",
            gzip.compress(b"PAR1", mtime=0),
            "is compressed as a whole, and parquet can only",
        ),
        ("a.bin", b"PAR1", "--config.data.format=parquet"),
        ("a.txt", b"ARROW1", "--config.data.format=arrow"),
        ("a.csv", "text".encode("utf-16"), "is UTF-16"),
        ("a.json", "[]".encode("utf-16"), "is UTF-16"),
        ("a.db", b"SQLite\0", "is a binary file"),
        ("a.py", b"import os\n", "its suffix .py is not known: texts are .txt, .md, .rst"),
        ("a.py.gz", gzip.compress(b"import os\n", mtime=0), "its suffix .py is not known"),
        ("a.log", b"[2026] x\n", "give --config.data.format=text"),
        ("a.jsonl.part", b"", "its suffix .part is not known"),
        ("a", b"abc", "its name has no suffix, which is not known"),
    ],
)
def test_a_file_of_no_known_format_is_refused_before_any_is_read(tmp_path, name, content, says):
    """Raw text of such a file would train on its syntax."""
    (tmp_path / "0.jsonl").write_bytes(b"not JSON")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_documents(str(tmp_path / "*"))
    assert str(caught.value).startswith(str(tmp_path / name))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_format_may_be_said(tmp_path):
    (tmp_path / "a.log").write_text('{"text": "b"}\n')
    assert read_documents(str(tmp_path / "a.log"), "text")[0].text == '{"text": "b"}\n'
    assert read_documents(str(tmp_path / "a.log"), "jsonl")[0].text == "b"
    assert read_documents(str(tmp_path), "jsonl")[0].text == "b"


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(UserError, match=r"a.txt cannot be read \(Permission denied\)"):
        read_documents(str(tmp_path / "a.txt"))


def test_parquet_without_a_known_column_lists_the_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", [{"name": "x", "id": 1}])
    with pytest.raises(UserError, match=r"a.parquet:1: .*\['id', 'name'\]"):
        read_documents(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("source", ["nothing/*.jsonl", "no.txt", "tfd:name"])
def test_missing_sources_are_errors(source):
    with pytest.raises(UserError, match="matches no file"):
        read_documents(source)


def test_an_empty_directory_is_one_line(tmp_path):
    (tmp_path / "a.py").write_text("a")
    with pytest.raises(UserError, match=r"has no file that is read \(.txt, .md"):
        read_documents(str(tmp_path))


@pytest.mark.parametrize("kind", sorted(SOURCES))
@pytest.mark.parametrize("rest", [":", "@", "a:b:c:d@"])
def test_malformed_addresses_are_errors(kind, rest):
    with pytest.raises(UserError, match=f"'{kind}:{rest}"):
        read_documents(f"{kind}:{rest}")


TFDS_BUILDER = """
import tensorflow_datasets as tfds

class TinyTexts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        turn = {"role": tfds.features.Text(), "content": tfds.features.Text()}
        features = {
            "text": tfds.features.Text(),
            "messages": tfds.features.Sequence(turn),
            "domain": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, n):
        turns = [{"role": "user", "content": "ü"}, {"role": "assistant", "content": "b"}]
        for i in range(n):
            yield i, {"text": f"text {i} é", "messages": turns, "domain": "d"}
"""
TFDS_PREPARE = """
import sys
from tiny_texts.tiny_texts import TinyTexts

TinyTexts(data_dir=sys.argv[1], file_format=sys.argv[2]).download_and_prepare()
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    package = folder / "code" / "tiny_texts"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tiny_texts.py").write_text(TFDS_BUILDER, "utf-8")
    subprocess.run(
        [sys.executable, "-c", TFDS_PREPARE, str(folder / "data"), "array_record"],
        env={**os.environ, "PYTHONPATH": str(folder / "code")},
        check=True,
        capture_output=True,
    )
    return folder / "data"


@pytest.mark.parametrize(("split", "n"), [("", 6), (":test", 2), (":train[:50%]", 3)])
def test_tfds_reads_array_record_without_tensorflow(tfds_folder, split, n):
    documents = read_documents(f"tfds:tiny_texts{split}@{tfds_folder}")
    assert len(documents) == n
    assert documents[1].messages == (
        {"role": "user", "content": "ü"},
        {"role": "assistant", "content": "b"},
    )
    assert documents[0].label == "d"
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"), [("tiny_texts:nosplit", "nosplit"), ("tiny_nothing", "tiny_nothing")]
)
def test_unknown_tfds_names_are_one_line(tfds_folder, name, says):
    with pytest.raises(UserError, match=says) as caught:
        read_documents(f"tfds:{name}@{tfds_folder}")
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The local cache as a download leaves it, and no network."""
    repository = tmp_path / "datasets--org--name"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    data = repository / "snapshots" / commit / "data"
    data.mkdir(parents=True)
    write_parquet(data / "train-00000-of-00001.parquet", [{"text": "train"}])
    write_jsonl(data / "test.jsonl", [{"text": "test"}])
    write_jsonl(data / "more-test.json", [{"text": "more"}])
    (data.parent / "README.md").write_text("about")
    (data.parent / "dataset_infos.json").write_text("{}")
    (data / "valid.csv").write_text("text\nvalid\n")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize(
    ("address", "form", "texts"),
    [
        ("", "", ["train"]),
        (":test", "", ["test"]),
        (":test@main", "", ["test"]),
        (":test", "jsonl", ["more", "test"]),
        (":valid", "csv", ["valid"]),
    ],
)
@pytest.mark.usefixtures("hub_cache")
def test_hub_reads_the_files_of_a_split(address, form, texts):
    assert [d.text for d in read_documents(f"hub:org/name{address}", form)] == texts


@pytest.mark.usefixtures("hub_cache")
def test_other_records_of_the_hub_are_read_where_there_are_no_tables_or_lines():
    data = next(Path(huggingface_hub.constants.HF_HUB_CACHE).glob("*/snapshots/*/data"))
    for name in ("train-00000-of-00001.parquet", "test.jsonl"):
        (data / name).unlink()
    (data / "test.json").write_text('[{"text": "a"}]')
    (data / "test.jsonl.gz").write_bytes(gzip.compress(b'{"text": "b"}', mtime=0))
    assert [d.text for d in read_documents("hub:org/name:test")] == ["more", "a", "b"]


@pytest.mark.usefixtures("hub_cache")
def test_a_hub_data_set_without_files_of_the_format_is_one_line():
    with pytest.raises(UserError, match=r"has no file with the suffix .txt"):
        read_documents("hub:org/name", "text")


@pytest.mark.parametrize(
    ("address", "says"), [("org/name:other", "no file of"), ("org/other", "org/other")]
)
@pytest.mark.usefixtures("hub_cache")
def test_missing_hub_data_is_one_line(address, says):
    with pytest.raises(UserError, match=says) as caught:
        read_documents(f"hub:{address}")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def python_docs():
    return read_documents("python_docs")


def test_python_docs_are_of_training_size(python_docs):
    sizes = [len(d.text.encode()) for d in python_docs]
    assert 1.2e6 < sum(sizes) < 3e6
    assert len(python_docs) > 200
    assert max(sizes) < 0.05 * sum(sizes)
    assert {"topics", "json.decoder", "argparse"} <= {d.label for d in python_docs}


def test_python_docs_are_the_same_in_another_process(python_docs):
    code = (
        "from distill_jax.data.sources import read_documents\n"
        "from distill_jax.data.documents import fingerprint\n"
        "print(fingerprint(read_documents('python_docs')))"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == fingerprint(python_docs)


def test_no_long_paragraph_of_python_docs_is_in_two_documents(python_docs):
    seen = {}
    for document in python_docs:
        for paragraph in document.text.split("\n\n"):
            key = " ".join(paragraph.split())
            if len(key) >= 40:
                assert seen.setdefault(key, document.name) == document.name
