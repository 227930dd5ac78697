"""Plans published pairs, and compares the model of memory with the compiler on every layout.

    python -m experiments.plan.run small qwen gemma llama experts

Each plan is a command of its own, whose workdir stays in --workdir; results.jsonl gets a line for
each layout that was compiled, and keeps those of other pairs and of the other compiler. --table
prints the tables alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from distill_jax.report.number_formats import FORMATS, THIN
from experiments.plan.pairs import PAIRS, TOKENS, Pair, write_sizes

HERE = Path(__file__).parent
RESULTS = HERE / "results.jsonl"


def command(pair: Pair, workdir: Path, models: Path) -> list[str]:
    """The plan of a pair as a command line."""
    keys = {
        "job": "plan",
        "plan.topology": pair.topology,
        "teacher.path": write_sizes(models, pair.teacher),
        "student.path": write_sizes(models, pair.student),
        "student.init": "random",
        "teacher.dtype": "bfloat16",
        "model.compute_dtype": "bfloat16",
        "model.remat": "full",
        "plan.tokens": TOKENS,
        "plan.price_per_hour": pair.price,
        "data.seq_len": 2048,
        "data.batch_size": pair.rows,
        "mesh.data": 1,
        "mesh.fsdp": -1,
        **pair.more,
    }
    flags = [f"--config.{key}={value}" for key, value in keys.items()]
    file = f"--config={HERE.parents[1] / 'configs' / 'base.py'}"
    return [sys.executable, "-m", "distill_jax.main", file, f"--workdir={workdir}", *flags]


def rows_of(name: str, plan: dict, wall: float, cpu: float) -> list[dict]:
    """A line of results for every layout that was compiled."""
    found = []
    for one in plan["layouts"]:
        row = {"pair": name, "topology": plan["topology"]["name"], "compiler": plan["compiler"]}
        row |= {"layout": one["name"], "verdict": one["verdict"], "flags": one["flags"]}
        row |= {"limit": plan["topology"]["memory"], "predicted": one["bytes"]["total"]}
        row |= {"compiled": (one["compiled"] or {}).get("total"), "keys": one["keys"]}
        row |= {"bound": one["bound"], "step_seconds": one["step_seconds"]}
        row |= {"hours": one["hours"], "cost": one["cost"]}
        found.append({**row, "wall_seconds": round(wall), "cpu_seconds": round(cpu)})
    return found


def table_of_bytes(rows: list[dict]) -> str:
    """The model of memory beside the compiler, in Markdown."""
    lines = ["| pair | chips | layout | by the model | by the compiler | off by |"]
    lines.append("|---|---|---|---|---|---|")
    for row in rows:
        keys, compiled = row["keys"], row["compiled"]
        mesh = ", ".join(
            f"{key.removeprefix('mesh.')} {value}"
            for key, value in keys.items()
            if key.startswith("mesh.") and value > 1
        )
        layout = f"{row['layout']}: {mesh}; {keys['model.remat']}"
        layout += f"; {keys['data.microbatches']} parts" * (keys["data.microbatches"] > 1)
        off = f"{row['predicted'] / compiled - 1:+.1%}" if compiled else "-"
        cells = [
            _names(row),
            row["topology"],
            layout,
            _size(row["predicted"]),
            _size(compiled),
            off,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_plans(rows: list[dict]) -> str:
    """What each plan found and what it took, in Markdown."""
    lines = [
        "| pair | chips | as given | changes | step, at least | cost, at least | the plan took |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name in {row["pair"]: None for row in rows}:
        given, *others = (row for row in rows if row["pair"] == name)
        changes = "; ".join(f"{row['layout']}: `{row['flags']}`" for row in others)
        steps, costs = (
            " / ".join(write(row[key]) for row in (given, *others) if row[key] is not None)
            for key, write in (
                ("step_seconds", lambda x: f"{x:.3g} s"),
                ("cost", "${:,.0f}".format),
            )
        )
        verdict = f"{given['verdict']}, {_size(given['compiled'])} of {_size(given['limit'])}"
        took = f"{given['wall_seconds']} s"
        took += f", {given['cpu_seconds']} s of CPU" if given["cpu_seconds"] else ""
        cells = [_names(given), given["topology"], verdict, changes or "-", steps, costs, took]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _names(row):
    pair = PAIRS[row["pair"]]
    return f"{pair.teacher} → {pair.student}, {pair.rows} rows"


def _size(value):
    return FORMATS["bytes"](value).replace(THIN, " ") if value else "-"


def main() -> None:
    """Runs the pairs that are named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs", nargs="*", choices=[*PAIRS, []], default=[])
    parser.add_argument("--workdir", type=Path, default=Path("runs/plans"))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    kept = [json.loads(line) for line in RESULTS.open()] if RESULTS.exists() else []
    for name in [] if given.table else given.pairs or PAIRS:
        began, before = time.monotonic(), _cpu_seconds()
        workdir = given.workdir / name
        subprocess.run(command(PAIRS[name], workdir, given.workdir / "models"), check=True)
        wall, cpu = time.monotonic() - began, _cpu_seconds() - before
        plan = json.loads((workdir / "plan.json").read_text())
        same = (name, plan["compiler"])
        kept = [row for row in kept if (row["pair"], row["compiler"]) != same]
        kept = sorted(kept + rows_of(name, plan, wall, cpu), key=_order)
        RESULTS.write_text("".join(json.dumps(row) + "\n" for row in kept))
    for compiler in {row["compiler"]: None for row in kept}:
        rows = [row for row in kept if row["compiler"] == compiler]
        print(f"\nBy {compiler}:\n\n{table_of_plans(rows)}\n\n{table_of_bytes(rows)}")


def _order(row):
    """The sort is stable: layouts stay in their order."""
    return "libtpu" not in row["compiler"], list(PAIRS).index(row["pair"])


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
