"""The job verdict: anybody's scores in, a label, its reason and a page out."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from configs.base import get_config
from distill_jax.config import load_base
from distill_jax.files import opened, sealed
from distill_jax.jobs.run import run_job
from distill_jax.progress import Progress
from distill_jax.report import verdict as report
from distill_jax.types import Forbidden, UserError
from tests import cli
from tests.data.score_tables import right_or_wrong, write, write_logs
from tests.report.html_walk import Walk, agrees, stray

SCHEMA = json.loads((Path(report.__file__).parent / "verdict.schema.json").read_text())
ACCURACY = {"unit": "accuracy", "higher_is_better": "true", "margin": 0.02}


def judge(directory, source, gate=False, **keys):
    """report.json of the job, run in this process."""
    c = get_config("verdict")
    c.study.gate = gate
    c.verdict.update({"source": str(source), **keys})
    run_job(c, load_base(), directory, Progress())
    return json.loads((directory / "report.json").read_text())


@pytest.fixture(scope="module")
def accuracy():
    """2,000 examples, right or wrong, of three seeds: kd is right on 8.7% more of them."""
    return right_or_wrong()


def flags(source, **keys):
    keys = {"source": source, **keys}
    return ["--config.job=verdict", *(f"--config.verdict.{k}={v}" for k, v in keys.items())]


def test_accuracy_from_a_csv_on_the_command_line(tmp_path, accuracy):
    source = write(tmp_path / "s.csv", accuracy)
    done = cli.run(f"--workdir={tmp_path / 'v'}", *flags(source, **ACCURACY))
    assert done.returncode == 0, done.stderr
    assert "\nHELPS. kd - sft is +0.0" in done.stdout
    assert "warning: 3 seeds can miss bad runs" in done.stdout
    assert "fit to ship: yes" in done.stdout
    assert {p.name for p in (tmp_path / "v").iterdir()} == {
        ".lock", "config.json", "config_diff.txt", "report.html", "report.json"
    }  # fmt: skip
    assert json.loads((tmp_path / "v" / "config.json").read_text())["verdict.margin"] == 0.02


def test_the_gate_ends_with_its_own_code(tmp_path, accuracy):
    source = write(tmp_path / "s.parquet", accuracy)
    keys = ACCURACY | {"treatment": "sft", "baseline": "kd"}
    done = cli.run(
        f"--workdir={tmp_path / 'v'}", *flags(source, **keys), "--config.study.gate=true"
    )
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("error: the verdict forbids shipping: see ")
    assert "\nWORSE. " in done.stdout
    assert (tmp_path / "v" / "report.html").exists()


def test_a_mistake_is_one_line_and_claims_no_directory(tmp_path, accuracy):
    source = write(tmp_path / "s.csv", accuracy[:-1])
    workdir = f"--workdir={tmp_path / 'v'}"
    done = cli.run(workdir, *flags(source, **ACCURACY | {"treatment": "kdd"}))
    assert done.returncode == 2
    assert done.stderr == "error: config.verdict.treatment is 'kdd': did you mean kd?\n"
    assert not (tmp_path / "v" / "config.json").exists()


def test_files_of_all_kinds_and_logs_give_the_same_verdict(tmp_path, accuracy):
    found = [
        judge(tmp_path / kind, write(tmp_path / f"s{kind}", accuracy), **ACCURACY)["verdict"]
        for kind in (".csv", ".parquet", ".jsonl")
    ]
    logs = write_logs(tmp_path / "logs", accuracy)
    found.append(judge(tmp_path / "v", logs, margin=0.02, unit="accuracy")["verdict"])
    assert found[0]["label"] == "HELPS"
    assert found[0]["low"] > 0.02
    assert found[0]["higher_is_better"] is True
    for one in found[1:]:
        assert one == found[0]


def test_the_order_of_rows_changes_nothing(tmp_path, accuracy):
    order = np.random.default_rng(0).permutation(len(accuracy))
    turned = [accuracy[i] for i in order]
    one, other = (
        judge(tmp_path / name, write(tmp_path / f"{name}.csv", rows), **ACCURACY)
        for name, rows in (("a", accuracy), ("b", turned))
    )
    for part in ("verdict", "seeds", "arms", "slices"):
        assert one[part] == other[part]


def likelihoods(arms, seeds=4, documents=60, seed=0):
    """NLL of documents of several tokens in two slices. arms: name -> effect on (a, b)."""
    r = np.random.default_rng(seed)
    weight_E, level_E = r.integers(20, 60, documents), r.gamma(9.0, 0.3, documents)
    rows = []
    for s in range(seeds):
        for arm, effects in arms.items():
            noise_E = r.normal(0, 0.02, documents)
            for e in range(documents):
                for part, effect in zip("ab", effects, strict=True):
                    half = float(weight_E[e])
                    nll = half * float(level_E[e] + effect + noise_E[e])
                    rows.append((arm, s, e, part, nll, half))
                whole = rows[-1][4] + rows[-2][4]
                rows.append((arm, s, e, "all", whole, 2 * half))
    names = ("arm", "seed", "document", "slice", "total", "weight")
    return [dict(zip(names, row, strict=True)) for row in rows]


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """A report with harm to a slice, further arms, a teacher, and a note."""
    root = tmp_path_factory.mktemp("sliced")
    arms = {"kd": (-0.5, 0.3), "sft": (0.0, 0.0), "hot": (-0.8, 0.3), "ko": (-0.5, 0.3),
            "teacher": (-0.9, -0.9)}  # fmt: skip
    rows = [r for r in likelihoods(arms) if (r["arm"], r["seed"]) != ("ko", 3)]
    return judge(root, write(root / "s.parquet", rows)), (root / "report.html").read_text()


def test_slices_and_further_arms_are_judged_too(sliced):
    found, _ = sliced
    assert found["verdict"]["label"] == "NEW FAILURE MODE IN b"
    assert found["verdict"]["unit"] == "nats per token"
    assert (found["verdict"]["margin"], found["verdict"]["slice_margin"]) == (0.01, 0.05)
    assert [row["harmed"] for row in found["slices"]] == [False, True]
    labels = {one["treatment"]: one["label"] for one in found["comparisons"]}
    assert labels == {"hot": "HELPS", "ko": "INVALID"}
    assert [arm["arm"] for arm in found["arms"]] == ["kd", "sft", "hot", "ko", "teacher"]
    assert {arm["documents"] for arm in found["arms"]} == {60}
    assert [len(seed["means"]) for seed in found["seeds"]] == [5, 5, 5, 4]
    mean = np.mean([seed["difference"] for seed in found["seeds"]])
    assert mean == pytest.approx(found["verdict"]["effect"])


def test_the_teacher_has_to_be_better(tmp_path):
    rows = likelihoods({"kd": (-0.5, -0.5), "sft": (0, 0), "teacher": (0.2, 0.2)})
    found = judge(tmp_path / "v", write(tmp_path / "s.csv", rows))
    assert found["verdict"]["label"] == "INVALID"
    assert "the teacher is not better than sft" in found["verdict"]["reason"]
    assert "INVALID" in (tmp_path / "v" / "report.html").read_text()


def test_one_seed_decides_nothing(tmp_path, accuracy):
    source = write(tmp_path / "s.csv", [row for row in accuracy if row["seed"] == 0])
    found = judge(tmp_path / "v", source, **ACCURACY)
    assert found["verdict"]["label"] == "INCONCLUSIVE"
    assert "one seed cannot show how seeds differ" in found["verdict"]["reason"]
    with pytest.raises(Forbidden):
        judge(tmp_path / "v", source, gate=True, **ACCURACY)


def test_the_page_shows_what_the_report_holds(sliced):
    found, text = sliced
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    walk = Walk(text)
    shown = set()
    for element in walk.elements:
        if path := element.attributes.get("data-path"):
            shown.add(path)
            assert agrees(element, found), path
    assert not stray(walk)
    assert {f"verdict.{key}" for key in ("label", "reason", "effect", "low", "high")} <= shown
    assert {f"comparisons.{i}.reason" for i in range(2)} <= shown
    assert {"slices.1.effect", "seeds.3.difference"} <= shown


def test_names_from_files_are_escaped(tmp_path, accuracy):
    rows = [row | {"arm": f"<b>{row['arm']}&"} for row in accuracy]
    keys = ACCURACY | {"treatment": "<b>kd&", "baseline": "<b>sft&"}
    judge(tmp_path / "v", write(tmp_path / "s.csv", rows), **keys)
    text = (tmp_path / "v" / "report.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;kd&amp;" in text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, r"every total is 0 or 1.* set config\.verdict\.unit=accuracy"),
        ({"unit": "accuracy"}, "say whether a higher accuracy is better"),
        ({"higher_is_better": "true"}, "margin is not given: .* difference in score"),
        ({"higher_is_better": "yes"}, "higher_is_better is 'yes'"),
        ({"unit": "nats per token", "higher_is_better": "true"}, "name the unit of your scores"),
        (ACCURACY | {"baseline": "base"}, "config.verdict.baseline is 'base': use one of kd, sft"),
        (ACCURACY | {"baseline": "kd"}, "treatment and baseline are both kd"),
        (ACCURACY | {"minimum_seeds": 1}, "minimum_seeds is 1"),
        (ACCURACY | {"task": "mmlu"}, "is no log of lm-evaluation-harness"),
        (ACCURACY | {"metric": "f1"}, "has no column f1"),
    ],
)
def test_what_has_to_be_said_is_asked_for(tmp_path, accuracy, keys, message):
    with pytest.raises(UserError, match=message) as error:
        judge(tmp_path / "v", write(tmp_path / "s.csv", accuracy), **keys)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "v" / "report.json").exists()


def test_the_logs_know_which_direction_is_better(tmp_path, accuracy):
    logs = write_logs(tmp_path / "logs", accuracy)
    with pytest.raises(UserError, match="the logs say the contrary of acc,none"):
        judge(tmp_path / "v", logs, margin=0.02, higher_is_better="false")
    for path in logs.rglob("results_*.json"):
        path.unlink()
    with pytest.raises(UserError, match="say whether a higher acc is better"):
        judge(tmp_path / "v", logs, margin=0.02)


def test_two_tasks_need_a_margin_of_slices(tmp_path, accuracy):
    for task in ("a", "b"):
        write_logs(tmp_path / "logs", accuracy[:: 1 if task == "a" else -1], task=task)
    with pytest.raises(UserError, match=r"slice_margin is not given: .* harm to a slice in acc"):
        judge(tmp_path / "v", tmp_path / "logs", margin=0.02)
    found = judge(tmp_path / "v", tmp_path / "logs", margin=0.02, slice_margin=0.05)
    assert [row["slice"] for row in found["slices"]] == ["a", "b"]
    # The same examples twice are no more evidence than once.
    assert found["verdict"]["documents"] == 2000


def test_a_directory_serves_one_verdict_after_another_and_no_other_job(tmp_path, accuracy):
    source = write(tmp_path / "s.csv", accuracy)
    judge(tmp_path / "v", source, **ACCURACY)
    assert (
        judge(tmp_path / "v", source, **ACCURACY | {"margin": 0.2})["verdict"]["label"]
        == "NO BETTER"
    )
    config = tmp_path / "v" / "config.json"
    resolved = json.loads(config.read_text())
    assert resolved["verdict.margin"] == 0.2
    config.write_text(json.dumps(sealed(opened(resolved) | {"job": "train"})))
    with pytest.raises(UserError, match="belongs to another config, which differs in job"):
        judge(tmp_path / "v", source, **ACCURACY)
