"""Anybody's scores as a table: what they look like changes nothing, and what is wrong is named."""

import json
import math
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest

from distill_jax.data.lm_eval_logs import read_sample_log
from distill_jax.data.score_files import READERS
from distill_jax.data.scores import read_scores
from distill_jax.types import UserError
from tests.data.score_tables import right_or_wrong, write, write_logs

ROWS = [
    {"arm": arm, "seed": seed, "document": document, "slice": part, "total": total, "weight": 4.0,
     "group": f"g{document % 2}"}
    for arm, total in (("kd", 1.25), ("sft", 2.5))
    for seed in (0, 1)
    for document in (7, 8, 9)
    for part in ("all", "code")
]  # fmt: skip
KINDS = tuple(READERS)
HEADER = "arm,seed,document,total\n"


def as_set(columns):
    names = sorted(columns)
    return names, sorted(zip(*(columns[name].tolist() for name in names), strict=True))


def without(name, rows=ROWS):
    return [{key: value for key, value in row.items() if key != name} for row in rows]


# --- what changes nothing ---


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_files_give_the_same_table(tmp_path, kind):
    columns = read_scores(str(write(tmp_path / f"s{kind}", ROWS))).columns
    for name in ("arm", "slice", "group"):
        assert columns[name].tolist() == [row[name] for row in ROWS]
    for name in ("seed", "document"):
        assert columns[name].tolist() == [str(row[name]) for row in ROWS]
    for name in ("total", "weight"):
        assert columns[name].dtype == np.float64
        assert columns[name].tolist() == [row[name] for row in ROWS]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [int, str, float, lambda i: f"{i}.0"])
def test_ids_are_the_same_as_numbers_and_as_texts(tmp_path, kind, ids):
    rows = [row | {"seed": ids(row["seed"]), "document": ids(row["document"])} for row in ROWS]
    columns = read_scores(str(write(tmp_path / f"s{kind}", rows))).columns
    assert as_set(columns) == as_set(read_scores(str(write(tmp_path / "a.jsonl", ROWS))).columns)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_rows_and_columns_and_further_columns_change_nothing(tmp_path, kind):
    expected = as_set(read_scores(str(write(tmp_path / f"s{kind}", ROWS))).columns)
    turned = [dict(reversed((row | {"more": "x"}).items())) for row in ROWS[::-1]]
    assert as_set(read_scores(str(write(tmp_path / f"s{kind}", turned))).columns) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pattern", ["{arm}/{seed}/*K", "{arm}/**/run-{seed}K", "{arm}-{seed}K"])
def test_arm_and_seed_may_stand_in_the_path(tmp_path, kind, pattern):
    place = pattern.replace("**", "deep/er").replace("*", "scores").replace("K", kind)
    for arm in ("kd", "sft"):
        for seed in (0, 1):
            path = tmp_path / place.format(arm=arm, seed=seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            own = [row for row in ROWS if (row["arm"], row["seed"]) == (arm, seed)]
            write(path, without("arm", without("seed", own)))
    read = read_scores(f"{tmp_path}/{pattern.replace('K', kind)}")
    assert len(read.files) == 4
    assert as_set(read.columns) == as_set(
        read_scores(str(write(tmp_path / "whole.jsonl", ROWS))).columns
    )


@pytest.mark.parametrize("pattern", ["run[12]-{seed}.csv", "run[!3]-?.csv", "*[!3]-{seed}.csv"])
def test_a_glob_means_what_it_means_elsewhere(tmp_path, pattern):
    folder = tmp_path / "a[1]"
    folder.mkdir()
    for number in (1, 2, 3):
        for seed in (0, 1):
            write(folder / f"run{number}-{seed}.csv", [r for r in ROWS if r["seed"] == seed][:1])
    with pytest.raises(UserError, match=r"run2-0\.csv row 2 repeats .*run1-0\.csv row 2"):
        read_scores(f"{tmp_path}/a[[]1]/{pattern}")
    write_logs(folder, right_or_wrong(documents=3, seeds=1))
    assert len(read_scores(str(folder)).files) == 2


def test_names_of_columns_that_users_have(tmp_path):
    rows = [
        {"arm": row["arm"], "seed": row["seed"], "doc_id": row["document"], "score": row["total"]}
        for row in ROWS[::2]
    ]
    columns = read_scores(str(write(tmp_path / "s.csv", rows))).columns
    assert columns["total"].tolist() == [row["score"] for row in rows]
    assert set(columns["weight"]) == {1.0}
    assert set(columns["slice"]) == {"all"}
    assert "group" not in columns


def test_a_metric_names_the_column_to_use(tmp_path):
    rows = [row | {"f1": row["total"] / 2} for row in ROWS]
    columns = read_scores(str(write(tmp_path / "s.csv", rows)), metric="f1").columns
    assert columns["total"].tolist() == [row["f1"] for row in rows]


def test_documents_that_have_one_slice_each_are_counted_whole_too(tmp_path):
    rows = [row | {"slice": "odd" if row["document"] % 2 else "even"} for row in ROWS[::2]]
    found = read_scores(str(write(tmp_path / "s.csv", rows))).columns
    both = [*rows, *(row | {"slice": "all"} for row in rows)]
    assert as_set(found) == as_set(read_scores(str(write(tmp_path / "b.csv", both))).columns)


def test_csv_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "s.csv"
    text = 'arm, seed ,document,total\r\nkd,0,"a, ""b""\nc", 1.5\r\n\r\nsft,0,d\u2028e,True\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    columns = read_scores(str(path)).columns
    assert columns["document"].tolist() == ['a, "b"\nc', "d\u2028e"]
    assert columns["total"].tolist() == [1.5, 1.0]
    assert columns["seed"].tolist() == ["0", "0"]


def test_a_separator_of_lines_within_a_text_of_jsonl_is_no_new_line(tmp_path):
    rows = [row | {"document": f"a\u2028b\x85{row['document']}"} for row in ROWS]
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    assert len(read_scores(str(path)).columns["arm"]) == len(ROWS)


def test_many_rows_take_seconds(tmp_path):
    arm, seed, document = np.unravel_index(np.arange(300_000), (3, 4, 25_000))
    lines = [f"a{a},{s},d{d},1.5" for a, s, d in zip(arm, seed, document, strict=True)]
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "\n".join(lines) + "\n")
    start = time.process_time()
    assert len(read_scores(str(path)).columns["arm"]) == 300_000
    assert time.process_time() - start < 6


