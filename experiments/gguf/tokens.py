"""Tokenizers of every kind as GGUF files, and whether llama.cpp makes our tokens of hard texts.

python -m experiments.gguf.tokens write DIRECTORY     # in this project's environment
python experiments/gguf/tokens.py compare DIRECTORY   # where llama-cpp-python is installed
"""

import json
import sys
from pathlib import Path


def write(directory):
    """NAME.gguf, and NAME.json: our tokens of each text, without BOS and EOS."""
    from tokenizers import Tokenizer

    from distill_jax.data.gguf_pre_tokenizers import PRE_TOKENIZERS
    from distill_jax.data.gguf_vocabulary import tokenizer_metadata
    from distill_jax.data.tokenizer import load_tokenizer, make_tokenizer
    from distill_jax.gguf_file import write_gguf
    from tests.data import test_gguf_sentencepiece as pieces
    from tests.data.conftest import byte_level_backend, tokenizer_of
    from tests.data.test_gguf_vocabulary import metaspace

    directory.mkdir(parents=True, exist_ok=True)
    found = {name: tokenizer_of(byte_level_backend(name)) for name in PRE_TOKENIZERS}
    for kind in ("llama", "gemma"):
        path = pieces.write(directory / "read.gguf", pieces.train(kind), kind)
        found[f"SentencePiece, {kind}"] = load_tokenizer(path)
        path.unlink()
    llama = found["SentencePiece, llama"]
    for scheme in ("always", "first", "never"):
        definition = json.loads(llama.backend.to_str())
        metaspace(scheme)(definition)
        backend = Tokenizer.from_str(json.dumps(definition))
        of = {"special_tokens": llama.special_tokens, "chat_template": None}
        found[f"Metaspace, {scheme}"] = make_tokenizer(backend, **of)
    for name, tokenizer in found.items():
        metadata = tokenizer_metadata(tokenizer, rows=tokenizer.vocab_size)
        # Of names with one meaning we write one; all are compared.
        own = {"tokenizer.ggml.pre": name} if name in PRE_TOKENIZERS else {}
        write_gguf(directory / f"{name}.gguf", "llama", metadata | own, [])
        ours = {text: tokenizer.offsets.encode(text).ids for text in pieces.TEXTS}
        (directory / f"{name}.json").write_text(json.dumps(ours), encoding="utf-8")


def compare(directory):
    """A line for each tokenizer, and its first texts of other tokens."""
    from llama_cpp import Llama

    for path in sorted(directory.glob("*.gguf")):
        llama = Llama(str(path), vocab_only=True, verbose=False)
        ours = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        theirs = {t: llama.tokenize(t.encode(), add_bos=False, special=True) for t in ours}
        other = [text for text, ids in ours.items() if theirs[text] != ids]
        print(f"{path.stem:24} {len(ours) - len(other)} of {len(ours)} texts are the same")
        for text in sorted(other, key=len)[:3]:
            print(f"    {text!r}: {ours[text]}, of llama.cpp {theirs[text]}")


if __name__ == "__main__":
    {"write": write, "compare": compare}[sys.argv[1]](Path(sys.argv[2]))
