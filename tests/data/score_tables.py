"""Scores of made-up models, as files of every kind."""

import hashlib
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet


def right_or_wrong(gain=0.087, *, arms=("kd", "sft"), seeds=3, documents=2000, seed=0):
    """Rows of an accuracy study in which the first arm is right more often by `gain`.

    How hard an example is, it is for all models.
    """
    r = np.random.default_rng(seed)
    level_E = np.clip(r.beta(1.2, 1.2, documents), 0.1, 0.9)
    rows = []
    for s in range(seeds):
        for arm in arms:
            right_E = r.random(documents) < level_E + gain * (arm == arms[0])
            rows += [
                {"arm": arm, "seed": s, "document": f"q{e}", "total": int(right)}
                for e, right in enumerate(right_E)
            ]
    return rows


def write(path, rows):
    """The rows as a file of the kind that its suffix names."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    (pa.csv.write_csv if path.suffix == ".csv" else pa.parquet.write_table)(table, path)
    return path


def write_logs(root, rows, *, task="tiny", time="2026-01-02T03-04-05.678901"):
    """The rows as lm-evaluation-harness 0.4 logs them, below ARM/SEED/MODEL."""
    runs = {}
    for row in rows:
        runs.setdefault((row["arm"], row["seed"]), []).append(row)
    for (arm, seed), own in runs.items():
        folder = root / str(arm) / str(seed) / "some__model"
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(sample(n, row)) + "\n" for n, row in enumerate(own)]
        (folder / f"samples_{task}_{time}.jsonl").write_text("".join(lines))
        path = folder / f"results_{time}.json"
        results = json.loads(path.read_text()) if path.exists() else {"higher_is_better": {}}
        results["higher_is_better"][task] = {"acc": True, "acc_norm": True}
        path.write_text(json.dumps(results))
    return root


def sample(number, row):
    """A line of samples_TASK_TIME.jsonl."""
    digest = lambda text: hashlib.sha256(text.encode()).hexdigest()
    doc = {"question": row["document"], "choices": ["a", "b"], "label": 0}
    return {
        "doc_id": number,
        "doc": doc,
        "target": "0",
        "arguments": {"gen_args_0": {"arg_0": row["document"], "arg_1": " a"}},
        "resps": [[["-1.5", "False"]], [["-1.75", "False"]]],
        "filtered_resps": [["-1.5", "False"], ["-1.75", "False"]],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": digest(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": digest(row["document"]),
        "target_hash": digest("0"),
        "acc": float(row["total"]),
        "acc_norm": 1.0 - row["total"],
    }
