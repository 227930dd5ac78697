"""A fixed corpus of hostile files: each is refused in one line, soon, and with little memory."""

import os
import time
from pathlib import Path

import pytest

from distill_jax.data.directories import files_of
from distill_jax.data.documents import fingerprint
from distill_jax.data.files import read_all
from distill_jax.data.gguf_tokenizer import read_gguf_tokenizer
from distill_jax.data.prompts import read_prompts
from distill_jax.data.tokenizer import make_tokenizer
from distill_jax.data.tokenizer_settings import further_templates, gguf_settings
from distill_jax.data.tool_calls import for_template
from distill_jax.models.load import load_checkpoint
from distill_jax.types import UserError
from experiments.fuzz import seeds
from tests import cli, hostile
from tests.tokens import tokenize_documents

SECONDS, BYTES = 10, 10**9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = seeds.write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf")
    return make_tokenizer(**read_gguf_tokenizer(path)._asdict())


def read_texts(path, tokenizer):
    documents = list(read_all(files_of(str(path))))
    fingerprint(documents)
    for document in documents:
        for_template(document.messages or ())
    plain = [document for document in documents if document.messages is None]
    if not documents:
        raise UserError("data source holds no document")
    if plain:
        tokenize_documents(plain, tokenizer)
    return documents


def read_gguf_file(path):
    load_checkpoint(str(path), dtype=None).whole()
    return make_tokenizer(**read_gguf_tokenizer(path)._asdict())


def places(kind, directory):
    """Where a hostile file of a kind goes, with valid files around it; and what reads it."""
    model = lambda: load_checkpoint(str(directory / "model"), dtype=None).whole()
    if kind == "config":
        return seeds.write_model(directory / "model") / "config.json", lambda path, _: model()
    if kind == "safetensors":
        return seeds.write_model(directory / "model") / seeds.SINGLE, lambda path, _: model()
    if kind == "index":
        seeds.write_model(directory).joinpath(seeds.SINGLE).rename(directory / "x.safetensors")
        return seeds.write_model(
            directory / "model", shards=2
        ) / seeds.INDEX, lambda path, _: model()
    if kind == "gguf":
        return directory / "model.gguf", lambda path, _: read_gguf_file(path)
    if kind == "prompts":
        return directory / "data.jsonl", lambda path, _: read_prompts([f"@{path}"])
    return directory / f"data.{kind}", read_texts


def write(path, content):
    path.unlink(missing_ok=True)
    if callable(content):
        content(path)
    else:
        content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
        path.write_bytes(content)


