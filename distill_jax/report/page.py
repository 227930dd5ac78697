"""report.html from the numbers of report.json: one file, no network, no script.

Every number and every text of the report is an element that carries the path where it stands
there (data-path: keys joined by `.`; in a key `~` is `~0` and `.` is `~1`), numbers their full
precision too (data-value). A name that is shown in words (words.py) has its path in data-word.
Nothing is computed here: what is shown is what the report holds.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from distill_jax import words
from distill_jax.evals.bounds import SHARE, bounds_of
from distill_jax.report import charts, learning_curves, svg_models
from distill_jax.report.charts import TEMPLATES, tone
from distill_jax.report.shown import Shown, leaves
from distill_jax.visible import visible


def page(report: dict[str, Any]) -> str:
    """The page of a study or of a single run; everything a model or a data set wrote is escaped.

    Letters that steer or turn what is shown stand as codes (visible.py).
    """
    report = finite(report)
    sections = [s for s in SECTIONS if s.present(report)]
    left_out = [s for s in SECTIONS if s not in sections]
    return render("report.html.j2", report, sections=sections, left_out=left_out)


def render(template: str, report: dict[str, Any], **more: Any) -> str:
    """A template of a report, which sees it as `r`, and what is given more."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    shown = Shown(report)
    environment.globals.update(
        n=shown.number, t=shown.text, prose=shown.prose, command=shown.command,
        k=shown.key, v=shown.value, yes=shown.yes,
        w=shown.word, kw=shown.key_word, some=shown.some, plural_s=shown.plural,
        interval=shown.interval, ends=shown.ends, leaves=leaves, charts=charts,
        curves=learning_curves, meter=svg_models.meter, heat=heat, tone=tone, glyph=glyph,
        costs=COSTS, by_prompt=by_prompt, measured=measured, style_of=style_of,
        model_columns=MODELS, named=words.named, labelled=words.labelled,
    )  # fmt: skip
    return environment.get_template(template).render(r=report, **more)


def _shown(value: Any) -> Any:
    """What a template writes, with the letters that nobody would see."""
    if isinstance(value, Markup):
        return Markup(visible(value))
    return visible(value) if isinstance(value, str) else value


def finite(value: Any) -> Any:
    """The same with None for every number that is infinite or not a number."""
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def style_of(name: str) -> str:
    """How the values of a metric are written: shares as percentages, but for calibration errors."""
    return "share" if bounds_of(name) == SHARE and not name.endswith("ece") else "metric"


def measured(rows: list[dict[str, Any]], columns: dict[str, Any]) -> dict[str, Any]:
    """The columns in which any row has a value."""
    return {k: column for k, column in columns.items() if any(r.get(k) is not None for r in rows)}


def heat(value: float | None) -> str:
    """The class of a token's background: h0 up to 0.1 nats, h1, h2, h3 up to 0.3, 1 and 3, h4."""
    return f"h{sum(value > end for end in HEAT)}" if value is not None else "h0"


def by_prompt(samples: list[dict[str, Any]]) -> list[list[int]]:
    """The places of the samples, those of one prompt together."""
    prompts: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        prompts.setdefault(sample["prompt"], []).append(i)
    return list(prompts.values())


def glyph(text: str) -> str:
    """A sign for a token of which nothing could be seen."""
    return (
        ""
        if text.strip()
        else "".join(GLYPHS.get(c, "\N{OPEN BOX}") for c in text) or "\N{EMPTY SET}"
    )


class Section(NamedTuple):
    """A part of the page: its template, its heading, and whether the report has anything for it."""

    name: str
    title: str
    present: Callable[[dict[str, Any]], Any]
    why_not: str  # of a study


HEAT = (0.1, 0.3, 1.0, 3.0)  # nats
GLYPHS = {"\n": "\N{RETURN SYMBOL}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"}

# Columns of the closing table of a run: words and style of each key.
MODELS = {
    "parameters": ("parameters", "letters"),
    "active_parameters": ("of them per token", "letters"),
    "nll": ("NLL", "nats"),
    "perplexity": ("perplexity", "cents"),
    "forward_kl": ("KL to the teacher", "nats"),
    "agreement_top1": ("agreement", "share"),
    "decode_tokens_per_s": ("tokens/s", "speed"),
}

# Rows of the table of serving: words and style of each key; another key stands under its own name.
COSTS = {
    "parameters": ("parameters", "letters"),
    "bytes": ("bytes", "bytes"),
    "first_token_ms": ("first token, ms", "ms"),
    "decode_tokens_per_s_1": ("tokens/s, batch of one", "speed"),
    "decode_tokens_per_s_8": ("tokens/s, batch of eight", "speed"),
    "cost_per_million_tokens": ("per million tokens", "money"),
}

# In the order of the page. A section stands in templates/NAME.j2.
SECTIONS = (
    Section("evidence", "Evidence", lambda r: r["arms"] or r["curves"] or r["metrics"],
            "no arm has finished"),
    Section("slices", "Slices", lambda r: r["slices"], "no slices were registered for this study"),
    Section("behaviour", "Behaviour", lambda r: r["behaviour"] or r["samples"],
            "the models were given no prompts to continue"),
    Section("calibration", "Calibration", lambda r: (r["calibration"] or {}).get("models"),
            "no records of confidence were kept"),
    Section("cost", "Cost and quality", lambda r: r["cost"], "serving was not timed"),
    Section("diagnose", "Diagnose", lambda r: r["diagnose"],
            "there is no teacher whose distribution the student could differ from"),
    Section("options", "Options", lambda r: r["options"],
            "no number of this study passed a trigger"),
    Section("defaults", "What differs from the defaults", lambda r: True, ""),
    Section("provenance", "Provenance", lambda r: r["provenance"], "nothing was recorded"),
)  # fmt: skip