# --- what is wrong is named, with its row and a remedy ---

BAD = {
    "no column seed (its columns: arm, document, total): runs with other seeds": (
        "s.csv", "arm,document,total\nkd,a,1\n"),
    "no column arm": ("s.csv", "seed,document,total\n0,a,1\n"),
    "no column document or doc_id or example": ("s.csv", "arm,seed,total\nkd,0,1\n"),
    "no column total or score or value (its columns: arm, seed, document, points)": (
        "s.csv", "arm,seed,document,points\nkd,0,a,1\n"),
    "separate columns by commas, not ';'": (
        "s.csv", "arm;seed;document;total\nkd;0;a;1\n"),
    "columns score and value: name one of them total": (
        "s.csv", "arm,seed,document,score,value\nkd,0,a,1,2\n"),
    "a column score and weights: name it total if it is the sum": (
        "s.csv", "arm,seed,document,score,weight\nkd,0,a,1,2\n"),
    "two columns 'total'": ("s.csv", "arm,seed,document,total,total\nkd,0,a,1,2\n"),
    "s.csv row 3: total is 'good': give a finite number": (
        "s.csv", HEADER + "kd,0,a,1\nkd,0,b,good\n"),
    "s.csv row 2: total is '1,5'": ("s.csv", HEADER + 'kd,0,a,"1,5"\n'),
    "s.csv row 2: total is ''": ("s.csv", HEADER + "kd,0,a,\n"),
    "s.csv row 2: total is 'nan'": ("s.csv", HEADER + "kd,0,a,nan\n"),
    "s.jsonl line 3: total is 'nan'": (
        "s.jsonl", '{"arm":"kd","seed":0,"document":1,"total":1}\n\n'
        '{"arm":"kd","seed":0,"document":2,"total":NaN}\n'),
    "s.jsonl line 1: total is 'None'": (
        "s.jsonl", '{"arm":"kd","seed":0,"document":1,"total":null}'),
    "s.jsonl line 1: document is a list": (
        "s.jsonl", '{"arm":"kd","seed":0,"document":[1],"total":1}'),
    "s.jsonl line 1: total is '[1]'": (
        "s.jsonl", '{"arm":"kd","seed":0,"document":1,"total":[1]}'),
    "s.csv row 2: seed is empty": ("s.csv", HEADER + "kd,,a,1\n"),
    "s.csv row 3: weight is -2": (
        "s.csv", "arm,seed,document,total,weight\nkd,0,a,1,2\nkd,0,b,1,-2\n"),
    "s.csv row 2: total is -7e+302: give a number from -1e+100 to 1e+100": (
        "s.csv", HEADER + "kd,0,a,-7e302\n"),
    "s.csv row 2: weight is 1e-300: give the number of": (
        "s.csv", "arm,seed,document,total,weight\nkd,0,a,1,1e-300\n"),
    "s.csv row 2: weight is 1e+308: give a number from": (
        "s.csv", "arm,seed,document,total,weight\nkd,0,a,1,1e308\n"),
    "s.jsonl line 1: total is '1000": (
        "s.jsonl", '{"arm":"kd","seed":0,"document":1,"total":1' + "0" * 400 + "}"),
    "s.csv row 3 has 3 fields and the header has 4": ("s.csv", HEADER + "kd,0,a,1\nkd,0,b\n"),
    "s.csv row 2 has 5 fields": ("s.csv", HEADER + "kd,0,a,b,1\n"),
    "s.csv is empty": ("s.csv", ""),
    "s.csv holds no rows": ("s.csv", HEADER),
    "s.jsonl holds no rows": ("s.jsonl", "\n"),
    "s.jsonl line 2: not JSON": (
        "s.jsonl", '{"arm":"kd","seed":0,"document":1,"total":1}\n{"arm":\n'),
    "s.jsonl line 1 is a list": ("s.jsonl", "[1]\n"),
    "s.csv is not UTF-8": ("s.csv", b"arm,seed,document,total,\xff\n"),
    "s.csv is not UTF-8 (byte 29)": ("s.csv", HEADER.encode() + b"kd,0,\xff,1\n"),
    "s.parquet: unreadable parquet": ("s.parquet", "PAR1"),
    "suffix '.tsv'": ("s.tsv", HEADER + "kd,0,a,1\n"),
    "suffix ''": ("s", HEADER + "kd,0,a,1\n"),
    "s.csv row 4 repeats": (
        "s.csv", HEADER + "kd,0,a,1\nkd,0,b,1\nkd,0,b,1\nkd,0,a,1\n"),
    "s.jsonl line 2 repeats": (
        "s.jsonl", '{"arm":"kd","seed":0,"document":1,"total":1}\n'
        '{"arm":"kd","seed":"0","document":"1","total":2}\n'),
    "add rows of slice all": (
        "s.csv", "arm,seed,document,total,slice\nkd,0,a,1,x\nkd,0,a,1,y\n"),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_with_the_row(tmp_path, message):
    name, content = BAD[message]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_scores(str(path))
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "source is empty"),
        ("DIR/none.csv", "no file is"),
        ("DIR", r"\{arm\}/\{seed\}/\*\*/samples_\*\.jsonl"),
        ("DIR/{model}/x.csv", r"\{model\}: only \{arm\} and \{seed\} are read"),
    ],
)
def test_a_source_that_is_none(tmp_path, source, message):
    with pytest.raises(UserError, match=message):
        read_scores(source.replace("DIR", str(tmp_path)))


