"""What a model's files say besides its tokenizer and weights, so that an export repeats it."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from distill_jax.files import write_json, write_text
from distill_jax.types import TOKEN_IDS, UserError
from distill_jax.untrusted import check_file, read_json_object

TEMPLATE, MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
MOST_TEMPLATE = 2**20  # bytes; the longest that were seen have 20,000
# Files of older versions of transformers that it still reads beside tokenizer_config.json.
OLDER_FILES = ("special_tokens_map.json", "added_tokens.json")

# Not repeated: what names a program, a version or a place, and what is written anew.
_OF_THE_SOURCE = {
    "_commit_hash", "auto_map", "backend", "chat_template", "from_slow", "is_local",
    "local_files_only", "merges_file", "name_or_path", "processor_class",
    "special_tokens_map_file", "tokenizer_class", "tokenizer_file", "transformers_version",
    "vocab_file",
}  # fmt: skip
# transformers pads on the left for these classes unless tokenizer_config.json says otherwise.
_PADS_LEFT = {"LlamaTokenizer", "GemmaTokenizer"}
# Metadata of a GGUF file that stand for entries of a generation_config.json.
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_TURN_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")  # besides EOS


class Settings(NamedTuple):
    """What an exported student says as its source does.

    tokenizer   entries of tokenizer_config.json
    generation  entries of generation_config.json; token ids from config.json where it has none
    templates   further chat templates, by name
    older       OLDER_FILES that there are, by name
    """

    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]
    templates: Mapping[str, str]
    older: Mapping[str, Any]


NO_SETTINGS = Settings({}, {}, {}, {})


def read_settings(
    directory: Path, config: Mapping[str, Any], backend: tokenizers.Tokenizer
) -> Settings:
    """The settings of a Hugging Face directory, of its tokenizer_config.json and tokenizer.json.

    Raises UserError for another file that is not JSON.
    """
    padding, truncation = backend.padding, backend.truncation
    sides = {"padding_side": padding["direction"]} if padding else {}
    sides |= {"truncation_side": truncation["direction"]} if truncation else {}
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    # A tokenizer of bytes is none of these classes, whatever the config says.
    if kind in _PADS_LEFT and "ByteLevel" not in str(backend.pre_tokenizer):
        sides.setdefault("padding_side", "left")
    older = {name: read_json(directory / name) for name in OLDER_FILES}
    return Settings(
        sides | _repeated(config),
        _repeated(_token_ids(read_json(directory / "config.json")))
        | _repeated(read_json(directory / "generation_config.json")),
        further_templates(directory, config),
        {name: content for name, content in older.items() if content},
    )


def gguf_settings(fields: Mapping[str, Any]) -> Settings:
    """The settings that the metadata of a GGUF file stand for."""
    keys = ("bos_token_id", "eos_token_id", "padding_token_id")
    ids = {ours: fields.get(f"tokenizer.ggml.{k}") for ours, k in zip(TOKEN_IDS, keys, strict=True)}
    ends = [ids["eos_token_id"], *(fields[key] for key in _TURN_ENDS if key in fields)]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    # Stored as float32: back to the decimal number that was meant.
    decimal = lambda x: float(str(np.float32(x))) if isinstance(x, float) else x
    sampling = {ours: decimal(fields[key]) for key, ours in _SAMPLING.items() if key in fields}
    sampling |= {"do_sample": True} if sampling.keys() - {"repetition_penalty"} else {}
    prefix = "tokenizer.chat_template."
    templates = {k.removeprefix(prefix): v for k, v in fields.items() if k.startswith(prefix)}
    return Settings({}, _repeated(ids) | sampling, _checked(templates), {})


def gguf_metadata(settings: Settings, eos: int) -> dict[str, Any]:
    """The inverse of gguf_settings, for what a text ends with besides `eos`, and for sampling."""
    ends = settings.generation.get("eos_token_id")
    others = [end for end in (ends if isinstance(ends, list) else [ends]) if end not in (None, eos)]
    given = {key: settings.generation.get(name) for key, name in _SAMPLING.items()}
    return dict(zip(_TURN_ENDS, others, strict=False)) | {
        key: int(value) if key.endswith("top_k") else float(value)
        for key, value in given.items()
        if type(value) in (int, float)
    }


def write_settings(
    settings: Settings,
    directory: Path,
    *,
    special_tokens: Mapping[str, str],
    template: str | None,
    positions: int | None,
) -> None:
    """Writes tokenizer_config.json, the chat templates and the older files, and removes others'.

    special_tokens: said where the settings do not say them. positions: of the model, which
    model_max_length does not exceed.
    """
    said = settings.tokenizer.get("model_max_length")
    limits = [n for n in (said, positions) if isinstance(n, int | float)]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # uses tokenizer.json unchanged
        "clean_up_tokenization_spaces": False,
        **special_tokens,
        **settings.tokenizer,
        **({"model_max_length": min(limits)} if limits else {}),
    }
    write_json(directory / "tokenizer_config.json", config)
    texts = {Path(TEMPLATE): template} if template is not None else {}
    texts |= {Path(MORE_TEMPLATES, f"{k}.jinja"): v for k, v in settings.templates.items()}
    for earlier in (*OLDER_FILES, TEMPLATE):
        (directory / earlier).unlink(missing_ok=True)
    shutil.rmtree(directory / MORE_TEMPLATES, ignore_errors=True)
    for name, content in settings.older.items():
        write_json(directory / name, content)
    for name, text in texts.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_text(directory / name, text)


def chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The default chat template of a directory; a file goes before tokenizer_config.json."""
    file = template_file(directory)
    if file.name == TEMPLATE:
        return _text(file)
    return _named(config).get("default")


