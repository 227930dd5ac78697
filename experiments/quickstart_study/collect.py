"""Keeps what a finished study found: its lines, its report without the text of others, its charts.

    python -m experiments.quickstart_study.collect runs/quickstart_study [DIRECTORY]

The report of a study quotes held-out documents. They belong to their authors, so passages, worst
examples and continuations are left out of the copy; every number of the rest stays.
"""

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUOTING = ("worst", "passages")  # parts of `diagnose`


def collect(study: Path, target: Path = HERE) -> None:
    """Copies results.jsonl, report.json and the charts of a study's workdir."""
    report = json.loads((study / "report.json").read_text())
    report["samples"] = []
    if report["diagnose"]:
        report["diagnose"] |= {part: [] for part in QUOTING}
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (target / "report.json").write_text(text + "\n")
    for path in (study / "results.jsonl", *sorted(study.glob("*.svg"))):
        shutil.copyfile(path, target / path.name)


if __name__ == "__main__":
    collect(Path(sys.argv[1]), *map(Path, sys.argv[2:3]))