def test_files_of_other_columns_are_refused(tmp_path):
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.csv", without("weight"))
    with pytest.raises(UserError, match=r"a\.csv and .*b\.csv differ in the column weight"):
        read_scores(f"{tmp_path}/*.csv")


# --- lm-evaluation-harness ---


def test_logs_are_scores_by_task_and_example(tmp_path):
    rows = right_or_wrong(documents=20, seeds=2)
    write_logs(tmp_path / "one", rows)
    read = read_scores(f"{tmp_path}/one")
    assert (read.metric, read.unit, read.higher_is_better) == ("acc,none", "acc", True)
    assert set(read.columns["slice"]) == {"all"}
    assert not read.notes
    found = zip(read.columns["arm"], read.columns["seed"], read.columns["total"], strict=True)
    assert sorted(found) == sorted((r["arm"], str(r["seed"]), float(r["total"])) for r in rows)
    assert len(set(read.columns["document"])) == len(set(read.columns["group"])) == 20
    other = read_scores(f"{tmp_path}/one/{{arm}}/{{seed}}/*/samples_*.jsonl", metric="acc_norm")
    assert other.columns["total"].tolist() == (1 - read.columns["total"]).tolist()


def test_several_tasks_are_slices_and_equal_examples_one_group(tmp_path):
    rows = right_or_wrong(documents=10, seeds=2)
    for task in ("tiny_a", "tiny_b", "large"):
        write_logs(tmp_path, rows, task=task)
    columns = read_scores(str(tmp_path)).columns
    assert set(columns["slice"]) == {"all", "tiny_a", "tiny_b", "large"}
    assert len(set(columns["document"])) == 30
    assert len(set(columns["group"])) == 10
    assert set(read_scores(str(tmp_path), task="tiny_*").columns["slice"]) == {
        "all", "tiny_a", "tiny_b"
    }  # fmt: skip
    with pytest.raises(UserError, match="the logs have large, tiny_a, tiny_b"):
        read_scores(str(tmp_path), task="huge")
    with pytest.raises(UserError, match="has no metric f1,none: choose one of acc,none, acc_norm"):
        read_scores(str(tmp_path), metric="f1")


