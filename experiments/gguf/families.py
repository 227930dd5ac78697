"""Tiny random models of every family as GGUF files, and whether llama.cpp gives our logits.

python -m experiments.gguf.families write DIRECTORY     # in this project's environment
python experiments/gguf/families.py compare DIRECTORY   # where llama-cpp-python is installed
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

TOKENS = 24


def write(directory):
    """FAMILY-VARIANT.gguf and .npy, our logits [T, V], for each variant that a file can say."""
    from distill_jax.export import export_gguf
    from distill_jax.models import huggingface
    from distill_jax.models.families import FAMILIES
    from tests import cli
    from tests.models.conftest import our_logits, tiny_oracle

    tokenizer = cli.make_tiny_tokenizer()
    tokens_BT = np.random.default_rng(0).integers(1, tokenizer.vocab_size, (1, TOKENS))
    directory.mkdir(parents=True, exist_ok=True)
    named = directory / "student.gguf"
    np.save(directory / "tokens.npy", tokens_BT[0])
    for family, of in FAMILIES.items():
        for variant, entries in (of.gguf.variants if of.gguf else {}).items():
            oracle = tiny_oracle(family, {**entries, "vocab_size": tokenizer.vocab_size})
            oracle.save_pretrained(directory / "hf")
            read = huggingface.read(directory / "hf", dtype="float32").whole()
            path = directory / f"{family}-{variant}.gguf"
            # llama.cpp treats tokens by the name of a model, which is that of the file.
            export_gguf(named, read.config, read.params, tokenizer, dtype="float32")
            named.rename(path)
            np.save(path.with_suffix(".npy"), our_logits(read, tokens_BT)[0])


def compare(directory):
    """A line for each file; in processes of their own, since llama.cpp aborts what it asserts."""
    for path in sorted(directory.glob("*.gguf")):
        one = [sys.executable, __file__, "one", str(path)]
        done = subprocess.run(one, capture_output=True, text=True, check=False)
        said = done.stdout if done.returncode == 0 else f"failed ({done.returncode})"
        print(f"{path.stem:24} {said.strip()}", flush=True)


def compare_one(path):
    """Prints the largest difference of a logit, beside the spread of all."""
    from llama_cpp import Llama

    tokens = np.load(path.with_name("tokens.npy")).tolist()
    ours_TV = np.load(path.with_suffix(".npy"))
    precise = {"type_k": 0, "type_v": 0}  # float32 for what is kept of earlier tokens
    llama = Llama(str(path), n_ctx=64, n_threads=1, verbose=False, logits_all=True, **precise)
    llama.eval(tokens)
    theirs_TV = llama.scores[: len(tokens)]
    same = (theirs_TV.argmax(-1) == ours_TV.argmax(-1)).sum()
    apart = np.abs(theirs_TV - ours_TV).max()
    print(f"{apart:.1e} of {ours_TV.std():.2f}, likeliest {same} of {len(tokens)}")


if __name__ == "__main__":
    {"write": write, "compare": compare, "one": compare_one}[sys.argv[1]](Path(sys.argv[2]))
