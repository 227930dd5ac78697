"""The job study: arms x seeds from one config, each measured alike, and one verdict over all."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.build import data
from distill_jax.build.arms import Shared, arm_config, arm_inputs, cacheable, step_flops
from distill_jax.build.cache import fill_cache, meet
from distill_jax.build.inputs import WATCHED, Inputs, check, read_inputs, setting_of
from distill_jax.build.measure import Judge, judge_of, measure_arm, read_cache
from distill_jax.build.study_report import write_report
from distill_jax.build.terms import make_recipe
from distill_jax.build.training import finish, start_of, train_student
from distill_jax.config import at_least, config_diff, flatten, leaves
from distill_jax.data.cache import pieces_of
from distill_jax.export import export_student
from distill_jax.study.arms import Arm, arms_of
from distill_jax.study.flops import steps_for, written
from distill_jax.types import Batch, Forbidden, NumbersBrokeDown, UserError

PLAN, RESULTS, RESULT = "study.json", "results.jsonl", "result.json"


class Planned(NamedTuple):
    """An arm with the updates it makes and the operations of each."""

    arm: Arm
    steps: int
    step_flops: int


def study_job(c: ConfigDict, directory: Path) -> Iterator[str]:
    """Trains and measures what is not done yet, then judges; yields the lines a person reads.

    Raises Forbidden where config.study.gate is set and the verdict forbids shipping.
    """
    _check(c)
    recipe, mesh = check(c)
    ablations = {name: leaves(overrides) for name, overrides in c.study.ablations.items()}
    arms = arms_of(c.study.arms, ablations, flatten(c))
    seeds = list(range(c.seed, c.seed + c.study.seeds))
    inputs = yield from read_inputs(c, recipe.terms, mesh)
    planned = yield from _plan(c, arms, inputs)
    judge = judge_of(c, inputs)
    plan = _write_plan(directory, c, planned, seeds, judge)
    yield f"held-out text: {data.description(judge.held_out)}"
    shared = yield from _share(c, directory, inputs, planned, seeds, judge)
    judge = read_cache(c, judge, inputs, shared.cache)
    runs = [(p, seed) for seed in seeds for p in planned]
    programs: dict[str, Any] = {}
    for n, (p, seed) in enumerate(runs, 1):
        where = run_directory(directory, p.arm.name, seed)
        if (where / RESULT).exists():
            yield f"[{n}/{len(runs)}] {p.arm.name}, seed {seed}: done already"
            continue
        yield f"[{n}/{len(runs)}] {p.arm.name}, seed {seed}: {p.steps} steps"
        result = yield from _run(c, where, p, seed, inputs, shared, judge, programs)
        if jax.process_index() == 0:
            workdir.write_json(where / RESULT, result)
            # The exported student stays; what a resumed run would need is not needed any more.
            if (where / workdir.CHECKPOINTS).exists():
                shutil.rmtree(where / workdir.CHECKPOINTS)
    meet("arms")
    results = _results(directory, runs)
    ships = yield from write_report(c, directory, plan, results, judge, inputs)
    if c.study.gate and not ships:
        raise Forbidden(f"the verdict forbids shipping: see {directory / workdir.PAGE}")


def _results(directory: Path, runs: list[tuple[Planned, int]]) -> dict[tuple[str, int], dict]:
    """What every arm x seed left behind, gathered in results.jsonl."""
    keys = [(p.arm.name, seed) for p, seed in runs]
    results = {
        key: json.loads((run_directory(directory, *key) / RESULT).read_text()) for key in keys
    }
    if jax.process_index() == 0:
        workdir.write_lines(directory / RESULTS, list(results.values()))
    return results


def run_directory(directory: Path, arm: str, seed: int) -> Path:
    """The workdir of one arm x seed."""
    return directory / "arms" / arm / f"seed-{seed}"


def _check(c: ConfigDict) -> None:
    s = c.study
    at_least("study.seeds", s.seeds, 1)
    for key in ("margin", "slice_margin", "prompts", "price_per_hour"):
        at_least(f"study.{key}", s[key], 0)
    for key in ("prompt_tokens", "new_tokens"):
        at_least(f"study.{key}", s[key], 1)
    if not 0.5 <= s.confidence < 1:
        raise UserError(f"config.study.confidence is {s.confidence}: use 0.5 to less than 1")
    if not c.teacher.path and not c.teacher.cache:
        raise UserError("config.teacher.path is empty: a study needs --config.teacher.path=PATH")


def _plan(c: ConfigDict, arms: list[Arm], inputs: Inputs) -> Iterator[str]:
    """Steps and cost of every arm, known before the first update; returns list[Planned]."""
    costs: dict[str, int] = {}
    planned: dict[str, Planned] = {}
    # An arm that spends another's operations comes after it here, whatever the order given.
    for arm in sorted(arms, key=lambda arm: arm.flops_of is not None):
        mine = arm_config(c, arm, c.seed)
        recipe, _ = check(mine)
        shape = json.dumps({k: v for k, v in flatten(mine).items() if k not in ("steps", "seed")})
        if shape not in costs:
            read = yield from arm_inputs(c, mine, recipe.terms, inputs)
            costs[shape] = step_flops(setting_of(mine, recipe, Path(), read))
        steps = mine.steps
        if arm.flops_of:
            paid = planned[arm.flops_of]
            steps = steps_for(paid.steps * paid.step_flops, costs[shape])
        planned[arm.name] = Planned(arm, steps, costs[shape])
    for p in (planned[arm.name] for arm in arms):
        yield (
            f"{p.arm.name}: {p.steps} steps of {written(p.step_flops)},"
            f" {written(p.steps * p.step_flops)} in all ({p.arm.what})"
        )
    return [planned[arm.name] for arm in arms]


def _write_plan(
    directory: Path, c: ConfigDict, planned: list[Planned], seeds: list[int], judge: Judge
) -> dict[str, Any]:
    """What was decided before any arm ran: margins, slices, steps. More arms and seeds may come."""
    plan = {
        "arms": {
            p.arm.name: {
                "what": p.arm.what,
                "overrides": dict(p.arm.overrides),
                "steps": p.steps,
                "flops_per_step": p.step_flops,
            }
            for p in planned
        },
        "seeds": seeds,
        "margin": c.study.margin,
        "slice_margin": c.study.slice_margin,
        "confidence": c.study.confidence,
        "one_token_documents": c.study.one_token_documents,
        "slices": list(judge.slices),
        "prompts": len(judge.prompts.prompts) if judge.prompts else 0,
        "new_tokens": c.study.new_tokens,
        "held_out_sha256": judge.held_out.fingerprint,
    }
    if jax.process_index() == 0:
        workdir.write_json(directory / PLAN, plan)
    return plan


def _share(
    c: ConfigDict,
    directory: Path,
    inputs: Inputs,
    planned: list[Planned],
    seeds: list[int],
    judge: Judge,
) -> Iterator[str]:
    """The pruned start of each seed and the teacher's signals; returns Shared."""
    starts = {}
    if c.student.init == "prune":
        for seed in seeds:
            starts[seed] = yield from _start(c, directory, inputs, seed, max(planned, key=_steps))
    cache = directory / "cache"
    configs = [arm_config(c, p.arm, seed, steps=p.steps) for p in planned for seed in seeds]
    readers = [mine for mine in configs if cacheable(c, mine)]
    if not c.study.cache or not readers:
        return Shared("", starts)
    rows = [judge.held_out.rows[i] for i in range(len(judge.held_out.rows))]
    for mine in readers:
        packed = data.packed(mine, inputs.training, seed=mine.seed)
        rows += [packed.rows[i] for i in data.rows_read(mine, packed.rows)]
    yield "teacher cache: the teacher runs once over the text that the arms read"
    cache.mkdir(exist_ok=True)
    yield from fill_cache(c, cache, inputs.mesh, inputs.teachers.first, _distinct(rows))
    return Shared(str(cache), starts)


