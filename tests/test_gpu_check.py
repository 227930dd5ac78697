"""The check of a GPU, run on a CPU: its parts, its budget of time and its verdicts."""

import json

import numpy as np
import pytest

from experiments.gpu_check import kernels, laws, run, table, times


def lines(out):
    return [json.loads(line) for line in (out / table.LINES).read_text().splitlines()]


def test_it_runs_through_and_writes_what_it_finds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(laws, "HEADS", {"gpt-oss": laws.HEADS["gpt-oss"]})
    monkeypatch.setattr(laws, "DIVERGENCES", ["forward_kl"])
    monkeypatch.delitem(kernels.FORMS, "by blocks")  # on a CPU also the one that is chosen
    monkeypatch.setattr(times, "COMPARED", ("step", "naive"))
    options = ["--device=cpu", "--sizes=tiny", f"--out={tmp_path}"]
    assert run.main(options) == 0
    about, *found = lines(tmp_path)
    assert {line["part"] for line in found} == set(run.NEEDED)
    assert not [line for line in found if {"failed", "skipped"} & set(line)]
    assert "compute capability" in about["attention"]["bfloat16"]
    (rounds,) = [line["programs"] for line in found if "programs" in line]
    assert rounds["naive"]["step_divided_by_it"] > 0
    printed = capsys.readouterr().out
    assert "tokens/s" in printed
    assert "| long | 128 tokens in a row" in (tmp_path / table.TABLE).read_text()


def test_nothing_is_begun_when_time_is_out(tmp_path):
    options = ["--device=cpu", "--sizes=tiny", "--seconds=1", f"--out={tmp_path}"]
    assert run.main(options) == 0
    assert all(line["skipped"] == "time is out" for line in lines(tmp_path)[1:])


def test_a_law_that_is_broken_ends_with_1_and_the_rest_runs(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory\nmore")

    def cases(device, sizes):
        far = lambda: laws._compared(np.ones(3), np.zeros(3), "bfloat16")
        return {"attention": iter([("far", far), ("fails", broken), ("far again", far)])}

    monkeypatch.setattr(run, "parts", cases)
    assert run.main(["--device=cpu", f"--out={tmp_path}"]) == 1
    far, fails, _ = lines(tmp_path)[1:]
    assert far["met"] is False
    assert fails["failed"] == "RuntimeError: RESOURCE_EXHAUSTED: no memory"
    assert "MISSED" in (tmp_path / table.TABLE).read_text()


@pytest.mark.parametrize(("error", "met"), [(1e-5, True), (1e-2, False), (np.nan, False)])
def test_an_error_is_of_the_largest_entry(error, met):
    expected = np.array([10.0, 0.1])
    found = laws._compared(expected + np.array([0, 10 * error]), expected, "float32")
    assert found["met"] is met


def test_a_device_that_is_not_there_is_one_line(capsys):
    assert run.main(["--device=gpu"]) == 2
    assert capsys.readouterr().err.startswith("error: JAX sees no gpu")
