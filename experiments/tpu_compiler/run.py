"""What a chip of a TPU has room for: this package's step, and the same with logits in memory.

    python -m experiments.tpu_compiler.run [PAIR ...] [--topologies v5e:4x4 v5p:2x2x2]
    python -m experiments.tpu_compiler.run llama --time 8192

Each line of results.jsonl is one program, compiled for a topology; nothing runs. Two small programs
give a line of bytes over rows; the most rows that it allows are compiled, and others in their place
if they are refused or leave much room. Lines that are there are kept.
"""

import argparse
import json
import os
import re
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
FIRST = {"step": (8, 32), "naive": (2, 4)}  # rows per chip to begin with
TRIES = 3  # programs after those
FULL = 0.95  # of a chip's memory: a program that takes as much is not followed by a larger one
CAREFUL = 0.98  # of it: what is aimed at after a refusal
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
        line["interconnect"] = of.traffic(program)
    line["seconds"] = round(time.monotonic() - began, 1)
    line["cpu_seconds"] = round(time.process_time() - cpu, 1)
    return line


def search(pair: str, topology: str, form: str) -> None:
    """Finds the most rows per chip that fit, and writes every program that was compiled for it."""
    tried = {
        line["rows_per_chip"]: line
        for line in read()
        if (line["pair"], line["topology"], line["form"]) == (pair, topology, form)
        and "data__seq_len" not in line
    }

    def needs(rows):
        if rows not in tried:
            tried[rows] = measure(pair, topology, form, rows)
            write(tried[rows])
        return needed(tried[rows])

    room = read_topology(topology).chip.memory
    for rows in FIRST[form]:
        needs(rows)
    for _ in range(TRIES):
        fitting = [rows for rows, line in tried.items() if "bytes" in line]
        most, refused = max(fitting, default=0), min(tried.keys() - fitting, default=None)
        if refused == most + 1 or (most and needs(most) > FULL * room):
            return
        aim = room if refused is None else CAREFUL * room
        predicted = on_a_line({rows: needs(rows) for rows in tried}, aim)
        needs(max(most + 1, predicted if refused is None else min(predicted, refused - 1)))


def needed(line: dict) -> float:
    """Bytes per chip of a program, or those which the compiler says when it refuses one."""
    if "bytes" in line:
        return line["bytes"]
    if found := re.search(r"Used ([\d.]+)([MGT]) of", line["refused"]):
        return float(found[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[found[2]]
    raise ValueError(f"not refused for its memory: {line['refused']}")


def on_a_line(bytes_of: dict[int, float], room: float) -> int:
    """The rows that fill the room, by the line through the two programs that are nearest to it.

    >>> on_a_line({1: 30.0, 2: 40.0, 8: 100.0}, 75.0)
    5
    """
    one, two = sorted(bytes_of, key=lambda rows: abs(bytes_of[rows] - room))[:2]
    slope = (bytes_of[two] - bytes_of[one]) / (two - one)
    return int(one + (room - bytes_of[one]) / slope)


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
        sent = gib(sum(line["interconnect"].values()))
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
