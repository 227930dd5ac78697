"""report.json of a single run, and what a terminal shows of a run or a study."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from distill_jax.evals.likelihood import perplexity
from distill_jax.progress import table
from distill_jax.study.charts import COMPARISONS
from distill_jax.study.page import finite

# A run alone has no arm to compare with, and its page must not suggest otherwise.
NO_VERDICT = (
    "This is a single run. It shows how close the student is to its teacher on held-out text;"
    " it cannot tell whether distillation helped against plain fine-tuning at equal steps or"
    " equal FLOPs."
)
STUDY_COMMAND = "the same command with --config.job=study and another --workdir"
SCHEMA = 1  # version of the structure that report.schema.json describes
CURVE_POINTS = 500  # lines of metrics.jsonl that a report keeps, besides the evaluations


class ModelRow(NamedTuple):
    """A line of the closing table. Absent numbers are None."""

    name: str
    parameters: int | None
    nll: float  # nats a token
    forward_kl: float | None  # KL(teacher || model), nats a token
    agreement_top1: float | None
    decode_tokens_per_s: float | None

    @classmethod
    def of(
        cls, name: str, parameters: int, evaluation: dict[str, float], speed: float | None = None
    ) -> "ModelRow":
        """A student's line, from its held-out metrics."""
        get = lambda key: evaluation.get(f"eval/{key}")
        return cls(name, parameters, get("nll"), get("forward_kl"), get("agreement_top1"), speed)

    @classmethod
    def teacher(
        cls,
        name: str,
        parameters: int | None,
        evaluation: dict[str, float],
        speed: float | None = None,
    ) -> "ModelRow":
        """The teacher's line, from the metrics of a student measured against it."""
        return cls(name, parameters, evaluation["eval/teacher_nll"], 0.0, 1.0, speed)


def model_rows(
    sizes: Sequence[int | None],
    evaluations: Sequence[dict[str, float]],
    speeds: dict[str, float | None],
) -> list[ModelRow]:
    """The closing table of a run: the teacher, where there is one, the student before and after."""
    names = ("teacher", "student before", "student after")
    speed = [speeds.get(name) for name in names]
    rows = [
        ModelRow.of(*line)
        for line in zip(names[1:], sizes[1:], evaluations, speed[1:], strict=True)
    ]
    if "eval/teacher_nll" in evaluations[-1]:
        rows.insert(0, ModelRow.teacher(names[0], sizes[0], evaluations[-1], speed[0]))
    return rows


HEADER = (
    "model",
    "parameters",
    "NLL",
    "perplexity",
    "KL to teacher",
    "top-1 agreement",
    "tokens/s",
)


def row_cells(row: ModelRow) -> list[str]:
    """A row as the text of each column of HEADER."""
    return [
        row.name,
        "-" if row.parameters is None else f"{row.parameters / 1e6:.1f} M",
        f"{row.nll:.3f}",
        f"{perplexity(row.nll):.2f}",
        _or_dash(row.forward_kl, ".3f"),
        _or_dash(row.agreement_top1, ".1%"),
        _or_dash(row.decode_tokens_per_s, ",.0f"),
    ]


def text_table(rows: Sequence[ModelRow]) -> str:
    """The closing table for a terminal."""
    return table(HEADER, [row_cells(row) for row in rows])


def samples_text(samples: Sequence[dict[str, Any]]) -> str:
    """The continuations of each prompt, model by model, for a terminal."""
    lines: list[str] = []
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        lines.append(f"\n{prompt!r} goes on")
        lines += [f"  {s['model']:15} {s['text']!r}" for s in samples if s["prompt"] == prompt]
    return "\n".join([*lines, ""])


def report_json(
    rows: Sequence[ModelRow],
    evaluation: dict[str, float],
    samples: Sequence[dict[str, Any]],
    config: dict[str, Any],
    provenance: dict[str, Any],
    *,
    history: Sequence[dict[str, Any]] = (),
    config_diff: str = "",
    study_command: str = STUDY_COMMAND,
) -> dict[str, Any]:
    """report.json of one training run (report.schema.json); page() makes report.html of it.

    evaluation: the held-out metrics at the end, which also stand flat under their names. history:
    the lines of metrics.jsonl. study_command: what would tell whether distillation helped.
    """
    absent = ("verdict", "slices", "behaviour", "calibration", "cost", "diagnose")
    return finite(
        {
            **evaluation,
            "schema": SCHEMA,
            "kind": "run",
            "statement": NO_VERDICT,
            "study_command": study_command,
            **dict.fromkeys(absent),
            "arms": [],
            "teacher": teacher_of(rows),
            "curves": [{"arm": "student", "seed": config.get("seed", 0), "points": points(history)}]
            if history
            else [],
            "metrics": {"student after": means(evaluation)} if evaluation else {},
            "options": [],
            "config": config,
            "config_diff": config_diff,
            "provenance": provenance,
            "models": [row._asdict() | {"perplexity": perplexity(row.nll)} for row in rows],
            "samples": list(samples),
            "table": text_table(rows),
        }
    )


def teacher_of(rows: Sequence[ModelRow]) -> dict[str, Any] | None:
    """What a run knows of its teacher; None where it has none."""
    found = [row for row in rows if row.name == "teacher"]
    return {"nll": found[0].nll, "parameters": found[0].parameters} if found else None


def means(evaluation: dict[str, float]) -> dict[str, Any]:
    """Metrics by their short names; one run gives no interval."""
    return {
        name.removeprefix("eval/"): {"mean": value, "low": None, "high": None}
        for name, value in evaluation.items()
    }


def points(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The learning curve of a run: about CURVE_POINTS lines, all evaluations and the last kept."""
    stride = max(1, len(history) // CURVE_POINTS)
    last = len(history) - 1
    return [
        {
            "step": line["step"],
            "flops": line.get("flops"),
            "nll": line.get("eval/nll"),
            "forward_kl": line.get("eval/forward_kl"),
            "loss": line.get("train/loss"),
        }
        for i, line in enumerate(history)
        if i % stride == 0 or i == last or "eval/nll" in line
    ]


def study_table(report: dict[str, Any]) -> str:
    """A study for a terminal: a line an arm, then the verdict at equal steps and equal FLOPs."""
    header = ("arm", "seeds", "NLL", "from", "to", "KL to teacher", "top-1 agreement", "FLOPs")
    of = lambda value, key: None if value is None else value[key]
    rows = [
        [
            arm["arm"],
            str(len(arm["seeds"])),
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
    return "\n".join([table(header, rows), "", *verdict_lines(report["verdict"])])


def verdict_lines(verdict: dict[str, Any] | None) -> list[str]:
    """A line for each comparison, and whether the student is fit to ship."""
    if verdict is None:
        return ["no verdict"]
    lines = [
        f"at {text}: {one['label']}. {one['reason']}"
        for name, text in COMPARISONS.items()
        if (one := verdict[name])
    ]
    return [*lines, f"fit to ship: {'yes' if verdict['ships'] else 'no'}"]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
