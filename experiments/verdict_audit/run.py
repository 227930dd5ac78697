"""All questions, in a table and as lines of JSON.

python -m experiments.verdict_audit.run --studies 400 --out experiments/verdict_audit/results.jsonl
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

from distill_jax.progress import table
from experiments.verdict_audit import edges, rates, worlds
from experiments.verdict_audit.tally import Tally

SIZES = ((3, 10), (3, 50), (5, 25), (5, 200), (10, 100), (10, 2000))  # seeds, documents
TWICE = (
    ("normal", 3, 50), ("normal", 5, 100), ("t(3)", 3, 50), ("interaction", 5, 50),
    ("accuracy", 4, 600),
)  # fmt: skip
MOST_ROWS = 4000  # arms x seeds x documents of one study, above which fewer are drawn

# name: (question, its share of --studies)
QUESTIONS = {
    **{
        f"boundary, {name}, {seeds} x {documents}": (
            partial(rates.boundary, name, seeds, documents),
            0.6 * min(1.0, MOST_ROWS / (2 * seeds * documents)),
        )
        for name in worlds.WORLDS
        for seeds, documents in SIZES
    },
    **{
        f"power, {name}, {seeds} x {documents}": (partial(rates.power, name, seeds, documents), 0.5)
        for name, seeds, documents in TWICE
    },
    "planning": (partial(rates.planning, 3, 12), 0.5),
    "planning from five": (partial(rates.planning, 5, 12), 0.5),
    "adding seeds": (partial(rates.adding_seeds, "seeds alone", 20), 2.0),
    "adding seeds, documents vary more": (partial(rates.adding_seeds, "normal", 60), 1.0),
    "slices at the margin": (partial(edges.null_slices, 5, 100, 30), 0.5),
    "slices at the margin, 3 seeds": (partial(edges.null_slices, 3, 100, 30), 0.5),
    "slices without an effect": (partial(edges.null_slices, 5, 100, 30, harm=0.0), 0.25),
    **{
        f"heavy tokens, {documents}": (partial(edges.heavy_tokens, 5, documents), 0.5)
        for documents in (100, 200, 400)
    },
    "absent slices": (partial(edges.absent_slices, 5, 100), 1.0),
    "null arms": (partial(rates.null_arms, 3, 30), 0.5),
    "null arms, 5 seeds": (partial(rates.null_arms, 5, 30), 0.5),
    "discrete power": (rates.discrete_power, 0.1),
    "sure answers": (rates.sure_answers, 0.15),
    "copied seeds": (edges.copied_seeds, 0.05),
    "copied documents": (edges.copied_documents, 1.0),
    "renamed": (edges.renamed, 0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=400, help="of most questions")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--only", default="", help="questions whose name has this in it")
    options = parser.parse_args()
    tallies = []
    began = time.process_time()
    for name, (question, share) in QUESTIONS.items():
        if options.only in name:
            tallies += question(studies=max(4, round(options.studies * share)))
    options.out.write_text("".join(json.dumps(line(t)) + "\n" for t in tallies))
    print(shown(tallies))
    print(f"{time.process_time() - began:,.0f} s of processor time")


def line(tally: Tally) -> dict:
    low, high = tally.bounds
    return {**tally._asdict(), "low": round(low, 5), "high": round(high, 5), "kept": tally.kept}


def shown(tallies: list[Tally]) -> str:
    """Two tables: the margin's boundary, a row for a world; and the rest, a row for a question.

    Sizes of one world are added up.
    """
    rows: dict[tuple[str, str], list[Tally]] = {}
    for tally in tallies:
        rows.setdefault((tally.question, tally.world), []).append(tally)
    sums = {key: added(same) for key, same in rows.items()}
    cells = []
    for world in dict.fromkeys(world for question, world in sums if question in rates.BOUNDARY):
        of = [sums[question, world] for question in rates.BOUNDARY]
        width = "" if of[4].mean is None else f"{of[4].mean:.3f}"
        cells.append((world, f"{of[5].studies:,}", *map(rate, of), width))
    first = table(("true effect at the margin", "studies", *rates.BOUNDARY, "width"), cells)
    cells = [
        (
            f"{t.question}: {t.world}", f"{t.studies:,}", rate(t),
            promise(t),
            "" if t.mean is None else f"{t.mean:.4g}",
        )
        for t in sums.values() if t.question not in rates.BOUNDARY
    ]  # fmt: skip
    second = table(("question", "studies", "rate", "promised", "mean"), cells)
    return f"{first}\n\n{second}\n"


def promise(tally: Tally) -> str:
    if tally.at_most is not None:
        return f"at most {tally.at_most:.1%}"
    return "" if tally.at_least is None else f"at least {tally.at_least:.1%}"


def added(same: list[Tally]) -> Tally:
    means = [t.mean for t in same if t.mean is not None]
    return same[0]._replace(
        count=sum(t.count for t in same),
        studies=sum(t.studies for t in same),
        mean=sum(means) / len(means) if means else None,
    )


def rate(tally: Tally) -> str:
    """The rate with its 95% interval; an exclamation mark where the promise is not kept."""
    if not tally.studies:
        return "-"
    low, high = tally.bounds
    broken = "" if tally.kept else "!"
    return f"{broken}{tally.count / tally.studies:.1%} ({low:.1%}, {high:.1%})"


if __name__ == "__main__":
    main()
