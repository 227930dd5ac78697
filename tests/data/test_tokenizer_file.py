"""A tokenizer.json that somebody else wrote ends in one line where it cannot be used."""

import json
import time

import pytest

from distill_jax.data.tokenizer import load_tokenizer, save_tokenizer
from distill_jax.types import UserError
from tests import cli
from tests.data.conftest import small_tokenizer


def split(pattern):
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False
    }  # fmt: skip


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def added(number):
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": number, "content": "<x>"} | dict.fromkeys(flags, False)


def template(token):
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    pieces = [{"SpecialToken": {"id": "<n>", "type_id": 0}}, sequence]
    return {
        "type": "TemplateProcessing", "single": pieces, "pair": [sequence, sequence],
        "special_tokens": {"<n>": {"id": "<n>", "ids": [token], "tokens": ["<n>"]}},
    }  # fmt: skip


# By what is wrong: what changes a good file, and a part of the line.
CHANGED = {
    "id of 2**31": (lambda j: j["model"]["vocab"].update(zzz=2**31), "2147483648"),
    "id of 2**40": (lambda j: j["model"]["vocab"].update(zzz=2**40), "beyond"),
    "id of 10**9": (lambda j: j["model"]["vocab"].update(zzz=10**9), "1000000000, beyond"),
    "id below 0": (lambda j: j["model"]["vocab"].update(zzz=-1), "the size -1"),
    "id twice": (lambda j: j["model"]["vocab"].update(zzz=5), "the same id"),
    "added id": (lambda j: j["added_tokens"].append(added(10**9)), "1000000000, beyond"),
    "token not its own": (lambda j: j.update(post_processor=template(10**9)), "does not have"),
    "dropout": (lambda j: j["model"].update(dropout=0.1), "dropout is 0.1"),
    "backtracking": (lambda j: j.update(pre_tokenizer=split("(a+)+$")), "retry-limit"),
    "backtracking normalizer": (
        lambda j: j.update(normalizer=replace("a", "b") | {"pattern": {"Regex": "( *)*$x"}}),
        "retry-limit|unreadable",
    ),
    "bad expression": (lambda j: j.update(pre_tokenizer=split("((")), "unreadable"),
    "growth": (
        lambda j: j.update(
            normalizer={"type": "Sequence", "normalizers": [replace("a", "a" * 10)] * 12}
        ),
        r"1e\+12 times as long",
    ),
    "long prefix": (
        lambda j: j.update(normalizer={"type": "Prepend", "prepend": "x" * 10**5}),
        "a prepend of the length 100,000",
    ),
    "panic of a normalizer": (lambda j: j.update(normalizer=replace("", "b")), "out of bounds"),
    "panic of a table": (
        lambda j: j.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "Precompiled",
    ),
    "panic of a length": (
        lambda j: j.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
        "non-zero",
    ),
    "no unknown token": (
        lambda j: j.update(
            model={"type": "WordLevel", "unk_token": "?", "vocab": {"<|im_end|>": 0}}
        ),
        "Missing",
    ),
    "no token but one that begins each text": (
        lambda j: j.update(
            model=j["model"] | {"vocab": {}, "merges": []},
            added_tokens=[added(0)],
            post_processor=template(0),
        ),
        "no token of",
    ),
    "no token": (lambda j: j["model"].update(vocab={"<|im_end|>": 0}, merges=[]), "no token of"),
}
TEXTS = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "deep": lambda text: '{"a":' + "[" * 10**5,
    "long": lambda text: " " * 50 * 2**20,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    directory = tmp_path_factory.mktemp("good")
    save_tokenizer(small_tokenizer("smollm"), directory)
    return directory


def refused(directory, capfd):
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_tokenizer(directory)
    message = str(caught.value)
    assert message.startswith(f"{directory}")
    assert "\n" not in message
    assert len(message) < 1000
    assert time.monotonic() - began < 30
    assert capfd.readouterr() == ("", "")
    return message


@pytest.mark.parametrize("name", CHANGED)
def test_a_file_beyond_bounds_is_one_line(good, tmp_path, name, capfd):
    change, says = CHANGED[name]
    definition = json.loads((good / "tokenizer.json").read_text())
    assert change(definition) is None
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "tokenizer_config.json").write_text((good / "tokenizer_config.json").read_text())
    message = refused(tmp_path, capfd)
    assert any(part in message for part in says.replace("\\", "").split("|"))


@pytest.mark.parametrize("name", TEXTS)
def test_a_damaged_file_is_one_line(good, tmp_path, name, capfd):
    (tmp_path / "tokenizer.json").write_text(TEXTS[name]((good / "tokenizer.json").read_text()))
    assert "download it again" in refused(tmp_path, capfd)


@pytest.mark.parametrize(
    "config",
    [{"chat_template": 5}, {"chat_template": [5]}, {"eos_token": [1]}, {"eos_token": 5}, [1]],
)
def test_settings_of_wrong_types_are_one_line(good, tmp_path, config):
    (tmp_path / "tokenizer.json").write_text((good / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError):
        load_tokenizer(tmp_path)


def test_a_panic_in_the_middle_of_a_text_ends_with_2(tmp_path):
    """An expression that no probe meets: the library panics when the run encodes its text."""
    model = cli.write_model(tmp_path / "model")
    definition = json.loads((model / "tokenizer.json").read_text())
    definition["pre_tokenizer"] = split("(q+)+$")
    (model / "tokenizer.json").write_text(json.dumps(definition))
    done = cli.run(
        "--config.job=generate", f"--config.student.path={model}",
        f"--config.generate.prompts={'q' * 60}!", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "the tokenizer cannot read this text" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_prompt_of_tokens_that_the_model_lacks_is_one_line(tmp_path):
    """JAX takes the last row of an embedding for every id beyond it."""
    model = cli.write_model(tmp_path / "model")
    definition = json.loads((model / "tokenizer.json").read_text())
    definition["added_tokens"].append(added(len(definition["model"]["vocab"]) + 40))
    (model / "tokenizer.json").write_text(json.dumps(definition))
    done = cli.run(
        "--config.job=generate", f"--config.student.path={model}",
        "--config.generate.prompts=the <x>", f"--workdir={tmp_path / 'run'}",
    )  # fmt: skip
    assert done.returncode == 2
    assert "outside the model's vocabulary" in done.stderr