def memory(name):
    """Of this process, in bytes: VmRSS now, or VmHWM, the most since the last look."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def outcome(read, path, tokenizer, name):
    """None where the file is read, else the line. Nothing else may come, and neither late."""
    Path("/proc/self/clear_refs").write_text("5")
    before, began, line = memory("VmRSS"), time.monotonic(), None
    try:
        read(path, tokenizer)
    except UserError as error:
        line = str(error)
        assert "\n" not in line, (name, line)
        assert len(line) < 2000, (name, line[:2000])
        assert str(path.parent) in line or "source" in line, (name, line)
    except Exception as error:
        raise AssertionError(f"{name}: {type(error).__name__}") from error
    size = path.stat().st_size if path.is_file() else 0
    assert time.monotonic() - began < SECONDS, name
    assert memory("VmHWM") - before < BYTES + size, name
    return line


@pytest.mark.parametrize("kind", hostile.CORPUS)
def test_hostile_files_are_refused_in_one_line(kind, tmp_path, tokenizer):
    path, read = places(kind, tmp_path)
    for name, case in hostile.CORPUS[kind]().items():
        case = case if isinstance(case, hostile.Case) else hostile.Case(case)
        write(path, case.make)
        line = outcome(read, path, tokenizer, name)
        assert case.refused in (None, line is not None), (name, line)


def test_hostile_prompts_are_read_or_refused_in_one_line(tmp_path, tokenizer):
    path, read = places("prompts", tmp_path)
    for name, case in hostile.text_lines().items():
        write(path, case.make if isinstance(case, hostile.Case) else case)
        outcome(read, path, tokenizer, name)


def test_a_changed_byte_of_a_parquet_file_never_changes_its_texts(tmp_path, tokenizer):
    path = tmp_path / "data.parquet"
    texts = [f"the fox {i}" for i in range(200)]
    ends = []
    for at, content in hostile.flips(20):
        path.write_bytes(content)
        read = []
        line = outcome(lambda p, _, read=read: read.extend(read_all([p])), path, tokenizer, str(at))
        ends.append(line)
        assert line or [document.text for document in read] == texts, at
    assert any("checksum" in line or "CRC" in line for line in ends if line)


def test_a_gguf_file_cut_or_with_other_values_is_refused_in_one_line(tmp_path, tokenizer):
    path, read = places("gguf", tmp_path)
    good = seeds.write_gguf(path).read_bytes()
    for name, content in hostile.changed_gguf(good):
        path.write_bytes(content)
        outcome(read, path, tokenizer, name)
        if "parts" in name:
            assert outcome(read, path, tokenizer, name), name


EXPECTED_FILES = (
    "config", "index", "safetensors", "gguf", "jsonl", "json", "csv", "parquet", "arrow", "prompts",
)  # fmt: skip


@pytest.mark.parametrize("kind", EXPECTED_FILES)
@pytest.mark.parametrize("what", hostile.NO_FILES)
def test_what_is_no_file_is_not_opened(kind, what, tmp_path, tokenizer):
    path, read = places(kind, tmp_path)
    write(path, hostile.NO_FILES[what])
    assert outcome(read, path, tokenizer, what)


@pytest.mark.parametrize("name", ["jsonl", "parquet", "config", "gguf", "FIFO", "prompts"])
def test_the_command_ends_with_2_and_one_line(name, tmp_path):
    seeds.write_model(tmp_path / "model")
    texts = seeds.write_texts(tmp_path / "texts")
    model = str(tmp_path / "model")
    arguments = ["--config.job=generate", "--config.generate.prompts=('a',)"]
    if name in ("jsonl", "parquet"):
        bad = texts[name]
        bad.write_bytes(b"PAR1" * 9 if name == "parquet" else b"[" * 100_000)
        arguments = ["--config.job=evaluate", f"--config.data.source={bad}"]
    elif name == "config":
        bad = tmp_path / "model" / "config.json"
        bad.write_text(hostile.config(num_hidden_layers="two"))
    elif name == "prompts":
        bad = texts["jsonl"]
        bad.write_text("[" * 100_000)
        arguments[1] = f"--config.generate.prompts=('@{bad}',)"
    else:
        bad = tmp_path / "model.gguf"
        bad.write_bytes(hostile.gguf_file(keys=2**60)) if name == "gguf" else os.mkfifo(bad)
        model = str(bad)
    result = cli.run(*arguments, f"--config.student.path={model}", f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert bad.name in result.stderr


def test_the_links_of_a_cache_are_followed(tmp_path):
    """Of Hugging Face: snapshots/REVISION has links to ../../blobs, under the names of files."""
    seeds.write_model(tmp_path / "first", shards=2)
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted((tmp_path / "first").iterdir())):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(i))
    assert load_checkpoint(str(snapshot), dtype=None).config.blocks == 2


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "..", "a/b", ""])
def test_the_name_of_a_chat_template_leads_nowhere_else(name):
    """An export makes a file of each."""
    with pytest.raises(UserError, match="a chat template has the name"):
        gguf_settings({f"tokenizer.chat_template.{name}": "a"})
    named = [{"name": name, "template": "a"}]
    with pytest.raises(UserError, match="a chat template has the name"):
        further_templates(Path("nowhere"), {"chat_template": named})
    assert further_templates(
        Path("nowhere"), {"chat_template": [{"name": "tool_use", "template": "a"}]}
    )
