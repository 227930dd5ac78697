"""The job study: arms x seeds from one config, each measured alike, and one verdict over all."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import flatten, leaves
from distill_jax.data.cache import pieces_of
from distill_jax.evals.aggregates import aggregate
from distill_jax.evals.records_file import write_records
from distill_jax.export import export_student
from distill_jax.files import written_whole
from distill_jax.jobs.cache import fill_cache
from distill_jax.jobs.study_report import BEHAVIOUR, EXAMPLES, TOKENS, write_report
from distill_jax.jobs.train import finish, read_inputs, start_of, train_student
from distill_jax.progress import say
from distill_jax.setup import data
from distill_jax.setup.arm_config import (
    Shared,
    arm_config,
    arm_inputs,
    cacheable,
    check_serving,
    check_study,
    reads_its_own,
    step_flops,
)
from distill_jax.setup.evaluator import (
    Evaluator,
    evaluator_of,
    measure_texts,
    measure_tokens,
    task_scores,
    with_cache,
)
from distill_jax.setup.inputs import Inputs, check, setting_of
from distill_jax.setup.loss import make_recipe
from distill_jax.setup.measures import measures_of
from distill_jax.setup.models import count, load_model
from distill_jax.setup.owner import check_owner, claim
from distill_jax.setup.teachers import Teachers
from distill_jax.setup.training import CompiledSteps
from distill_jax.setup.writing import writing
from distill_jax.sharding import barrier
from distill_jax.study.arms import Arm, arms_of
from distill_jax.study.flops import steps_for, written
from distill_jax.study.results import Key, PlannedArm, RunResult, StudyPlan, looks_with, result_of
from distill_jax.types import Batch, Forbidden, NumbersBrokeDown

PLAN, RESULTS, RESULT = "study.json", "results.jsonl", "result.json"


def study_job(c: ConfigDict, directory: Path) -> None:
    """Trains and measures what is not done yet, then judges.

    Raises Forbidden where config.study.gate is set and the verdict forbids shipping.
    """
    check_study(c)
    _, mesh = check(c)
    ablations = {name: leaves(overrides) for name, overrides in c.study.ablations.items()}
    arms = arms_of(c.study.arms, ablations, flatten(c))
    if unasked := [name for name in ablations if c.study.arms and name not in c.study.arms]:
        say(f"config.study.arms leaves out the ablations {', '.join(unasked)}: they do not run")
    inputs = read_inputs(c, mesh)
    planned = _planned(c, arms, inputs)
    evaluator = evaluator_of(c, inputs)
    check_serving(c, inputs)
    earlier = _earlier_looks(directory)
    plan = _plan(c, planned, evaluator, earlier)
    first = jax.process_index() == 0
    if first:  # a look counts once there is something to see
        claim(c, directory)
        workdir.write_json(directory / PLAN, plan._replace(looks=earlier).json())
    say(f"held-out text: {data.description(evaluator.held_out)}")
    shared = _share(c, directory, plan, evaluator)
    evaluator = with_cache(c, evaluator, shared.cache)
    runs = [(p, seed) for seed in plan.seeds for p in plan.arms]
    steps_by_shape: dict[str, CompiledSteps] = {}
    for n, (p, seed) in enumerate(runs, 1):
        where = _run_directory(directory, p.arm.name, seed)
        title = f"[{n}/{len(runs)}] {p.arm.name}, seed {seed}"
        if (where / RESULT).exists():
            say(f"{title}: done already")
            continue
        say(f"{title}: {p.steps} steps")
        result = _run(c, where, p, seed, shared, evaluator, steps_by_shape)
        if first:
            workdir.write_json(where / RESULT, result.json())
            # The exported student stays; what a resumed run would need is not needed any more.
            if (where / workdir.CHECKPOINTS).exists():
                shutil.rmtree(where / workdir.CHECKPOINTS)
    barrier("arms")
    if first:
        workdir.write_json(directory / PLAN, plan.json())
    ships = write_report(c, directory, plan, _results(directory, runs), evaluator)
    if c.study.gate and not ships:
        raise Forbidden(f"the verdict forbids shipping: see {directory / workdir.PAGE}")


def _results(directory: Path, runs: list[tuple[PlannedArm, int]]) -> dict[Key, RunResult]:
    """What every arm x seed left behind, gathered in results.jsonl."""
    paths = [_run_directory(directory, p.arm.name, seed) / RESULT for p, seed in runs]
    results = [result_of(json.loads(path.read_text())) for path in paths]
    if jax.process_index() == 0:
        workdir.write_lines(directory / RESULTS, [result.json() for result in results])
    return {result.key: result for result in results}


def _run_directory(directory: Path, arm: str, seed: int) -> Path:
    """The workdir of one arm x seed."""
    return directory / "arms" / arm / f"seed-{seed}"


def _planned(c: ConfigDict, arms: list[Arm], inputs: Inputs) -> tuple[PlannedArm, ...]:
    """Steps and cost of every arm, known before the first update."""
    costs: dict[str, int] = {}
    planned: dict[str, PlannedArm] = {}
    # An arm that spends another's operations comes after it here, whatever the order given.
    for arm in sorted(arms, key=lambda arm: arm.flops_of is not None):
        mine = arm_config(c, arm, c.seed)
        recipe, _ = check(mine)
        shape = json.dumps({k: v for k, v in flatten(mine).items() if k not in ("steps", "seed")})
        if shape not in costs:
            read = _arm_inputs(c, mine, inputs)
            costs[shape] = step_flops(setting_of(mine, recipe, Path(), read))
        steps = mine.steps
        if arm.flops_of:
            steps = steps_for(planned[arm.flops_of].flops, costs[shape])
        planned[arm.name] = PlannedArm(arm, steps, costs[shape])
    ordered = tuple(planned[arm.name] for arm in arms)
    for p in ordered:
        say(
            f"{p.arm.name}: {p.steps} steps of {written(p.step_flops)},"
            f" {written(p.flops)} in all ({p.arm.what})"
        )
    return ordered


def _arm_inputs(
    c: ConfigDict, mine: ConfigDict, inputs: Inputs, references: Teachers | None = None
) -> Inputs:
    """What an arm reads: its own data and teachers where it changes them, else the study's."""
    if reads_its_own(c, mine):
        return read_inputs(mine, inputs.mesh)
    return arm_inputs(c, mine, inputs, references)


