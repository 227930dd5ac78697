"""plan.json, plan.html and the table of a terminal of the job plan (plan.schema.json).

A layout is one way to lie on the chips; the first is the given one, then the changes that were
found. What nobody knows (a price, the speed of a simulated device) is absent, not zero.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

from markupsafe import Markup

from distill_jax.progress import duration, table
from distill_jax.report.number_formats import FORMATS, THIN
from distill_jax.report.page import finite, render
from distill_jax.report.svg import Text
from distill_jax.report.svg_models import stack

SCHEMA = 1  # version of the structure that plan.schema.json describes
FITS, NOT, FAILS = "FITS", "DOES NOT FIT", "DOES NOT COMPILE"
# What stands under the name of an owner.
MEANINGS = {
    "student": "its parameters",
    "optimizer": "moments, counters and averages",
    "teacher": "its parameters; of a cached one its head and the hidden states of a batch",
    "gradients": "of all parameters; with micro-batches twice",
    "activations": "kept for the backward pass, and the work of one block",
    "attention": "the same of queries, keys, values and outputs",
    "gathered": "weights of a block that other chips hold",
    "head": "both output matrices, and the gradient of the student's",
    "loss": "logits of a block of tokens, and gradients of hidden states",
}
GIVEN, SMALLEST, FASTEST = "given", "smallest change", "fastest"


def plan_report(
    *,
    statement: str,
    topology: Mapping[str, Any],
    models: Sequence[Mapping[str, Any]],
    compiler: str,
    layouts: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """All numbers of a plan. layouts: the given one first."""
    report = {
        "schema": SCHEMA,
        "kind": "plan",
        "verdict": layouts[0]["verdict"],
        "fits": layouts[0]["fits"],
        "headline": _headline(layouts, topology),
        "statement": statement,
        "topology": dict(topology),
        "models": [dict(one) for one in models],
        "compiler": compiler,
        "layouts": [dict(one) for one in layouts],
        "notes": list(notes),
        "config": dict(config),
        "provenance": dict(provenance),
    }
    return finite(report)


def _headline(layouts, topology) -> str:
    given, limit = layouts[0], topology["memory"]
    if given["fits"]:
        room = f"{_bytes(counted(given))} of {_bytes(limit)} per chip on {topology['name']}"
        return f"{FITS}: {room}{_at_least(given)}."
    needs = f"{_bytes(counted(given))} per chip, and {topology['name']} has {_bytes(limit)}"
    other = next((one for one in layouts[1:] if one["name"] == SMALLEST), None)
    remedy = f" It does with {other['flags']}." if other else " Nothing that was tried does."
    if given["verdict"] == FAILS:
        return f"{FAILS}: {given['compiled']['refused']}.{remedy}"
    return f"{NOT}: {needs}.{remedy}"


def _at_least(layout) -> str:
    found = ""
    if layout["hours"] is not None:
        found += f", {duration(3600 * layout['hours'])} at least"
    if layout["cost"] is not None:
        found += f" for {FORMATS['money'](layout['cost'])}"
    return found


def counted(layout: Mapping[str, Any]) -> float:
    """The bytes that decide: the compiler's where it gave some, else the model's."""
    compiled = layout["compiled"]
    return compiled["total"] if compiled and compiled["total"] else layout["bytes"]["total"]


def _bytes(value: float) -> str:
    return FORMATS["bytes"](value).replace(THIN, " ")


def plan_text(report: Mapping[str, Any]) -> str:
    """The plan for a terminal: a column for each layout."""
    layouts = report["layouts"]
    rows: list[list[str]] = []

    def row(name, values, write):
        cells = [write(x) if x is not None else "-" for x in values]
        if any(cell != "-" for cell in cells):
            rows.append([name, *cells])

    for owner in layouts[0]["bytes"]["owners"]:
        row(owner, [one["bytes"]["owners"][owner] or None for one in layouts], _bytes)
    row("together, by the model", [one["bytes"]["total"] for one in layouts], _bytes)
    compiled = [(one["compiled"] or {}).get("total") for one in layouts]
    row("together, by the compiler", compiled, _bytes)
    row("memory of a chip", [report["topology"]["memory"]] * len(layouts), _bytes)
    row("", [one["verdict"] for one in layouts], str)
    letters = lambda x: FORMATS["letters"](x).replace(THIN, " ")
    for owner in layouts[0]["flops_per_token"]:
        values = [one["flops_per_token"].get(owner) for one in layouts]
        row(f"FLOPs per token, {owner}", values, letters)
    for axis in layouts[0]["links"]:
        values = [one["links"][axis] or None for one in layouts]
        row(f"bytes per step over {axis}", values, _bytes)
    row("seconds per step, at least", [one["step_seconds"] for one in layouts], FORMATS["metric"])
    row("bound by", [one["bound"] for one in layouts], str)
    row("hours, at least", [one["hours"] for one in layouts], FORMATS["metric"])
    row("cost, at least", [one["cost"] for one in layouts], FORMATS["money"])
    lines = [table(["per chip", *(one["name"] for one in layouts)], rows), ""]
    lines += [f"{one['name']}: {one['flags']}" for one in layouts[1:] if one["flags"]]
    lines += [f"note: {text}" for text in report["notes"]]
    return "\n".join([*lines, report["headline"]])


def plan_page(report: dict[str, Any]) -> str:
    """plan.html, from the numbers of plan.json."""
    layouts, limit = report["layouts"], report["topology"]["memory"]
    whole = max(limit, *(one["bytes"]["total"] for one in layouts))
    bars = [_bar(one, limit, whole) for one in layouts]
    return render("plan.html.j2", report, bars=bars, meanings=MEANINGS, counts=_counts(layouts))


def _counts(layouts: Sequence[Mapping[str, Any]]) -> Callable[..., bool]:
    """Whether any layout has a number other than zero at a path, or below it."""

    def within(value):
        return any(map(within, value.values())) if isinstance(value, Mapping) else bool(value)

    return lambda *path: any(within(reduce(getitem, path, one)) for one in layouts)


def _bar(layout: Mapping[str, Any], limit: float, whole: float) -> Markup:
    """The owners, and a line where a chip is full. whole: bytes of the width, of all layouts."""
    owners = layout["bytes"]["owners"]
    parts = [(Text(owner), size / whole) for owner, size in owners.items()]
    said = ", ".join(f"{owner} {_bytes(size)}" for owner, size in owners.items() if size)
    return stack(
        parts, f"Bytes of a chip, {layout['name']}: {said}; of {_bytes(limit)}", limit / whole
    )
