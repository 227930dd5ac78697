"""The pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`, in llama.cpp's sense."""

from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOWER, _UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"  # one character before a word
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"


class PreTokenizer(NamedTuple):
    """The meaning of a name in `tokenizer.ggml.pre`.

    steps          pre-tokenizers, one after the other
    normalizer     of the text before them
    whole_words    whether a word that is itself a token skips the merges
    adds_bos       the default if the file does not say
    """

    steps: list[pre_tokenizers.PreTokenizer]
    normalizer: normalizers.Normalizer | None = None
    whole_words: bool = False
    adds_bos: bool = False


def _byte_level(*, words: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=words)


def _split_then_bytes(pattern: str) -> list[pre_tokenizers.PreTokenizer]:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return [split, _byte_level(words=False)]


def _of_llama3(digits: str) -> list[pre_tokenizers.PreTokenizer]:
    """The pattern published with Llama 3 and Qwen2, which differ in how digits are grouped."""
    words = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    return _split_then_bytes(words + _SPACES)


def _of_gpt4o() -> list[pre_tokenizers.PreTokenizer]:
    """The pattern published as o200k: a capital begins a word of its own."""
    words = [
        rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?",
        rf"{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*",
    ]
    return _split_then_bytes("|".join(words) + _SPACES)


_GPT2 = PreTokenizer([_byte_level(words=True)])
_DIGITS = PreTokenizer([pre_tokenizers.Digits(individual_digits=True), _byte_level(words=True)])
_LLAMA3 = PreTokenizer(_of_llama3(r"\p{N}{1,3}"), whole_words=True, adds_bos=True)
_QWEN2 = PreTokenizer(_of_llama3(r"\p{N}"), normalizer=normalizers.NFC())

# Of several names with one meaning, the first is written.
PRE_TOKENIZERS = {
    "gpt-2": _GPT2,
    "default": _GPT2,  # for files that name none; that of llama.cpp is no model's own
    "olmo": _GPT2._replace(normalizer=normalizers.NFC()),  # GPT-NeoX too
    "smollm": _DIGITS,
    "refact": _DIGITS,  # Granite 3 too
    "starcoder": _DIGITS,
    "llama-bpe": _LLAMA3,
    "dbrx": _LLAMA3._replace(whole_words=False, adds_bos=False),  # OLMo 2 too
    "smaug-bpe": _LLAMA3._replace(whole_words=False, adds_bos=False),  # SmolLM3 too
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "gpt-4o": PreTokenizer(_of_gpt4o()),  # gpt-oss too
}
