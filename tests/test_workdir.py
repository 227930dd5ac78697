"""Whose a workdir is: claimed by a product, and read without being claimed."""

import json

import pytest

from distill_jax import workdir
from distill_jax.types import UserError
from tests import cli

TRAINED = {"job": "train", "steps": 4, "seed": 0}


def no_key(key):
    return False


def produced(directory, pattern):
    """Makes what a glob of PRODUCTS finds."""
    path = directory / pattern.replace("step_*", "step_1").replace("*", "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.mark.parametrize("job", workdir.PRODUCTS)
def test_a_directory_is_its_owners_from_the_first_product_on(tmp_path, job):
    mine, other = TRAINED | {"job": job}, TRAINED | {"job": job, "seed": 1}
    for i, pattern in enumerate(workdir.PRODUCTS[job]):
        directory = tmp_path / str(i)
        workdir.claim(directory, mine, "")
        assert workdir.kept(directory) is None
        workdir.check(directory, other, {}, no_key)  # nothing is lost by another config
        produced(directory, pattern)
        workdir.check(directory, mine, {}, no_key)
        with pytest.raises(UserError, match=r"seed \(0 there, 1 here\)"):
            workdir.check(directory, other, {}, no_key)
        workdir.check(directory, other, {}, lambda key: key == "seed")
        # A key of a later version has done what its default does.
        workdir.check(directory, mine | {"later": 1}, {"later": 1}, no_key)
        with pytest.raises(UserError, match=r"later \(1 there, 2 here\)"):
            workdir.check(directory, mine | {"later": 2}, {"later": 1}, no_key)


def test_a_checkpoint_counts_once_it_is_whole(tmp_path):
    workdir.claim(tmp_path, TRAINED, "")
    (tmp_path / "checkpoints" / "step_2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert workdir.kept(tmp_path) is None
    (tmp_path / "checkpoints" / "step_2").mkdir()
    assert workdir.kept(tmp_path) == TRAINED


def test_only_another_config_removes_what_an_attempt_left(tmp_path):
    mine, other = TRAINED | {"job": "study"}, TRAINED | {"job": "study", "seed": 1}
    workdir.claim(tmp_path, mine, "")
    (tmp_path / "students").mkdir()
    workdir.claim(tmp_path, mine, "")
    assert (tmp_path / "students").exists()
    workdir.claim(tmp_path, other, "")
    assert not (tmp_path / "students").exists()


def test_a_model_is_no_workdir(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="something else, such as a model"):
        workdir.check(tmp_path, TRAINED, {}, no_key)


EVALUATE = ("--config.job=evaluate", "--config.data.seq_len=32", "--config.model.block_tokens=64")
GENERATE = ("--config.job=generate", "--config.generate.max_new_tokens=4")


def said(*arguments, code=0):
    done = cli.run(*arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def answers(directory, job):
    return {path.name: path for path in (directory / job).iterdir()}


def test_a_job_that_reads_may_be_repeated_and_its_latest_answer_stands_at_the_top(world, tmp_path):
    cli.write_text(tmp_path / "other.jsonl", documents=9, seed=3)
    student, where = f"--config.student.path={world / 'student'}", tmp_path / "w"
    evaluate = lambda path: said(
        f"--workdir={where}", *EVALUATE, student, f"--config.data.eval_source={path}"
    )
    numbers = []
    for path in (world / "text.jsonl", tmp_path / "other.jsonl"):
        evaluate(path)
        numbers.append(json.loads((where / "report.json").read_text())["eval/nll"])
        assert [m["eval/nll"] for m in cli.metrics(where)] == numbers[-1:]
    assert numbers[0] != numbers[1]
    found = answers(where, "evaluate")
    assert sorted(name.rsplit("-", 1)[0] for name in found) == ["other", "text"]
    of = {
        n.rsplit("-", 1)[0]: json.loads((p / "report.json").read_text()) for n, p in found.items()
    }
    assert [of["text"]["eval/nll"], of["other"]["eval/nll"]] == numbers
    for prompt in ("the quick", "a lazy dog", "the quick"):
        said(f"--workdir={where}", *GENERATE, student, f"--config.generate.prompts=('{prompt}',)")
        assert json.loads((where / "samples.jsonl").read_text())["prompt"] == prompt
    assert len(answers(where, "generate")) == 2
    evaluate(tmp_path / "other.jsonl")
    assert answers(where, "evaluate").keys() == found.keys()


def test_a_mistake_before_the_first_step_may_be_mended_in_place(flags, tmp_path):
    """Neither a wrong path, nor what an evaluation has left, keeps a directory from a run."""
    where = f"--workdir={tmp_path}"
    said(where, *flags, *EVALUATE)
    said(where, *flags, "--config.teacher.path=/no/such/model", "--config.steps=5", code=2)
    assert (tmp_path / "report.json").exists()
    said(where, *flags, "--config.steps=1", "--config.optim.warmup_steps=0")
    assert json.loads((tmp_path / "report.json").read_text())["kind"] == "run"
    before = (tmp_path / "config.json").read_bytes()
    error = said(where, *flags, "--config.optim.learning_rate=0.5", code=2)
    assert "optim.learning_rate (0.0005 there, 0.5 here)" in error
    assert (tmp_path / "config.json").read_bytes() == before
