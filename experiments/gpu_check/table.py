"""Findings as JSON lines and as a Markdown table."""

import json
from pathlib import Path

LINES, TABLE = "results.jsonl", "results.md"


def write(out: Path, records: list[dict]) -> None:
    """Replaces both files of a directory; the first record is of the environment."""
    (out / LINES).write_text("".join(json.dumps(record) + "\n" for record in records))
    (out / TABLE).write_text(markdown(records))


def markdown(records: list[dict]) -> str:
    about, *found = records
    forms = "; ".join(f"{dtype}: {form}" for dtype, form in about["attention"].items())
    return "\n".join(
        [
            f"# {about['device']}",
            "",
            f"{about['platform']}, JAX {about['jax']}, sizes {about['sizes']}.",
            f"Attention in {forms}.",
            "",
            "| part | case | found |",
            "|---|---|---|",
            *(f"| {r['part']} | {r['what']} | {shown(r)} |" for r in found),
            "",
        ]
    )


def shown(found: dict) -> str:
    """A finding in words."""
    for name in ("failed", "skipped"):
        if name in found:
            return f"{name}: {found[name]}"
    if "programs" in found:
        return "; ".join(f"{name} {shown(of)}" for name, of in found["programs"].items())
    said = []
    if "error" in found:
        verdict = "met" if found["met"] else "MISSED"
        said.append(f"largest error {found['error']:.1e} ≤ {found['limit']:g}: {verdict}")
    if found.get("compile_seconds") is not None:
        said.append(f"compiled in {found['compile_seconds']:.1f} s")
    if found.get("temporary_bytes") is not None:
        said.append(f"temporaries {found['temporary_bytes'] / 2**30:.2f} GiB")
    if "seconds" in found:
        said.append(f"{found['seconds']:.4f} s, {found['tokens_per_second']:,.0f} tokens/s")
    if "step_divided_by_it" in found:
        low, high = found["interval"]
        ratio = found["step_divided_by_it"]
        said.append(f"the step takes {ratio:.3f} of it ({low:.3f} to {high:.3f})")
    return ", ".join(said) or "ran"
