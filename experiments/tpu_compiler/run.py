"""What a chip of a TPU has room for: this package's step, and the same with logits in memory.

    python -m experiments.tpu_compiler.run [PAIR ...] [--topologies v5e:4x4 v5p:2x2x2]
    python -m experiments.tpu_compiler.run llama --time 8192

Each line of results.jsonl is one program, compiled for a topology; nothing runs. The compiler
refuses in seconds, and takes a minute or two for what fits: rows per chip fall from too many, a
twentieth at a time, until they fit. Lines that are there are kept.
"""

import argparse
import json
import os
import time
from pathlib import Path

import jax

from distill_jax.planning.chips import read_topology
from distill_jax.setup.tpu_compiler import ENVIRONMENT
from experiments.tpu_compiler import compiled as of
from experiments.tpu_compiler import world as worlds
from experiments.tpu_compiler.models import PAIRS, architecture

TOPOLOGIES = ("v5e:4x4", "v5p:2x2x2")
FORMS = {"step": worlds.train, "naive": worlds.naive}
FIRST = {"step": 8, "naive": 1}  # rows per chip and GiB of its memory to begin with: too many
NEXT = 0.95  # of the rows that were refused
LENGTH = 1024  # tokens of a row: the unit in which room is found
# Equal for both forms: all activations of a block are computed again in the backward pass.
KEYS = {
    "data__seq_len": LENGTH,
    "model__remat": "full",
    "terms__forward_kl__weight": 0.9,
    "terms__cross_entropy__weight": 0.1,
}
RESULTS = Path(__file__).parent / "results.jsonl"


def measure(pair: str, topology: str, form: str, rows: int, **changes) -> dict:
    """One program: bytes of a chip and over the interconnect, or why it is refused."""
    teacher, student = map(architecture, PAIRS[pair])
    began, cpu = time.monotonic(), time.process_time()
    keys = KEYS | changes
    world = worlds.make_world(topology, student, teacher, 1, **keys)
    world = worlds.make_world(topology, student, teacher, rows * world.mesh.size, **keys)
    line = {"pair": pair, "topology": topology, "form": form, "rows_per_chip": rows, **changes}
    line["tokens_per_chip"] = world.tokens
    try:
        program = FORMS[form](world)
    except jax.errors.JaxRuntimeError as error:
        line["refused"] = str(error).split("\n")[0][:300]
    else:
        memory = program.memory_analysis()
        line["bytes"] = of.total(program)
        line["arguments"] = memory.argument_size_in_bytes
        line["temporaries"] = memory.temp_size_in_bytes
        try:
            line["interconnect"] = of.traffic(program)
        except jax.errors.JaxRuntimeError as error:
            line["unprintable"] = str(error)[:300]  # some programs, by this libtpu
    line["seconds"] = round(time.monotonic() - began, 1)
    line["cpu_seconds"] = round(time.process_time() - cpu, 1)
    return line


def search(pair: str, topology: str, form: str) -> None:
    """Finds the most rows per chip that fit, and writes every program that was compiled for it."""
    fits = {
        line["rows_per_chip"]: "bytes" in line
        for line in read()
        if (line["pair"], line["topology"], line["form"]) == (pair, topology, form)
        and "data__seq_len" not in line
    }
    rows = int(FIRST[form] * read_topology(topology).chip.memory / 2**30)
    while True:
        most = max((rows for rows, fit in fits.items() if fit), default=0)
        refused = min((rows for rows, fit in fits.items() if not fit), default=None)
        if refused is not None:
            rows = min(refused - 1, int(NEXT * refused))
        elif most:
            rows = 2 * most
        if rows <= most:
            return
        line = measure(pair, topology, form, rows)
        write(line)
        fits[rows] = "bytes" in line


def write(line: dict) -> None:
    """Adds a line to the results, and shows it."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def read() -> list[dict]:
    """The lines of the results."""
    return [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []


def table() -> str:
    """The results as the README shows them."""
    gib = lambda x: f"{x / 2**30:.2f}"
    rows = [
        "| teacher, student | topology | form | most tokens per chip | GiB per chip there |"
        " GiB of state and batch | GiB over the interconnect per step |",
        "|---|---|---|---|---|---|---|",
    ]
    fitting: dict[tuple, dict] = {}
    for line in read():
        if "bytes" in line and "data__seq_len" not in line:
            key = line["pair"], line["topology"], line["form"]
            best = fitting.get(key)
            if best is None or best["tokens_per_chip"] < line["tokens_per_chip"]:
                fitting[key] = line
    for (pair, topology, form), line in sorted(fitting.items()):
        names = ", ".join(PAIRS[pair])
        sent = gib(sum(line["interconnect"].values())) if "interconnect" in line else "not printed"
        rows.append(
            f"| {names} | {topology} | {form} | {line['tokens_per_chip']:,} | {gib(line['bytes'])}"
            f" | {gib(line['arguments'])} | {sent} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measures what is asked for, then prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs", nargs="*", default=list(PAIRS))
    parser.add_argument("--topologies", nargs="*", default=TOPOLOGIES)
    parser.add_argument("--forms", nargs="*", default=list(FORMS))
    parser.add_argument("--time", type=int, default=0, help="compile one row of so many tokens")
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    for topology in given.topologies:
        for pair in given.pairs:
            if given.time:
                write(measure(pair, topology, "step", 1, data__seq_len=given.time))
                continue
            for form in given.forms:
                search(pair, topology, form)
    print(table())


if __name__ == "__main__":
    main()
