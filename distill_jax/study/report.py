"""The page and the numbers of one run: report.json, and report.html without any network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from distill_jax.evals.likelihood import perplexity
from distill_jax.progress import table

# A run alone has no arm to compare with, and its page must not suggest otherwise.
NO_VERDICT = (
    "This is a single run. It shows how close the student is to its teacher on held-out text;"
    " it cannot tell whether distillation helped against plain fine-tuning at equal steps or"
    " equal FLOPs."
)


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
    or_dash = lambda value, form: "-" if value is None else format(value, form)
    return [
        row.name,
        "-" if row.parameters is None else f"{row.parameters / 1e6:.1f} M",
        f"{row.nll:.3f}",
        f"{perplexity(row.nll):.2f}",
        or_dash(row.forward_kl, ".3f"),
        or_dash(row.agreement_top1, ".1%"),
        or_dash(row.decode_tokens_per_s, ",.0f"),
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
    samples: Sequence[dict[str, str]],
    config: dict[str, Any],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Every number of the page; the held-out metrics stand flat, under their names."""
    return {
        **evaluation,
        "statement": NO_VERDICT,
        "table": text_table(rows),
        "models": [row._asdict() | {"perplexity": perplexity(row.nll)} for row in rows],
        "samples": list(samples),
        "config": config,
        "provenance": provenance,
    }


def report_html(
    rows: Sequence[ModelRow],
    history: Sequence[dict[str, Any]],
    samples: Sequence[dict[str, str]],
    config_diff: str,
    provenance: dict[str, Any],
) -> str:
    """The page. Everything a model or a data set wrote is escaped."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined
    )
    curves = [
        curve("Training loss", points(history, "train/loss"), "nats a token"),
        curve(
            "Held-out KL(teacher || student)", points(history, "eval/forward_kl"), "nats a token"
        ),
        curve("Held-out NLL", points(history, "eval/nll"), "nats a token"),
    ]
    return environment.get_template("report.html.j2").render(
        statement=NO_VERDICT,
        header=HEADER,
        rows=[row_cells(row) for row in rows],
        curves=[c for c in curves if c],
        samples=samples,
        config_diff=config_diff,
        provenance=provenance,
    )


def points(history: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, where a line has it."""
    return [(line["step"], line[name]) for line in history if line.get(name) is not None]


def curve(title: str, data: Sequence[tuple[int, float]], unit: str) -> dict[str, Any] | None:
    """Coordinates of a line plot in a 600 x 200 box; None with fewer than two points."""
    if len(data) < 2:
        return None
    xs, ys = zip(*data, strict=True)
    low, high = min(ys), max(ys)
    span = (high - low) or 1.0
    width = (xs[-1] - xs[0]) or 1
    place = lambda x, y: f"{60 + 520 * (x - xs[0]) / width:.1f},{170 - 150 * (y - low) / span:.1f}"
    return {
        "title": title,
        "unit": unit,
        "line": " ".join(place(x, y) for x, y in data),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "first": xs[0],
        "last": xs[-1],
        "end": f"{ys[-1]:.4g}",
    }
