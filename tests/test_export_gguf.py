"""The student as a GGUF file, by the command line."""

import json

import gguf
import numpy as np
import pytest

from distill_jax.models import load
from distill_jax.models.storage import flatten
from tests import cli


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return cli.write_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return cli.write_text(tmp_path_factory.mktemp("text") / "a.jsonl")


def export(workdir, model, *flags):
    place = (f"--workdir={workdir}", f"--config.student.path={model}")
    return cli.run(*place, "--config.job=export", "--config.export.format=gguf", *flags)


def weights(path):
    return flatten(load.load_checkpoint(str(path), dtype=None).whole().params)


def same(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def test_a_model_is_written_as_a_file_and_back_as_a_directory(model, tmp_path):
    done = export(tmp_path / "file", model)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "file" / "student.gguf"
    assert f"wrote {path} from" in done.stdout + done.stderr
    assert "llama.cpp" not in done.stdout + done.stderr
    assert not (tmp_path / "file" / "student").exists()
    same(weights(path), weights(model))
    back = cli.run(
        f"--workdir={tmp_path / 'back'}", "--config.job=export", f"--config.student.path={path}"
    )
    assert back.returncode == 0, back.stderr
    same(weights(tmp_path / "back" / "student"), weights(model))


def test_what_llama_cpp_computes_otherwise_is_said(tmp_path):
    window = {"sliding_window": 8, "local_blocks": (True, True)}
    model = cli.write_model(tmp_path / "model", family="phi3", width=32, **window)
    done = export(tmp_path / "file", model)
    assert done.returncode == 0, done.stderr
    said = "note: llama.cpp computes texts of more than 8 tokens without the window\n"
    assert said in done.stdout


def test_a_workdir_with_the_file_alone_is_read_by_other_jobs(model, tmp_path):
    assert export(tmp_path, model).returncode == 0
    flags = ("--config.generate.prompts=('the quick',)", "--config.generate.max_new_tokens=4")
    written = cli.run(f"--workdir={tmp_path}", "--config.job=generate", *flags, config=None)
    assert written.returncode == 0, written.stderr


def test_a_run_leaves_both_and_says_when_the_file_is_damaged(model, text, tmp_path):
    run = (
        f"--workdir={tmp_path}", f"--config.teacher.path={model}", f"--config.data.source={text}",
        "--config.student.init=random", *cli.SMALL, "--config.export.format=gguf",
        "--config.export.dtype=q8_0",
    )  # fmt: skip
    done = cli.run(*run)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "student.gguf"
    assert f"student: {tmp_path / 'student'} and {path}" in done.stdout + done.stderr
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds <= {"Q8_0", "F16", "F32"}
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    whole = path.read_bytes()
    assert "is done" in (again := cli.run(*run)).stdout + again.stderr
    path.write_bytes(whole[:-1])
    mended = cli.run(*run)
    assert "student.gguf is damaged or lost: it is written again" in mended.stdout + mended.stderr
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--config.export.dtype=q8_0", "--config.export.format=hf"), "whose files have no such"),
        (("--config.export.format=onnx",), "export.format"),
        (("--config.job=study",), "a study measures directories"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(model, flags, says, tmp_path):
    done = export(tmp_path / "w", model, *flags)
    assert done.returncode == 2
    assert says in done.stderr
    assert not list((tmp_path / "w").glob("student*"))


def test_a_run_whose_student_no_file_can_say_is_refused_before_it_trains(text, tmp_path):
    model = cli.write_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}))
    run = (
        f"--workdir={tmp_path / 'w'}", f"--config.teacher.path={model}",
        f"--config.data.source={text}", "--config.student.init=copy", *cli.SMALL,
        "--config.export.format=gguf",
    )  # fmt: skip
    done = cli.run(*run)
    assert done.returncode == 2
    assert "cannot say activation=gelu" in done.stderr
    assert not (tmp_path / "w" / "checkpoints").exists()
