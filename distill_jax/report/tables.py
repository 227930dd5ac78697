"""What a terminal shows of a run or a study: the closing tables, texts and verdicts."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from distill_jax.evals.likelihood import perplexity
from distill_jax.progress import table
from distill_jax.report.charts import COMPARISONS
from distill_jax.report.number_formats import parameters
from distill_jax.study.arms import ARMS
from distill_jax.words import labelled, named


class Size(NamedTuple):
    """Numbers in a model, and those that compute one token; None where that is all of them."""

    total: int | None
    active: int | None = None


class ModelRow(NamedTuple):
    """A line of the closing table. Absent numbers are None."""

    name: str
    parameters: int | None
    nll: float  # nats per token
    forward_kl: float | None  # KL(teacher || model), nats per token
    agreement_top1: float | None
    decode_tokens_per_s: float | None
    active_parameters: int | None = None  # of a model with experts: those that compute one token

    @classmethod
    def of(
        cls, name: str, size: Size, evaluation: dict[str, float], speed: float | None = None
    ) -> "ModelRow":
        """A student's line, from its held-out metrics."""
        values = [evaluation.get(f"eval/{key}") for key in ("nll", "forward_kl", "agreement_top1")]
        return cls(name, size.total, *values, speed, size.active)

    @classmethod
    def teacher(
        cls,
        name: str,
        size: Size,
        evaluation: dict[str, float],
        speed: float | None = None,
    ) -> "ModelRow":
        """The teacher's line, from the metrics of a student measured against it."""
        return cls(name, size.total, evaluation["eval/teacher_nll"], 0.0, 1.0, speed, size.active)


def model_rows(
    sizes: Sequence[Size],
    evaluations: Sequence[dict[str, float]],
    speeds: dict[str, float | None],
) -> list[ModelRow]:
    """The closing table of a run: the teacher, where there is one, the student before and after.

    evaluations: before and after; the latter alone where what was before is lost.
    """
    names = ("student before", "student after")[-len(evaluations) :]
    students = zip(names, sizes[-len(names) :], evaluations, map(speeds.get, names), strict=True)
    rows = [ModelRow.of(*student) for student in students]
    if "eval/teacher_nll" in evaluations[-1]:
        speed = speeds.get("teacher")
        rows.insert(0, ModelRow.teacher("teacher", sizes[0], evaluations[-1], speed))
    return rows


def text_table(rows: Sequence[ModelRow]) -> str:
    """The closing table for a terminal; a column that has no number is left out."""
    columns = {name: [text_of(row) for row in rows] for name, text_of in COLUMNS.items()}
    kept = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
    return table(list(kept), list(zip(*kept.values(), strict=True)))


def samples_text(samples: Sequence[dict[str, Any]]) -> str:
    """The continuations of each prompt, model by model, for a terminal."""
    lines: list[str] = []
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        lines.append(f"\n{prompt!r} goes on")
        lines += [f"  {s['model']:15} {s['text']!r}" for s in samples if s["prompt"] == prompt]
    return "\n".join([*lines, ""])


def study_table(report: dict[str, Any]) -> str:
    """A study for a terminal: a line per arm, then a line per verdict."""
    header = ("arm", "seeds", "NLL", "from", "to", "KL to teacher", "top-1 agreement", "FLOPs")
    of = lambda value, key: None if value is None else value[key]
    rows = [
        [
            arm["arm"],
            _seeds_done(arm),
            _or_dash(of(arm["nll"], "mean"), ".4f"),
            _or_dash(of(arm["nll"], "low"), ".4f"),
            _or_dash(of(arm["nll"], "high"), ".4f"),
            _or_dash(of(arm["forward_kl"], "mean"), ".4f"),
            _or_dash(of(arm["agreement_top1"], "mean"), ".1%"),
            _or_dash(arm["flops"], ".3g"),
        ]
        for arm in report["arms"]
    ]
    if report["teacher"]:
        nll = _or_dash(report["teacher"]["nll"], ".4f")
        rows.insert(0, ["teacher", "-", nll, "-", "-", "-", "-", "-"])
    return "\n".join([table(header, rows), "", report["headline"], "", *verdict_lines(report)])


def _seeds_done(arm: dict[str, Any]) -> str:
    """How many seeds there are, or `2 of 3` where a run broke down."""
    failed = sum(run.get("failed") is not None for run in arm["runs"])
    every = len(arm["seeds"])
    return f"{every - failed} of {every}" if failed else str(every)


def verdict_lines(report: dict[str, Any]) -> list[str]:
    """A line for each comparison and warning, and whether the student is fit to ship."""
    verdict = report["verdict"]
    if verdict is None:
        return ["no verdict"]
    judged = [(f"at {text}", verdict[name]) for name, text in COMPARISONS.items() if verdict[name]]
    for one in report["comparisons"]:
        arm = one["treatment"] if one["treatment"] in ARMS else f"ablation {one['treatment']}"
        judged.append((f"{arm} against {one['baseline']}", one))
    judged += [
        (f"by {named(one['measure'])}, {one['treatment']} against {one['baseline']}", one)
        for one in report["secondary"]
    ]
    lines = [f"{name}: {labelled(one['label'])}. {one['reason']}" for name, one in judged]
    main = [verdict[name] for name in COMPARISONS if verdict[name]]
    lines += [
        f"warning: {text}" for text in dict.fromkeys(w for one in main for w in one["warnings"])
    ]
    return [*lines, f"fit to ship: {'yes' if verdict['ships'] else 'no'}"]


def _or_dash(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


COLUMNS: dict[str, Callable[[ModelRow], str]] = {
    "model": lambda row: row.name,
    "parameters": lambda row: "-" if row.parameters is None else parameters(row.parameters),
    "per token": lambda row: (
        "-" if row.active_parameters is None else parameters(row.active_parameters)
    ),
    "NLL": lambda row: f"{row.nll:.3f}",
    "perplexity": lambda row: f"{perplexity(row.nll):.2f}",
    "KL to teacher": lambda row: _or_dash(row.forward_kl, ".3f"),
    "top-1 agreement": lambda row: _or_dash(row.agreement_top1, ".1%"),
    "tokens/s": lambda row: _or_dash(row.decode_tokens_per_s, ",.0f"),
}