def _steps(planned: Planned) -> int:
    return planned.steps


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
    c: ConfigDict, directory: Path, inputs: Inputs, seed: int, longest: Planned
) -> Iterator[str]:
    """The student that all arms of a seed start from, as a Hugging Face directory; returns it."""
    target = directory / "students" / f"seed-{seed}"
    if target.exists():
        return str(target)
    # Calibration text follows the last step of the longest arm, so that none trains on it.
    mine = arm_config(c, longest.arm._replace(overrides={}), seed, steps=longest.steps)
    setting = setting_of(mine, make_recipe(mine), directory, inputs)
    model, params = yield from start_of(setting)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if jax.process_index() == 0 and part.exists():
        shutil.rmtree(part)
    export_student(
        part, model.config, params, setting.tokenizer, setting.token_ids, dtype=c.student.dtype
    )
    if jax.process_index() == 0:
        os.replace(part, target)
    meet(f"start of seed {seed}")
    return str(target)


def _run(
    c: ConfigDict,
    where: Path,
    p: Planned,
    seed: int,
    inputs: Inputs,
    shared: Shared,
    judge: Judge,
    programs: dict[str, Any],
) -> Iterator[str]:
    """Trains and measures one arm x seed; returns its result."""
    mine = arm_config(c, p.arm, seed, shared, p.steps)
    first = jax.process_index() == 0
    if first:
        where.mkdir(parents=True, exist_ok=True)
        workdir.claim(where, flatten(mine), config_diff(mine, c), WATCHED)
    result = {
        "arm": p.arm.name,
        "seed": seed,
        "steps": p.steps,
        "flops_per_step": p.step_flops,
        "flops": p.steps * p.step_flops,
        "workdir": str(where.relative_to(where.parents[2])),
    }
    if not (where / workdir.REPORT).exists():
        recipe = make_recipe(mine)
        read = yield from arm_inputs(c, mine, recipe.terms, inputs, judge.teachers)
        setting = setting_of(mine, recipe, where, read, judge.teachers)
        try:
            model, params = yield from train_student(setting, programs)
        except NumbersBrokeDown as error:
            yield f"{p.arm.name}, seed {seed}: {error}"
            return result | {"failed": str(error)}
        list(finish(setting, model, params))
        del model, params
        meet(f"end of {p.arm.name}, seed {seed}")
    wall_s = workdir.read_lines(where / workdir.METRICS)[-1]["wall_s"]
    return result | {"wall_s": wall_s} | (yield from measure_arm(c, where, judge))
