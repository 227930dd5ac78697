"""Benchmarks of lm-evaluation-harness: their numbers, and each example's score."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from tqdm.std import tqdm

from distill_jax.evals.lm_eval_model import harness_package
from distill_jax.types import UserError


class TaskExamples(NamedTuple):
    """One metric of one benchmark, example by example.

    metric   with its filter, where it has one: exact_match,strict-match
    ids      the harness' number of each example, as text
    groups   the harness' hash of each prompt: examples of one prompt are one piece of evidence
    values   float64 [examples]
    """

    task: str
    metric: str
    higher_is_better: bool
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    values: np.ndarray

    def json(self) -> dict[str, Any]:
        """As a file has it; examples_of reads it again."""
        return self._asdict() | {"values": self.values.tolist()}


def examples_of(row: Mapping[str, Any]) -> TaskExamples:
    """What TaskExamples.json gave."""
    names, values = (tuple(row[key]) for key in ("ids", "groups")), np.array(row["values"])
    return TaskExamples(row["task"], row["metric"], row["higher_is_better"], *names, values)


class TaskScores(NamedTuple):
    """Every number by TASK/METRIC, standard errors too, and what they are the averages of."""

    numbers: dict[str, float]
    examples: tuple[TaskExamples, ...]


def check_tasks(tasks: Sequence[str], *, include_path: str | None = None) -> Any:
    """The harness' TaskManager that knows some tasks. Raises UserError where none knows them."""
    harness_package()
    from lm_eval.tasks import TaskManager

    # Reading the harness' own list takes seconds, so it is read only where it is needed.
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not all(manager.match_tasks([task]) for task in tasks):
        manager = TaskManager(include_path=include_path)
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown or not tasks:
        raise UserError(
            f"lm_eval does not know the tasks {unknown or '()'}: `lm-eval ls tasks` lists its own"
        )
    return manager


def evaluate_tasks(
    lm_eval_model: Any,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    limit: int | None = None,
) -> TaskScores:
    """What the harness gives for some tasks.

    include_path: a directory with tasks of one's own. limit: documents per task. Raises UserError
    for a task that the harness does not know.
    """
    harness, manager = harness_package(), check_tasks(tasks, include_path=include_path)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells of each default it takes
    with _without_bars():
        found = harness.simple_evaluate(
            model=lm_eval_model,
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=True,
            bootstrap_iters=1000,
        )
    numbers = {
        f"{task}/{name.removesuffix(',none')}": float(value)
        for task, values in found["results"].items()
        for name, value in values.items()
        if _is_number(value)
    }
    examples = (
        part
        for task, samples in found["samples"].items()
        for part in _examples(task, samples, found["higher_is_better"][task])
    )
    return TaskScores(numbers, tuple(examples))


@contextmanager
def _without_bars() -> Iterator[None]:
    """The harness, and what it reads data with, draw bars wherever stderr goes."""
    draw = tqdm.__init__
    tqdm.__init__ = lambda self, *args, **more: draw(self, *args, **more | {"disable": True})
    try:
        yield
    finally:
        tqdm.__init__ = draw


def _examples(task, samples, higher_is_better) -> Iterator[TaskExamples]:
    """A metric whose value of an example is no number (a pair of sums, say) is left out."""
    kept = {}
    for sample in samples:
        suffix = "" if sample["filter"] == "none" else f",{sample['filter']}"
        for name in sample["metrics"]:
            kept.setdefault((name, suffix), []).append(sample)
    for (name, suffix), own in kept.items():
        if all(_is_number(sample[name]) for sample in own):
            yield TaskExamples(
                task,
                name + suffix,
                bool(higher_is_better.get(name, True)),
                tuple(str(sample["doc_id"]) for sample in own),
                tuple(sample["prompt_hash"] for sample in own),
                np.array([sample[name] for sample in own], np.float64),
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
