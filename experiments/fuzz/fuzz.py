"""Gives mutated files to the readers, for a time, and counts what they do other than refuse.

    python -m experiments.fuzz.fuzz --seconds=3600 --out=/tmp/fuzz

Needs atheris (pip install atheris). The readers run in this process, one file after another; what
is counted is any exception but UserError, more than 10 seconds of work or a minute of waiting, and
more than 1 GB of new memory.
"""

import argparse
import copy
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["distill_jax"]):
    from distill_jax.data.documents import fingerprint
    from distill_jax.data.files import read_all
    from distill_jax.data.gguf_tokenizer import read_gguf_tokenizer
    from distill_jax.data.prompts import read_prompts
    from distill_jax.models import gguf as gguf_models
    from distill_jax.models import huggingface
    from distill_jax.types import UserError

from experiments.fuzz import seeds

SECONDS, BYTES = 10, 10**9
NASTY = [
    None, True, "", "two", "\ud800", "../x.safetensors", "/etc/passwd", [], {}, [[]], 0, -1, 1.5,
    2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), [1] * 9, {"a": {"b": []}}, "\0",
    "\u2028",
]  # fmt: skip
NUMBERS = [0, 1, 2, 7, 8, 9, 255, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]


def targets(place: Path) -> dict[str, tuple[Path, object]]:
    """What is read: name -> (the file that is written, what reads it)."""
    texts = seeds.write_texts(place / "texts")
    model, sharded = seeds.write_model(place / "model"), seeds.write_model(place / "two", shards=2)
    safetensors = seeds.write_model(place / "safetensors")
    file = seeds.write_gguf(place / "model.gguf")
    read = lambda path: fingerprint(list(read_all([path])))
    found = {
        **{
            name: (texts[name], lambda name=name: read(texts[name]))
            for name in (*seeds.RECORDS, "json", "csv", "gz")
        },
        "prompts": (texts["jsonl"], lambda: read_prompts([f"@{texts['jsonl']}"])),
        "config": (model / "config.json", lambda: huggingface.read(model, dtype=None).whole()),
        "index": (sharded / seeds.INDEX, lambda: huggingface.read(sharded, dtype=None).whole()),
        "safetensors": (
            safetensors / seeds.SINGLE,
            lambda: huggingface.read(safetensors, dtype=None).whole(),
        ),
        "gguf": (file, lambda: gguf_models.read(file, dtype=None).whole()),
        "gguf tokenizer": (file, lambda: read_gguf_tokenizer(file)),
        "parquet": (texts["parquet"], lambda: read(texts["parquet"])),
        "arrow": (texts["arrow"], lambda: read(texts["arrow"])),
        "text": (texts["txt"], lambda: read(texts["txt"])),
    }
    return found