def _earlier_looks(directory: Path) -> tuple[tuple[int, ...], ...]:
    """The seeds of every verdict that was given in this directory."""
    path = directory / PLAN
    known = json.loads(path.read_text()) if path.exists() else {}
    return tuple(tuple(look) for look in known.get("looks", ()))


def _plan(
    c: ConfigDict,
    planned: tuple[PlannedArm, ...],
    evaluator: Evaluator,
    earlier: tuple[tuple[int, ...], ...],
) -> StudyPlan:
    s, seeds = c.study, tuple(range(c.seed, c.seed + c.study.seeds))
    measure, *secondary = measures_of(c)
    return StudyPlan(
        arms=planned,
        seeds=seeds,
        looks=looks_with(earlier, seeds, fixed=s.fixed_seeds),
        fixed_seeds=s.fixed_seeds,
        measure=measure,
        secondary=tuple(secondary),
        slices=evaluator.slices,
        prompts=len(evaluator.prompts.prompts) if evaluator.prompts else 0,
        held_out_sha256=evaluator.held_out.fingerprint,
        **{key: s[key] for key in ("margin", "slice_margin", "confidence", "new_tokens")},
    )


def _share(c: ConfigDict, directory: Path, plan: StudyPlan, evaluator: Evaluator) -> Shared:
    """The pruned start of each seed, and the teacher's signals in a cache."""
    starts, inputs = {}, evaluator.inputs
    if c.student.init == "prune":
        longest = max(plan.arms, key=lambda planned: planned.steps)
        starts = {seed: _start(c, directory, inputs, seed, longest) for seed in plan.seeds}
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
    cache.mkdir(exist_ok=True)
    fill_cache(c, cache, inputs.mesh, inputs.teachers.first, _distinct(rows))
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


def _start(c: ConfigDict, directory: Path, inputs: Inputs, seed: int, longest: PlannedArm) -> str:
    """The student that all arms of a seed start from: the path of a Hugging Face directory."""
    target = directory / "students" / f"seed-{seed}"
    if target.exists():
        return str(target)
    # Calibration text follows the last step of the longest arm, so that none trains on it.
    mine = arm_config(c, longest.arm._replace(overrides={}), seed, steps=longest.steps)
    setting = setting_of(mine, make_recipe(mine), directory, inputs)
    model, params = start_of(setting)
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = written_whole(target) if jax.process_index() == 0 else nullcontext(target)
    with whole as part:
        export_student(part, model.config, params, inputs.tokenizer, dtype=c.student.dtype)
    barrier(f"start of seed {seed}")
    return str(target)


def _run(
    c: ConfigDict,
    where: Path,
    p: PlannedArm,
    seed: int,
    shared: Shared,
    evaluator: Evaluator,
    steps_by_shape: dict[str, CompiledSteps],
) -> RunResult:
    """Trains one arm x seed and measures its exported student, as it would be served."""
    mine = arm_config(c, p.arm, seed, shared, p.steps)
    check_owner(mine, where)
    if jax.process_index() == 0:
        where.mkdir(parents=True, exist_ok=True)
    place = str(where.relative_to(where.parents[2]))
    result = RunResult(p.arm.name, seed, p.steps, p.step_flops, place)
    if not (where / workdir.REPORT).exists():
        recipe = make_recipe(mine)
        read = _arm_inputs(c, mine, evaluator.inputs, evaluator.teachers)
        setting = setting_of(mine, recipe, where, read, evaluator.teachers)
        name, group = f"{p.arm.name}-seed-{seed}", where.parents[2].resolve().name
        try:
            with writing(mine, where, name=name, group=group) as writers:
                model, params = train_student(setting, steps_by_shape, writers)
                finish(setting, model, params, writers)
        except NumbersBrokeDown as error:
            say(f"{p.arm.name}, seed {seed}: {error}")
            return result._replace(failed=str(error))
        del model, params
        barrier(f"end of {p.arm.name}, seed {seed}")
    wall_s = workdir.read_lines(where / workdir.METRICS)[-1]["wall_s"]
    return _measured(c, where, evaluator, result._replace(wall_s=wall_s))


def _measured(c: ConfigDict, where: Path, evaluator: Evaluator, result: RunResult) -> RunResult:
    """The result with every number; writes the per-token records and the texts."""
    student = load_model(c, str(where / workdir.STUDENT), c.student.dtype, evaluator.inputs.mesh)
    records = measure_tokens(c, student, evaluator)
    written, tasks = measure_texts(c, student, evaluator), task_scores(c, student)
    if jax.process_index() == 0:
        write_records(where / TOKENS, records)
        workdir.write_json(where / BEHAVIOUR, written.json())
        workdir.write_json(where / EXAMPLES, [part.json() for part in tasks.examples])
    metrics = aggregate(records.columns) | tasks.numbers
    shown = [
        n for n in ("nll", "forward_kl", "agreement_top1", "ece") if metrics.get(n) is not None
    ]
    say("held-out: " + "  ".join(f"{name} {metrics[name]:.4g}" for name in shown))
    return result._replace(
        parameters=count(student.params), metrics=metrics, behaviour=written.metrics
    )
