"""What would fail late, looked at first: paths, names and disk space, before anything is read."""

import shutil
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import choose
from distill_jax.data.sources import check_source
from distill_jax.evals.likelihood import LOGGED, OF_TEACHER
from distill_jax.evals.lm_eval_tasks import check_tasks
from distill_jax.export import directory_dtype
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.load import resolve
from distill_jax.report.number_formats import FORMATS, THIN
from distill_jax.setup.cleaning import cleaning_of
from distill_jax.setup.mixture import sources_of
from distill_jax.setup.models import bind_config
from distill_jax.setup.scorer import load_scorer
from distill_jax.setup.teachers import AVERAGE
from distill_jax.types import UserError
from distill_jax.untrusted import read_json_object

ONE_MODEL = ("generate", "export")  # jobs that read the student, or else the teacher, and no text


def check_read(c: ConfigDict) -> None:
    """Raises UserError for a model, text, scorer or task that is not there."""
    if c.export.dtype == "q8_0" and c.export.format != "gguf":
        raise UserError(
            f"config.export.dtype is q8_0, and config.export.format is {c.export.format}, whose"
            " files have no such type: give --config.export.format=gguf, or another dtype"
        )
    paths = {"student.path": (c.student.path,), "teacher.path": (c.teacher.path,)}
    sources = (*sources_of(c), c.data.eval_source)
    if c.job in ONE_MODEL:
        paths, sources = dict([*paths.items()][not c.student.path :][:1]), ()
    elif c.job == "evaluate":
        sources = (c.data.eval_source,) if c.data.eval_source else sources_of(c)
    elif c.job == "diagnose":
        paths["diagnose.baseline"] = (c.diagnose.baseline,)
    else:
        paths["teacher.more"] = tuple(c.teacher.more)
    for key, several in paths.items():
        for path in several:
            if path not in ("", AVERAGE) and not path.startswith("hub:"):
                _check_model(key, path)
    if sources:
        cleaning_of(c)
    for source in filter(None, sources):
        check_source(source, c.data.format)
    if c.job == "study" and c.study.scorer:  # an arm has no keys of a study
        load_scorer(c.study.scorer)
    if c.eval.tasks and c.job in ("evaluate", "study"):
        check_tasks(c.eval.tasks, include_path=c.eval.task_path or None)


def check_metric(c: ConfigDict, *, compares: bool) -> None:
    """Raises UserError where no evaluation has checkpoint.metric. compares: with a teacher."""
    names = [f"eval/{name}" for name in (*LOGGED, "perplexity", "tokens")]
    choose("checkpoint.metric", c.checkpoint.metric, names)
    if not compares and c.checkpoint.metric.removeprefix("eval/") in OF_TEACHER:
        raise UserError(
            f"config.checkpoint.metric is {c.checkpoint.metric}, which needs a teacher to compare"
            " with: give --config.teacher.path=PATH, or use eval/nll"
        )


def check_room(c: ConfigDict, directory: Path, config: ModelConfig, *, runs: int = 1) -> None:
    """Raises UserError where a disk has no room for what training a student of a size writes.

    That is the checkpoints of one run, of which one more exists while it is written, and the
    exported students of all. What the directory holds already is counted as written.
    """
    leaves = jax.tree.leaves(bind_config(c, config, c.student.dtype).abstract())
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    copies = 3 + (AVERAGE in (c.teacher.path, *c.teacher.more))  # two moments of the optimizer
    # The one before the last is kept until another one is written after it.
    checkpoints = max(2, c.checkpoint.keep_last) + c.checkpoint.keep_best + 1
    of_file = jax.numpy.dtype(directory_dtype(c.export.dtype)).itemsize
    files = 2 if c.export.format == "gguf" else 1
    exported = sum(leaf.size for leaf in leaves) * of_file * files
    needed = size * copies * checkpoints + exported * runs
    written = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    free = shutil.disk_usage(directory).free
    if needed - written > free:
        shown = lambda size: FORMATS["bytes"](size).replace(THIN, " ")
        raise UserError(
            f"the run may write {shown(needed - written)} ({checkpoints} checkpoints of"
            f" {shown(size * copies)}, {runs} x {shown(exported)} of student) and"
            f" {directory} has {shown(free)} free: use another disk, or lower"
            " config.checkpoint.keep_last and keep_best"
        )


def _check_model(key: str, path: str) -> None:
    try:
        local = resolve(path)
    except UserError as error:
        raise UserError(f"config.{key}: {error}") from None
    if not local.is_dir() or _is_model(local):
        return
    students = [local / workdir.STUDENT, *sorted(local.glob(f"arms/*/*/{workdir.STUDENT}"))]
    found = next((student for student in students if _is_model(student)), None)
    if found is not None:
        raise UserError(f"config.{key} {path} is a workdir: its student is {found}")
    if "job" in _config_of(local):
        raise UserError(
            f"config.{key} {path} is a workdir without a student yet: finish its run, or write the"
            f" student of its last checkpoint by --workdir={path} --config.job=export"
        )


def _is_model(directory: Path) -> bool:
    return "model_type" in _config_of(directory)


def _config_of(directory: Path) -> dict[str, Any]:
    """config.json, of a model or a workdir; empty where there is none that can be read."""
    try:
        return read_json_object(directory / workdir.CONFIG)
    except UserError:
        return {}
