"""Bytes per token and lost information of every kind of teacher cache, by the job cache itself."""

import argparse
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

from distill_jax.data.sources import read_documents
from distill_jax.progress import table

HERE = Path(__file__).parent
KINDS = {
    "hidden float32": ("hidden", "float32", ()),
    "hidden bfloat16": ("hidden", "bfloat16", ()),
    "hidden int8": ("hidden", "int8", ()),
    "top 16": ("top_k", "float32", ("--config.teacher.k=16",)),
    "top 64": ("top_k", "float32", ("--config.teacher.k=64",)),
    "top 64 float16": ("top_k", "float16", ("--config.teacher.k=64",)),
    "sampled 50": ("sampled", "float32", ("--config.teacher.draws=50",)),
    "sampled 50, renormalised": (
        "sampled_renormalised", "float32", ("--config.teacher.draws=50",),
    ),
}  # fmt: skip


def main() -> None:
    """Runs the job for each kind on a few documents and writes results.jsonl and results.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart.py", help="names the teacher")
    parser.add_argument("--documents", type=int, default=12, help="of the config's text")
    parser.add_argument("--workdir", type=Path, default=Path("runs/teacher_cache"))
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    text = options.workdir / "text.jsonl"
    documents = itertools.islice(read_documents("python_docs"), options.documents)
    text.write_text("".join(json.dumps({"text": d.text}) + "\n" for d in documents))
    lines = [{"kind": name, **measure(name, *kind, options, text)} for name, kind in KINDS.items()]
    (HERE / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    header = ("kind", "bytes per token", "against logits in float32", "KL(stored || teacher)")
    cells = [
        (x["kind"], f"{x['bytes']:,.0f}", f"1/{x['logits'] / x['bytes']:,.0f}", f"{x['kl']:.1e}")
        for x in lines
    ]
    print(table(header, cells))


def measure(name: str, kind: str, dtype: str, more: tuple[str, ...], options, text: Path) -> dict:
    """What the job says of one kind."""
    command = [
        sys.executable, "-m", "distill_jax.main", f"--config={options.config}",
        f"--workdir={options.workdir / re.sub(r'[^a-z0-9]+', '_', name)}", "--config.job=cache",
        f"--config.data.source={text}", "--config.data.held_out_fraction=0.2",
        f"--config.teacher.targets={kind}", f"--config.cache.dtype={dtype}", *more,
    ]  # fmt: skip
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    size = re.search(r"of ([\d,]+) tokens, ([\d,]+) bytes per token", said)
    lost = re.search(r"KL\(stored \|\| teacher\) (\S+) nats", said)
    manifest = json.loads((Path(command[4].split("=")[1]) / "manifest.json").read_text())["content"]
    numbers = [int(x.replace(",", "")) for x in size.groups()]
    vocab = manifest["form"]["vocab"]
    return {"tokens": numbers[0], "bytes": numbers[1], "kl": float(lost[1]), "logits": 4 * vocab}


if __name__ == "__main__":
    main()
