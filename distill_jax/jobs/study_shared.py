"""What the arms of a study share: the pruned start of each seed, and the teacher's cache."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax.data.cache import pieces_of
from distill_jax.export import export_student
from distill_jax.files import written_whole
from distill_jax.jobs.cache import fill_cache
from distill_jax.jobs.study_seal import start_of_seed
from distill_jax.jobs.train import start_of
from distill_jax.progress import Progress, say
from distill_jax.seals import write_seal
from distill_jax.setup import data
from distill_jax.setup.arm_config import Shared, arm_config, cacheable
from distill_jax.setup.evaluator import Evaluator
from distill_jax.setup.inputs import Inputs, setting_of
from distill_jax.sharding import barrier
from distill_jax.study.results import PlannedArm, StudyPlan
from distill_jax.types import Batch


def share(
    c: ConfigDict,
    directory: Path,
    plan: StudyPlan,
    of: Mapping[str, Any],
    evaluator: Evaluator,
    progress: Progress,
) -> Shared:
    """The pruned start of each seed, and the teacher's signals in a cache.

    of: what they belong to, by study_seal.of_study.
    """
    starts, inputs = {}, evaluator.inputs
    if c.student.init == "prune":
        longest = max(plan.arms, key=lambda planned: planned.steps)
        made = (c, directory, inputs, longest, progress)
        for n, seed in enumerate(plan.seeds, 1):
            with progress.within(lambda _, n=n: f"start of seed {n}/{len(plan.seeds)} · "):
                starts[seed] = _start(*made, seed, dict(of) | {"seed": seed})
    cache = directory / "cache"
    configs = [arm_config(c, p.arm, seed, steps=p.steps) for p in plan.arms for seed in plan.seeds]
    readers = [mine for mine in configs if cacheable(c, mine)]
    if not c.study.cache or not readers:
        return Shared("", starts)
    rows = [evaluator.held_out.rows[i] for i in range(len(evaluator.held_out.rows))]
    for mine in readers:
        packed = data.packed(mine, inputs.training, seed=mine.seed)
        rows += [packed.rows[i] for i in data.rows_read(mine, packed.rows)]
    say("teacher cache: the teacher runs once over the text that the arms read")
    cache.mkdir(parents=True, exist_ok=True)
    with progress.within(lambda _: "teacher cache · "):
        fill_cache(c, cache, inputs.mesh, inputs.teachers.first, _distinct(rows), progress)
    return Shared(str(cache), starts)


def _distinct(rows: list[Batch]) -> list[Batch]:
    """The rows that hold a piece which no row before them holds."""
    seen: set[bytes] = set()
    kept = []
    for row in rows:
        keys = {key for _, key in pieces_of(row)}
        if keys - seen:
            kept.append(row)
        seen |= keys
    return kept


def _start(
    c: ConfigDict,
    directory: Path,
    inputs: Inputs,
    longest: PlannedArm,
    progress: Progress,
    seed: int,
    of: Mapping[str, Any],
) -> str:
    """The student that all arms of a seed start from: the path of a Hugging Face directory."""
    target = start_of_seed(directory, seed)
    if target.exists():
        return str(target)
    # Calibration text follows the last step of the longest arm, so that none trains on it.
    mine = arm_config(c, longest.arm._replace(overrides={}), seed, steps=longest.steps)
    setting = setting_of(mine, directory, inputs)
    model, params = start_of(setting, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = written_whole(target) if jax.process_index() == 0 else nullcontext(target)
    with whole as part:
        export_student(part, model.config, params, inputs.tokenizer, dtype=c.student.dtype)
        if jax.process_index() == 0:
            write_seal(part, ["."], of)
    barrier(f"start of seed {seed}")
    return str(target)