def mutated(seed: bytes, data: bytes) -> bytes:
    """A file: the fuzzer's bytes as they are, or changes that they choose to the seed."""
    given = atheris.FuzzedDataProvider(data)
    mode = given.ConsumeIntInRange(0, 2)
    if mode == 0:
        return given.ConsumeBytes(len(data))
    if mode == 1 and seed[:1] == b"{":
        return edited(
            seed.split(b"\n")[given.ConsumeIntInRange(0, seed.count(b"\n"))] or b"{}", given
        )
    changed = bytearray(seed)
    for _ in range(given.ConsumeIntInRange(1, 4)):
        # Headers come first, and the footer of a parquet file last.
        near = given.ConsumeIntInRange(0, min(len(changed), 2048) - 1)
        at = near if given.ConsumeBool() else len(changed) - 1 - near
        width = given.PickValueInList([1, 4, 8])
        value = given.PickValueInList(NUMBERS) if given.ConsumeBool() else given.ConsumeUInt(width)
        changed[at : at + width] = (value % 256**width).to_bytes(width, "little")
    cut = given.ConsumeIntInRange(0, 8)
    return bytes(changed[: len(changed) * cut // 8] if cut and given.ConsumeBool() else changed)


def edited(seed: bytes, given) -> bytes:
    """A JSON object in which some values are others."""
    value = json.loads(seed)
    for _ in range(given.ConsumeIntInRange(1, 3)):
        at = value
        while True:
            keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = given.PickValueInList(keys)
            inner = isinstance(at[key], dict | list) and at[key]
            if inner and given.ConsumeBool():
                at = at[key]
                continue
            at[key] = copy.deepcopy(given.PickValueInList(NASTY))  # it may be changed further
            break
    return json.dumps(value).encode()


def cpu_seconds() -> float:
    """Of this process and those that it started: what others do on the machine does not count."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Findings:
    """Counts, and the first file of every kind of finding."""

    def __init__(self, out: Path, place: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.runs, self.ends, self.found = out, Counter(), Counter(), Counter()
        self.targets = targets(place)
        self.seeds = {name: path.read_bytes() for name, (path, _) in self.targets.items()}
        self.began = self.said = time.monotonic()

    def one(self, data: bytes) -> None:
        """One file."""
        names = sorted(self.targets)
        if not data:
            return
        name = names[data[0] % len(names)]
        if name in ("parquet", "arrow") and data[0] % 4:  # each costs a process
            name = "jsonl"
        path, read = self.targets[name]
        content = mutated(self.seeds[name], data[1:])
        path.write_bytes(content)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, cpu_seconds()
        signal.alarm(6 * SECONDS)
        end = "read"
        try:
            read()
        except UserError:
            end = "refused"
        except BaseException as error:
            frames = [
                f for f in traceback.extract_tb(error.__traceback__) if "distill_jax" in f.filename
            ]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            self.note(f"{name}: {type(error).__name__} at {where}", content, error)
            end = "other"
        finally:
            signal.alarm(0)
            path.write_bytes(self.seeds[name])
        if (took := cpu_seconds() - began) > SECONDS:
            self.note(f"{name}: {took:.0f} s", content, None)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if grown > BYTES:
            self.note(f"{name}: {grown / 1e9:.1f} GB", content, None)
        self.runs[name] += 1
        self.ends[end] += 1
        if time.monotonic() - self.said > 30:
            self.said = time.monotonic()
            self.write()

    def note(self, what: str, content: bytes, error) -> None:
        self.found[what] += 1
        if self.found[what] == 1:
            stem = self.out / f"finding-{len(self.found)}"
            stem.with_suffix(".bin").write_bytes(content)
            text = "".join(traceback.format_exception(error)) if error else ""
            stem.with_suffix(".txt").write_text(f"{what}\n{text}", errors="backslashreplace")

    def write(self) -> None:
        """The counts so far."""
        result = {
            "seconds": round(time.monotonic() - self.began),
            "files": dict(self.runs),
            "ends": dict(self.ends),
            "findings": dict(self.found),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        (self.out / "result.json").write_text(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--out", type=Path, default=Path("/tmp/fuzz"))
    options = parser.parse_args()

    def late(*_):
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    resource.setrlimit(resource.RLIMIT_AS, (8 * BYTES, 8 * BYTES))
    with tempfile.TemporaryDirectory() as place:
        findings = Findings(options.out, Path(place))
        corpus = options.out / "corpus"
        corpus.mkdir(exist_ok=True)
        for i, name in enumerate(sorted(findings.targets)):
            seed = findings.seeds[name]
            (corpus / f"raw-{i}").write_bytes(bytes([i]) + seed + b"\0")
            (corpus / f"edit-{i}").write_bytes(bytes([i]) + bytes(range(64)) * 2)
        atheris.Setup(
            [sys.argv[0], str(corpus), f"-max_total_time={options.seconds}", "-max_len=65536",
             "-timeout=120", "-rss_limit_mb=12000", "-print_final_stats=1"],
            findings.one,
        )  # fmt: skip
        import atexit

        atexit.register(findings.write)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
