"""The job study: arms x seeds from one config, each measured alike, and one verdict over all."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import flatten, leaves
from distill_jax.jobs.study_arm import inputs_of_arm, label_of, run_arm, took_of
from distill_jax.jobs.study_report import write_report
from distill_jax.jobs.study_seal import (
    PLAN,
    RESULT,
    earlier_looks,
    mend_parts,
    mend_run,
    of_run,
    of_study,
    seal_run,
    write_part,
)
from distill_jax.jobs.study_shared import share
from distill_jax.jobs.train import read_inputs
from distill_jax.progress import COMPILE, Progress, say, times_line
from distill_jax.setup import data
from distill_jax.setup.arm_config import (
    arm_config,
    check_serving,
    check_study,
    step_flops,
)
from distill_jax.setup.evaluator import (
    Evaluator,
    evaluator_of,
    with_cache,
)
from distill_jax.setup.inputs import Inputs, check, setting_of
from distill_jax.setup.measures import measures_of
from distill_jax.setup.owner import check_owner, claim
from distill_jax.setup.steps import describe_steps, with_steps
from distill_jax.setup.training import CompiledSteps
from distill_jax.sharding import barrier
from distill_jax.study.arms import Arm, arms_of
from distill_jax.study.flops import steps_for, written
from distill_jax.study.results import Key, PlannedArm, RunResult, StudyPlan, looks_with, result_of
from distill_jax.types import Forbidden

RESULTS = "results.jsonl"


def study_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Trains and measures what is not done yet, then judges.

    Raises Forbidden where config.study.gate is set and the verdict forbids shipping.
    """
    check_study(c)
    mesh = check(c)
    ablations = {name: leaves(overrides) for name, overrides in c.study.ablations.items()}
    arms = arms_of(c.study.arms, ablations, flatten(c))
    if unasked := [name for name in ablations if c.study.arms and name not in c.study.arms]:
        say(f"config.study.arms leaves out the ablations {', '.join(unasked)}: they do not run")
    for arm in arms:  # what an ablation has wrong is told before anything is read
        arm_config(c, arm, c.seed)
    inputs = read_inputs(c, mesh, progress, directory, len(arms) * c.study.seeds)
    training = data.packed(c, inputs.training, seed=c.seed)
    c, adapted = with_steps(c, len(training.rows))
    check_owner(c, directory)  # again, now that the steps of config.epochs are known
    for line in (f"training text: {data.description(training)}", *adapted):
        say(line)
    say(describe_steps(c, len(training.rows)))
    with progress.stage("plan", "counting the operations of each arm"):
        planned = _planned(c, arms, inputs, progress)
        evaluator = evaluator_of(c, inputs)
    check_serving(c, inputs)
    texts = {"text": training.fingerprint, "held_out": evaluator.held_out.fingerprint}
    of, seeds = of_study(c, texts), range(c.seed, c.seed + c.study.seeds)
    place = lambda p, seed: directory / "arms" / p.arm.name / f"seed-{seed}"
    earlier = earlier_looks(directory)  # by the seals, too, before any is renamed
    barrier("looks")
    if jax.process_index() == 0:
        with progress.stage("load", "verifying what was measured before"):
            mend_parts(directory, of, seeds)
            for p, seed in itertools.product(planned, seeds):
                mend_run(place(p, seed), of_run(c, p, seed, texts))
    barrier("mended")
    plan = _plan(c, planned, evaluator, earlier)
    first = jax.process_index() == 0
    if first:  # a look counts once there is something to see
        claim(c, directory)
        write_part(directory / PLAN, of, plan._replace(looks=earlier).json())
    say(f"held-out text: {data.description(evaluator.held_out)}")
    shared = share(c, directory, plan, of, evaluator, progress)
    evaluator = with_cache(c, evaluator, shared.cache)
    runs = [(p, seed) for seed in plan.seeds for p in plan.arms]
    done = [run for run in runs if (place(*run) / RESULT).exists()]
    took = [one for run in done for one in took_of(place(*run), run[0])]
    todo = [run[0] for run in runs if run not in done]
    steps_by_shape: dict[str, CompiledSteps] = {}
    for n, (p, seed) in enumerate(runs, 1):
        where = place(p, seed)
        title = f"[{n}/{len(runs)}] {p.arm.name}, seed {seed}"
        if (p, seed) in done:
            say(f"{title}: {_done_words(place(p, seed))}")
            continue
        say(f"{title}: {p.steps} steps")
        todo = todo[1:]
        began = progress.clock() - progress.seconds(COMPILE)
        told = f"run {n}/{len(runs)} {p.arm.name} seed {seed} · {len(runs) - len(todo) - 1} done"
        with progress.within(label_of(told, p, todo, took, progress)):
            seal = partial(seal_run, where, of_run(c, p, seed, texts), look=len(plan.looks))
            given = (shared, evaluator, steps_by_shape, seal, progress)
            result = run_arm(c, where, p, seed, *given, warn=n == 1)
        took += took_of(where, p, progress.clock() - progress.seconds(COMPILE) - began)
        if first:
            workdir.write_json(where / RESULT, result.json())
            seal(failed=result.failed is not None)
            # The exported student stays; what a resumed run would need is not needed any more.
            if (where / workdir.CHECKPOINTS).exists():
                shutil.rmtree(where / workdir.CHECKPOINTS)
    barrier("arms")
    if first:
        write_part(directory / PLAN, of, plan.json())
    results = _results(directory, [place(*run) for run in runs])
    ships = write_report(c, directory, plan, of, results, evaluator, progress)
    say(f"time:   {times_line(progress.times())}")
    if c.study.gate and not ships:
        raise Forbidden(f"the verdict forbids shipping: see {directory / workdir.PAGE}")


def _results(directory: Path, places: list[Path]) -> dict[Key, RunResult]:
    """What every arm x seed left behind, gathered in results.jsonl."""
    results = [_result(where) for where in places]
    if jax.process_index() == 0:
        workdir.write_lines(directory / RESULTS, [result.json() for result in results])
    return {result.key: result for result in results}


def _result(where: Path) -> RunResult:
    return result_of(json.loads((where / RESULT).read_text(encoding="utf-8")))


def _done_words(where: Path) -> str:
    """What is said of a run that is not made again."""
    failed = _result(where).failed
    if failed is None:
        return "done already"
    return f"broke down before, and is trained again only with another config ({failed})"


def _planned(
    c: ConfigDict, arms: list[Arm], inputs: Inputs, progress: Progress
) -> tuple[PlannedArm, ...]:
    """Steps and cost of every arm, known before the first update."""
    costs: dict[str, int] = {}
    planned: dict[str, PlannedArm] = {}
    # An arm that spends another's operations comes after it here, whatever the order given.
    for arm in sorted(arms, key=lambda arm: arm.flops_of is not None):
        mine = arm_config(c, arm, c.seed)
        check(mine)
        free = ("steps", "epochs", "seed")
        shape = json.dumps({k: v for k, v in flatten(mine).items() if k not in free})
        if shape not in costs or mine.epochs:
            setting = setting_of(mine, Path(), inputs_of_arm(c, mine, inputs, progress))
            costs[shape] = step_flops(setting)
            if mine.epochs:  # its other keys must fit these steps, too
                mine = arm_config(c, arm, c.seed, steps=setting.config.steps)
                check(mine)
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
