"""The package as pip installs it, from any directory, with the defaults that travel with it."""

import shutil
import site
import subprocess
import sys
import venv
import zipfile

import pytest

from tests import cli

SOURCES = ("distill_jax", "configs", "pyproject.toml", "README.md", "LICENSE", "requirements.txt")


def run(*words, cwd):
    # The repository is on no path, or it would stand in for what the wheel lacks.
    env = {k: v for k, v in cli.environment().items() if not k.startswith("PYTHONPATH")}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=env, capture_output=True, text=True,
        check=False, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, since a build leaves files beside its source."""
    root = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        copy = shutil.copytree if (cli.ROOT / name).is_dir() else shutil.copy
        copy(cli.ROOT / name, root / name)
    (root / "tests").mkdir()
    shutil.copy(cli.ROOT / "tests/requirements.txt", root / "tests")
    how = "-m pip wheel -q --no-deps --no-index --no-build-isolation -w out ."
    built = run(sys.executable, *how.split(), cwd=root)
    assert built.returncode == 0, built.stderr
    return next((root / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """The console command of a new environment, which sees this one's packages beside the wheel."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=False)
    python = root / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    installed = run(*pip, *["install", "-q", "--no-deps", "--no-index"], wheel, cwd=root)
    assert installed.returncode == 0, installed.stderr
    (packages,) = root.glob("lib/*/site-packages")
    (packages / "requirements.pth").write_text("\n".join(site.getsitepackages()))
    return root / "bin" / "distill_jax"


def test_the_wheel_holds_every_file(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        str(path.relative_to(cli.ROOT))
        for folder in ("distill_jax", "configs")
        for path in (cli.ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == files


def test_the_quickstart_takes_its_first_steps_in_an_empty_directory(command, world, tmp_path):
    """The config is found where no configs/ is; then a run is continued by its directory alone."""
    done = run(
        command, "--config", "configs/quickstart.py", "--workdir", "first",
        f"--config.teacher.path={world / 'teacher'}", "--config.student.prune.blocks=2",
        "--config.student.prune.neurons=16", "--config.student.prune.calibration_tokens=1024",
        "--config.student.prune.ranking_tokens=256", f"--config.data.source={world / 'text.jsonl'}",
        "--config.data.seq_len=32", "--config.data.held_out_fraction=0.2", "--config.steps=2",
        "--config.optim.warmup_steps=1", "--config.generate.max_new_tokens=4", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "student after" in done.stdout
    assert (tmp_path / "first" / "report.html").exists()
    again = run(command, "--workdir=first", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "first is done" in again.stdout


def test_without_words_the_command_says_what_to_do(command, tmp_path):
    done = run(command, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing says what to do: --config=configs/quickstart.py")
    assert len(done.stderr.splitlines()) == 1
