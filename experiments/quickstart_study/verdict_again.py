"""The verdicts of this study by the present rules, from report.json alone; prints both.

    python -m experiments.quickstart_study.verdict_again

The per-token records are not kept here. The report has each document's mean over seeds and each
seed's mean over documents, which fix a table up to what differs by seed and document at once. That
part is taken as 0, so its share of the documents' variance is not taken out of the interval, which
is a little wider for it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from distill_jax.study.verdict import verdict

REPORT = Path(__file__).with_name("report.json")
COLUMNS = ("arm", "seed", "document", "total", "weight")


def rows_of(report: dict) -> Iterator[tuple]:
    """A row per arm, seed and held-out document; the total is of NLL in nats."""
    for arm in report["arms"]:
        parts = report["by_slice"][arm["arm"]]
        for name, part in parts.items():
            if name.startswith("label:"):  # each document of this text has a label of its own
                for run in arm["runs"]:
                    nll = part["nll"] + run["nll"] - parts["all"]["nll"]
                    tokens = part["tokens"]
                    yield arm["arm"], run["seed"], name, tokens * nll, tokens


def main() -> None:
    report = json.loads(REPORT.read_text())
    table = dict(zip(COLUMNS, map(list, zip(*rows_of(report), strict=True)), strict=True))
    for baseline, before in (("sft", "equal_steps"), ("sft_flops", "equal_flops")):
        old = report["verdict"][before]
        print(f"kd - {baseline}")
        print(f"  as reported: {old['label']}, {old['low']:+.4f} to {old['high']:+.4f}")
        for look in (None, 1):
            v = verdict(table, baseline=baseline, margin=0.01, slice_margin=0.05, look=look)
            low, high = v.interval
            print(f"  look {look}: {v.label}, {v.effect:+.4f} ({low:+.4f} to {high:+.4f})")
            print(f"    confidence {v.confidence:.0%}, {v.effective_documents:.2f} documents")
            print(*(f"    {warning}" for warning in v.warnings), sep="\n")
            print("   ", v.reason)


if __name__ == "__main__":
    main()