def template_file(directory: Path) -> Path:
    """The file that holds the default chat template of a directory, if it has one."""
    file = directory / TEMPLATE
    return file if file.is_file() else directory / "tokenizer_config.json"


def further_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The other chat templates of a directory, by name."""
    files = sorted((directory / MORE_TEMPLATES).glob("*.jinja"))
    if files or (directory / TEMPLATE).is_file():
        return {file.stem: _text(file) for file in files}
    return _checked({name: text for name, text in _named(config).items() if name != "default"})


def read_json(file: Path) -> dict[str, Any]:
    """The content of a file, empty if there is none. Raises UserError if it is not JSON."""
    return read_json_object(file, "download it again") if file.exists() else {}


def _text(file: Path) -> str:
    """A chat template. Raises UserError for what is no text of a bearable length."""
    check_file(file)
    with file.open("rb") as opened:
        data = opened.read(MOST_TEMPLATE + 1)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 ({error.reason}): download it again") from None
    if len(data) > MOST_TEMPLATE:
        raise UserError(f"{file} is longer than {MOST_TEMPLATE:,} bytes: use another chat template")
    return text


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a tokenizer_config.json, by name."""
    template = config.get("chat_template")
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        template = {str(entry.get("name")): entry.get("template") for entry in template}
    named = template if isinstance(template, dict) else {"default": template}
    if template is None:
        return {}
    for text in named.values():
        if not isinstance(text, str):
            raise UserError(
                f"tokenizer_config.json: chat_template is {str(template)[:50]!r}: give a template"
                ' as text, or a list of {"name": ..., "template": ...}'
            )
    return named


def _checked(templates: dict[str, str]) -> dict[str, str]:
    """The same. Raises UserError for a name that an export could not give to a file of its own."""
    for name in templates:
        if not re.fullmatch(r"[\w+-][\w.+ -]{0,99}", str(name)):
            raise UserError(
                f"a chat template has the name {str(name)[:60]!r}, of which a file is made: rename"
                " it, with letters, digits, - and _"
            )
    return templates


def _token_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in TOKEN_IDS if name in config}


def _repeated(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are true of an exported student as well; null is the same as absent."""
    kept = {k: v for k, v in entries.items() if k not in _OF_THE_SOURCE}
    return {k: v for k, v in kept.items() if v is not None}