def test_a_task_evaluated_twice_into_one_place_is_refused(tmp_path):
    rows = right_or_wrong(documents=5, seeds=1)
    write_logs(tmp_path, rows)
    write_logs(tmp_path, rows, time="2026-01-03T00-00-00.000001")
    with pytest.raises(UserError, match=r"2026-01-03.* line 1 repeats .*2026-01-02.* line 1"):
        read_scores(str(tmp_path))


def test_other_prompts_are_noted(tmp_path):
    rows = right_or_wrong(documents=5, seeds=1)
    write_logs(tmp_path, rows)
    path = next((tmp_path / "kd").rglob("samples_*"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(x | {"prompt_hash": "other"}) + "\n" for x in lines))
    (note,) = read_scores(str(tmp_path)).notes
    assert "in 5 cases for 5 examples" in note


HARNESS = """
import json, sys
from pathlib import Path
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from tests.evals.test_lm_eval_model import TASKS, write_tasks
root = Path(sys.argv[1])
write_tasks(root)
with open(root / "tiny_written.yaml", "a") as file:
    file.write("filter_list:\\n")
    for name in ("strict", "flexible"):
        file.write(f"  - name: {name}\\n    filter:\\n      - function: take_first\\n")
tracker = EvaluationTracker(output_path=str(root / "kd" / "0"))
results = simple_evaluate(
    model="dummy", tasks=list(TASKS), bootstrap_iters=0, log_samples=True,
    task_manager=TaskManager(include_path=str(root), include_defaults=False),
    evaluation_tracker=tracker,
)
samples = results.pop("samples")
tracker.save_results_aggregated(results=results, samples=samples)
for task in results["configs"]:
    tracker.save_results_samples(task_name=task, samples=samples[task])
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """What the harness itself writes of a model that guesses."""
    root = tmp_path_factory.mktemp("logs")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(root / "cache")}
    run = subprocess.run(
        [sys.executable, "-c", HARNESS, str(root)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | offline,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return root


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is absent")
def test_the_harness_own_files_are_read(logged):
    results = json.loads(next(logged.rglob("results_*.json")).read_text())["results"]
    read = lambda task, metric="": read_scores(str(logged), task=task, metric=metric)
    chosen = read("tiny_choice")
    assert (chosen.metric, chosen.higher_is_better) == ("acc,none", True)
    assert chosen.columns["total"].mean() == pytest.approx(results["tiny_choice"]["acc,none"])
    norm = read("tiny_choice", "acc_norm").columns["total"].mean()
    assert norm == pytest.approx(results["tiny_choice"]["acc_norm,none"])
    assert read("tiny_written").metric == "exact_match,strict"
    assert len(read("tiny_written", "exact_match,flexible").columns["arm"]) == 24
    rolling = read("tiny_rolling")
    assert (rolling.unit, rolling.higher_is_better) == ("nats per word", False)
    mean = rolling.columns["total"].sum() / rolling.columns["weight"].sum()
    assert math.exp(mean) == pytest.approx(results["tiny_rolling"]["word_perplexity,none"])
    bits = read("tiny_rolling", "bits_per_byte").columns
    mean = bits["total"].sum() / bits["weight"].sum()
    assert mean == pytest.approx(results["tiny_rolling"]["bits_per_byte,none"])
    with pytest.raises(UserError, match=r"choose one metric by config\.verdict\.metric"):
        read_scores(str(logged))


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is absent")
def test_the_hash_of_an_example_is_the_harness_own(logged, tmp_path):
    path = next(logged.rglob("samples_tiny_choice_*"))
    expected = read_sample_log(path, "").table.columns["group"]
    lines = [json.loads(line) for line in path.read_text().split("\n") if line]
    for line in lines:
        del line["doc_hash"], line["metrics"]
    older = tmp_path / path.name
    older.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = read_sample_log(older, "")
    assert log.table.columns["group"] == expected
    assert (log.metric, log.higher_is_better) == ("acc,none", None)
