"""What a source says of padding, sampling, stopping and chats, its export says to transformers."""

import json
import shutil

import gguf
import pytest
import transformers

from distill_jax.data.gguf_vocabulary import splits_as
from distill_jax.data.tokenizer import load_tokenizer
from distill_jax.models.families import FAMILIES
from tests import cli
from tests.data.conftest import small_tokenizer
from tests.data.test_gguf_tokenizer import write_gguf

SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "min_p": 0.05}
SOURCES = {
    "today": {
        "generation_config.json": {
            **SAMPLING, "eos_token_id": [0, 3], "bos_token_id": 2, "pad_token_id": 0,
            "repetition_penalty": 1.1, "max_length": 48, "cache_implementation": "hybrid",
            "transformers_version": "4.40.0",
        },
        "tokenizer_config.json": {
            "tokenizer_class": "TokenizersBackend", "model_max_length": 40,
            "padding_side": "left", "truncation_side": "left", "eos_token": "<end>",
            "bos_token": "<bos>", "pad_token": "<end>", "clean_up_tokenization_spaces": True,
            "extra_special_tokens": ["<call>"], "image_token": "<turn>", "unheard": 7,
        },
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tools.jinja": "{{ tools }}\u2028",
    },
    "older": {
        "config.json": {"bos_token_id": 2, "eos_token_id": 3},
        "generation_config.json": {**SAMPLING, "pad_token_id": 0, "_from_model_config": True},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64,
            "padding_side": "left", "add_bos_token": False,
            "chat_template": [
                {"name": "default", "template": "x"}, {"name": "rag", "template": "y"},
            ],
        },
        "special_tokens_map.json": {
            "eos_token": {"content": "<turn>", "lstrip": False, "rstrip": False,
                          "normalized": False, "single_word": False},
            "bos_token": "<bos>", "pad_token": "<end>",
            "additional_special_tokens": ["<call>", "<end>"],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=SOURCES)
def source(request, tmp_path_factory):
    """A model directory whose files say all that they can say."""
    path = tmp_path_factory.mktemp(request.param) / "source"
    cli.write_model(path, extra=("<call>", "<bos>", "<turn>"))
    for name, content in SOURCES[request.param].items():
        file = path / name
        file.parent.mkdir(exist_ok=True)
        if name == "config.json":
            content = json.loads(file.read_text()) | content
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def export(workdir, path):
    done = cli.run(f"--workdir={workdir}", "--config.job=export", f"--config.student.path={path}")
    assert done.returncode == 0, done.stderr
    return workdir / "student"


def tokenizer_of(path):
    """Every attribute that transformers reads, but for where from and by which class."""
    read = transformers.AutoTokenizer.from_pretrained(path)
    attributes = dict(vars(read))
    attributes["_tokenizer"] = attributes["_tokenizer"].to_str()
    attributes["added_tokens_decoder"] = {k: repr(v) for k, v in read.added_tokens_decoder.items()}
    attributes["ids"] = read(["the quick", "a"], padding=True)["input_ids"]
    places = ("name_or_path", "tokenizer_file", "_processor_class", "files_loaded")
    # What has no attribute of its own; the others may stand in another file or be the default.
    attributes["init_kwargs"] = {
        k: str(v) for k, v in attributes["init_kwargs"].items() if k not in {*places, *attributes}
    }
    return {k: v for k, v in attributes.items() if k not in places}


def generation_of(path):
    found = transformers.GenerationConfig.from_pretrained(path).to_dict()
    return {k: v for k, v in found.items() if k != "transformers_version"}


def contents(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


def test_every_attribute_is_the_sources(source, tmp_path):
    exported = export(tmp_path / "w", source)
    assert tokenizer_of(exported) == tokenizer_of(source)
    theirs, ours = generation_of(source), generation_of(exported)
    from_config = transformers.AutoConfig.from_pretrained(source)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        said = theirs.pop(name) if theirs[name] is not None else getattr(from_config, name)
        theirs.pop(name, None)
        assert ours.pop(name) == said
    assert ours == theirs
    loaded = transformers.AutoModelForCausalLM.from_pretrained(exported)
    assert loaded.generation_config.temperature == 0.6


def test_programs_and_versions_are_not_the_students(source, tmp_path):
    exported = export(tmp_path / "w", source)
    said = "".join(f.read_text() for f in exported.glob("*_config.json"))
    assert "transformers_version" not in said
    assert "TokenizersBackend" not in said


def test_an_export_exported_again_is_the_same_bytes(source, tmp_path):
    first = export(tmp_path / "first", source)
    assert contents(first) == contents(export(tmp_path / "again", source))
    assert contents(first) == contents(export(tmp_path / "second", first))


def test_what_another_source_said_is_gone_after_an_export_over_it(source, world, tmp_path):
    """Exports of a checkpoint go to the place where the run's student is."""
    shutil.copytree(source, tmp_path / "w" / "student")
    plain = export(tmp_path / "plain", world / "student")
    assert contents(export(tmp_path / "w", world / "student")) == contents(plain)


def test_a_run_and_its_export_say_the_same_as_the_teacher(source, flags, tmp_path):
    workdir = tmp_path / "run"
    mine = (f"--config.teacher.path={source}", "--config.student.init=copy", *flags[2:])
    assert cli.run(f"--workdir={workdir}", *mine).returncode == 0
    assert tokenizer_of(workdir / "student") == tokenizer_of(source)
    after_training = contents(workdir / "student")
    assert json.loads(after_training["generation_config.json"])["top_p"] == 0.9
    shutil.rmtree(workdir / "student")
    assert cli.run(f"--workdir={workdir}", *mine, "--config.job=export").returncode == 0
    assert contents(workdir / "student") == after_training


@pytest.mark.parametrize(("said", "positions"), [(None, 64), (10**30, 64), (40, 40), (512, 64)])
def test_lengths_end_at_the_models_positions(said, positions, tmp_path):
    path = cli.write_model(tmp_path / "source")
    config = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": said}))
    (path / "generation_config.json").write_text(json.dumps({"max_length": said}))
    exported = export(tmp_path / "w", path)
    assert transformers.AutoTokenizer.from_pretrained(exported).model_max_length == positions
    if said:
        assert generation_of(exported)["max_length"] == positions


@pytest.mark.parametrize(
    ("name", "kind", "side"),
    [
        ("gemma", "GemmaTokenizerFast", "left"),
        ("gemma", "PreTrainedTokenizerFast", None),
        ("llama-bpe", "LlamaTokenizer", None),  # byte-level: read without that class
    ],
)
def test_a_class_that_pads_left_is_not_needed_to_pad_left(name, kind, side, tmp_path):
    small_tokenizer(name).backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": kind, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert load_tokenizer(tmp_path).settings.tokenizer.get("padding_side") == side
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.padding_side == (side or "right")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["smollm", "qwen2"])
def test_transformers_splits_texts_as_tokenizer_json_says_or_it_is_known(name, family, tmp_path):
    small, text = small_tokenizer(name), "e\u0301 cafe\u0301 don't 12345  x"
    small.backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    only = FAMILIES[family].only_tokenizer
    known = not only or splits_as(small, only)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = small.backend.encode(text, add_special_tokens=False).ids
    assert (theirs(text, add_special_tokens=False)["input_ids"] == ours) == known


def test_metadata_of_a_gguf_file_become_settings(tmp_path):
    def more(writer):
        writer.add_eot_token_id(0)
        writer.add_float32("general.sampling.temp", 0.6)
        writer.add_int32("general.sampling.top_k", 40)
        writer.add_chat_template([{"name": "tools", "template": "{{ tools }}"}])

    small = small_tokenizer("smollm")
    path = write_gguf(tmp_path / "a.gguf", small, "smollm", more=more)
    settings = load_tokenizer(path).settings
    assert settings.generation == {
        "bos_token_id": small.bos_id, "eos_token_id": [small.eos_id, 0],
        "pad_token_id": small.pad_id, "temperature": 0.6, "top_k": 40, "do_sample": True,
    }  # fmt: skip
    assert settings.templates == {"tools": "{{ tools }}"}
    plain = load_tokenizer(write_gguf(tmp_path / "b.gguf", small, "smollm")).settings
    assert plain.generation["eos_token_id"] == small.eos_id
    assert "do_sample" not in plain.generation
    assert gguf.Keys.General.SAMPLING_TEMP == "general.sampling.temp"
