"""Results as JSON lines, a Markdown table and plots. One file per shape; the table shows all."""

import json
import os
import platform
from pathlib import Path

import jax
import numpy as np

from experiments.benchmarks.plot import Bar, bars_svg
from experiments.benchmarks.ratios import Ratio, by_name
from experiments.benchmarks.shapes import SHAPES, Shape
from experiments.benchmarks.timing import Outcome, Program, Sample

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CPU_INFO = Path("/proc/cpuinfo")
TABLE = "results.md"


def environment(shape: Shape, rounds: int, seed: int) -> dict:
    """What a reader needs to judge the numbers."""
    model = [line for line in _read(CPU_INFO).splitlines() if line.startswith("model name")]
    return {
        "kind": "environment",
        "shape": shape.name,
        "tokens": shape.rows * shape.length,
        "rounds": rounds,
        "seed": seed,
        "cpu": model[0].split(":")[1].strip() if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "huge_pages": _read(HUGE_PAGES).strip(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
    }


def records(
    shape: Shape,
    programs: dict[str, Program],
    samples: list[Sample],
    ratios: list[Ratio],
    peaks: dict[str, int],
    skipped: dict[str, str],
    outcomes: dict[str, Outcome],
) -> list[dict]:
    """Everything measured on a shape as dicts of JSON; `peaks` by contender, in bytes."""
    own = lambda kind, value: {"kind": kind, "shape": shape.name, **value}
    out = [own("sample", sample._asdict()) for sample in samples]
    for name, program in programs.items():
        kept = {k: v for k, v in program._asdict().items() if k != "run"}
        out.append(own("program", {"name": name, **kept}))
    out += [own("process_peak", {"name": k, "bytes": v}) for k, v in peaks.items()]
    out += [own("outcome", {"name": k, **v._asdict()}) for k, v in outcomes.items()]
    out += [own("skipped", {"name": k, "why": v}) for k, v in skipped.items()]
    out += [own("ratio", ratio._asdict()) for ratio in ratios]
    return out


def write(out: Path, shape: str, lines: list[dict]) -> None:
    """Replaces the shape's lines, and writes table and plots of all shapes in the directory."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{shape}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    measured = read(out)
    (out / TABLE).write_text(table(measured))
    for name, lines in measured.items():
        for kind, svg in plots(name, lines).items():
            (out / f"{name}_{kind}.svg").write_text(svg)


def read(out: Path) -> dict[str, list[dict]]:
    """The lines of every shape in a directory, known shapes first and in their order."""
    paths = {path.stem: path for path in sorted(out.glob("*.jsonl"))}
    order = [name for name in SHAPES if name in paths]
    names = order + [name for name in paths if name not in order]
    return {n: [json.loads(line) for line in paths[n].read_text().splitlines()] for n in names}


def table(measured: dict[str, list[dict]]) -> str:
    """Ratios with limits, then seconds and memory of every program, then what was skipped."""
    everything = [line for lines in measured.values() for line in lines]
    out = ["# Results", ""]
    out += [_setting(line) for line in everything if line["kind"] == "environment"]
    out += [
        "",
        "| what | shape | median | 95% interval | in CPU seconds | limit | |",
        "|---|---|---|---|---|---|---|",
        *(_ratio_row(ratio) for ratio in ratios_of(everything)),
        "",
        "| shape | program | rounds | wall s | CPU s | compile s | temporaries MB |",
        "|---|---|---|---|---|---|---|",
        *(row for shape, lines in measured.items() for row in _program_rows(shape, lines)),
    ]
    peaks = [line for line in everything if line["kind"] == "process_peak"]
    if peaks:
        out += ["", "| shape | contender | peak of a process of its own, MB |", "|---|---|---|"]
        out += [f"| {p['shape']} | {p['name']} | {p['bytes'] / 1e6:,.0f} |" for p in peaks]
    outcomes = [line for line in everything if line["kind"] == "outcome"]
    if outcomes:
        out += ["", "| shape | step | loss of the first run | gradient norm |", "|---|---|---|---|"]
        out += [_outcome_row(line) for line in outcomes]
    skipped = [line for line in everything if line["kind"] == "skipped"]
    out += ["", *(f"Skipped on {s['shape']}: {s['name']}: {s['why']}" for s in skipped)]
    return "\n".join(out).rstrip() + "\n"


def ratios_of(lines: list[dict]) -> list[Ratio]:
    """The ratios among some lines."""
    return [
        Ratio(**{k: v for k, v in line.items() if k != "kind"})
        for line in lines
        if line["kind"] == "ratio"
    ]


def plots(shape: str, lines: list[dict]) -> dict[str, str]:
    """SVG texts: ratios with whiskers and limits, and median wall seconds with whiskers."""
    ratios = [
        Bar(r.what, r.median, r.low, r.high, r.limit, r.verdict, r.at_least)
        for r in ratios_of(lines)
    ]
    seconds = []
    for name, rounds in _seconds(lines).items():
        wall = [wall for wall, _ in rounds.values()]
        low, middle, high = np.percentile(wall, (25, 50, 75)).tolist()
        seconds.append(Bar(name, middle, low, high))
    out = {}
    if ratios:
        title = f"{shape}: ratios (whiskers: 95% interval; dashed: limit)"
        out["ratios"] = bars_svg(title, "median of paired ratios", ratios)
    if seconds:
        title = f"{shape}: wall seconds (whiskers: quartiles)"
        out["seconds"] = bars_svg(title, "median, s", seconds)
    return out


def _setting(line: dict) -> str:
    tunables = f", {line['glibc_tunables']}" if line["glibc_tunables"] else ""
    return (
        f"- {line['shape']}: {line['tokens']:,} tokens, float32, {line['cores']} cores of"
        f" {line['cpu']}, JAX {line['jax']}, Python {line['python']}, transparent huge pages"
        f" {line['huge_pages']}{tunables} for every contender"
    )


def _ratio_row(ratio: Ratio) -> str:
    number = lambda x: "" if x is None else f"{x:.3f}"
    between = "" if ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
    sign = "≥" if ratio.at_least else "≤"
    limit = "" if ratio.limit is None else f"{sign} {ratio.limit:g}"
    cells = (
        ratio.what, ratio.shape, number(ratio.median), between, number(ratio.cpu), limit,
        ratio.verdict,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _outcome_row(line: dict) -> str:
    norm = line["gradient_norm"]
    cells = (
        line["shape"],
        line["name"],
        f"{line['loss']:.6g}",
        "" if norm is None else f"{norm:.6g}",
    )
    return f"| {' | '.join(cells)} |"


def _program_rows(shape: str, lines: list[dict]) -> list[str]:
    programs = {line["name"]: line for line in lines if line["kind"] == "program"}
    rows = []
    for name, rounds in _seconds(lines).items():
        wall, cpu = np.median(list(rounds.values()), axis=0)
        compiling, bytes_ = (programs[name][k] for k in ("compile_seconds", "temporary_bytes"))
        cells = (
            shape, name, str(len(rounds)), f"{wall:.3f}", f"{cpu:.3f}",
            "" if compiling is None else f"{compiling:.1f}",
            "" if bytes_ is None else f"{bytes_ / 1e6:,.0f}",
        )  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _seconds(lines: list[dict]):
    """Samples by program in the order of the programs, which is the same in every run."""
    samples = [
        Sample(*(line[field] for field in Sample._fields))
        for line in lines
        if line["kind"] == "sample"
    ]
    seconds = by_name(samples)
    return {p["name"]: seconds[p["name"]] for p in lines if p["kind"] == "program"}


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
