"""One arm of a study on one seed: trained, exported, and measured as it would be served."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import median

import jax
from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import flatten
from distill_jax.evals.aggregates import aggregate
from distill_jax.evals.records_file import write_records
from distill_jax.jobs.study_seal import BEHAVIOUR, EXAMPLES, TOKENS
from distill_jax.jobs.train import finish, read_inputs, train_student
from distill_jax.progress import COMPILE, Progress, Stage, duration, say
from distill_jax.setup.arm_config import (
    Shared,
    arm_config,
    arm_inputs,
    reads_its_own,
)
from distill_jax.setup.evaluator import (
    Evaluator,
    measure_texts,
    measure_tokens,
    task_scores,
)
from distill_jax.setup.inputs import Inputs, setting_of
from distill_jax.setup.measures import LIKELIHOOD
from distill_jax.setup.models import count, load_model
from distill_jax.setup.owner import check_owner, mend
from distill_jax.setup.teachers import Teachers
from distill_jax.setup.training import CompiledSteps
from distill_jax.setup.writing import writing
from distill_jax.sharding import barrier
from distill_jax.study.arms import EQUAL_STEPS
from distill_jax.study.results import PlannedArm, RunResult
from distill_jax.study.timetable import Took, seconds_left
from distill_jax.types import NumbersBrokeDown
from distill_jax.words import named
from distill_jax.writers import Writer


def inputs_of_arm(
    c: ConfigDict,
    mine: ConfigDict,
    inputs: Inputs,
    progress: Progress,
    references: Teachers | None = None,
) -> Inputs:
    """What an arm reads: its own data and teachers where it changes them, else the study's."""
    if reads_its_own(c, mine):
        return read_inputs(mine, inputs.mesh, progress)
    return arm_inputs(c, mine, inputs, references)


def took_of(where: Path, planned: PlannedArm, whole_s: float | None = None) -> list[Took]:
    """What a run took, by its metrics; whole_s: all of it, without compiling, if it is known."""
    lines = workdir.read_lines(where / workdir.METRICS)
    steps = [line["device_s"] for line in lines if "train/loss" in line]
    if not steps:
        return []
    rest = None if whole_s is None else max(0.0, whole_s - sum(steps))
    return [Took(planned.arm.name, planned.step_flops, median(steps), rest)]


def label_of(
    told: str,
    planned: PlannedArm,
    later: list[PlannedArm],
    took: Sequence[Took],
    progress: Progress,
) -> Callable[[Stage], str]:
    """What stands before the stages of a run: which it is, and what is left of all runs."""
    began = progress.clock() - progress.seconds(COMPILE)
    now: list[Took] = []

    def label(stage: Stage) -> str:
        if stage.part == "train" and stage.pace_s:
            now[:] = [Took(planned.arm.name, planned.step_flops, stage.pace_s)]
        elapsed = progress.clock() - progress.seconds(COMPILE) - began
        known = [*took, *now]
        left = seconds_left(planned, elapsed, later, known)
        if left is None:
            return f"{told} · "
        # What is done beside the steps is known after the first run.
        least = "" if any(one.rest_s is not None for one in known) else "more than "
        return f"{told} · {least}{duration(left)} left · "

    return label


def run_arm(
    c: ConfigDict,
    where: Path,
    p: PlannedArm,
    seed: int,
    shared: Shared,
    evaluator: Evaluator,
    steps_by_shape: dict[str, CompiledSteps],
    seal: Callable[..., None],
    progress: Progress,
    *,
    warn: bool,
) -> RunResult:
    """Trains one arm x seed and measures its exported student, as it would be served.

    seal(failed=...): study_seal.seal_run of this run. warn: say at its first evaluation if the
    teacher is too weak for the verdict.
    """
    mine = arm_config(c, p.arm, seed, shared, p.steps)
    if mended := mend(where):
        say(mended)
    barrier(f"whose {where.name} of {p.arm.name} is")
    # Where the study's own files lie may change: it may have been moved.
    own, given = flatten(arm_config(c, p.arm, seed, steps=p.steps)), flatten(mine)
    check_owner(mine, where, beside=[key for key in own if own[key] != given[key]])
    if jax.process_index() == 0:
        where.mkdir(parents=True, exist_ok=True)
    place = str(where.relative_to(where.parents[2]))
    result = RunResult(p.arm.name, seed, p.steps, p.step_flops, place)
    try:
        if not (where / workdir.REPORT).exists():
            _train(c, mine, where, p, evaluator, steps_by_shape, progress, warn=warn)
            if jax.process_index() == 0:
                seal(failed=False)
            barrier(f"end of {p.arm.name}, seed {seed}")
        lines = workdir.read_lines(where / workdir.METRICS)  # none where they were damaged
        wall_s = lines[-1]["wall_s"] if lines else None
        return _measured(c, where, evaluator, result._replace(wall_s=wall_s), progress)
    except NumbersBrokeDown as error:
        say(f"{p.arm.name}, seed {seed} broke down: {error}")
        return result._replace(failed=str(error))


def _train(
    c: ConfigDict,
    mine: ConfigDict,
    where: Path,
    p: PlannedArm,
    evaluator: Evaluator,
    steps_by_shape: dict[str, CompiledSteps],
    progress: Progress,
    *,
    warn: bool,
) -> None:
    """Trains, exports and reports a run, from its last checkpoint where it has one."""
    read = inputs_of_arm(c, mine, evaluator.inputs, progress, evaluator.teachers)
    setting = setting_of(mine, where, read, evaluator.teachers)
    name, group = f"{p.arm.name}-seed-{mine.seed}", where.parents[2].resolve().name
    with writing(mine, where, name=name, group=group) as writers:
        if warn and jax.process_index() == 0:
            writers = (*writers, _weak_teacher_writer(c, p))
        model, params = train_student(setting, steps_by_shape, writers, progress)
        finish(setting, model, params, writers, progress)


def _weak_teacher_writer(c: ConfigDict, p: PlannedArm) -> Writer:
    """Says at step 0 what paired.check_teacher would say after the last run of a study."""
    own_start = any(key.startswith("student.") for key in p.arm.overrides)
    judged_by_nll = c.study.measure == LIKELIHOOD and not own_start

    def metrics(step: int, numbers: dict[str, float]) -> None:
        if step == 0 and judged_by_nll and (text := weak_teacher(numbers)):
            say(f"warning: {text}")

    ignore = lambda *_: None
    return Writer(ignore, metrics, ignore, ignore, ignore)


def weak_teacher(start: Mapping[str, float]) -> str | None:
    """What a teacher that is no better than the untrained student makes of a verdict on NLL.

    start: the metrics of the evaluation before the first step.
    """
    teacher, student = start.get("eval/teacher_nll"), start.get("eval/nll")
    if teacher is None or student is None or teacher < student:
        return None
    return (
        f"the teacher ({teacher:.3f} nats per token) predicts the held-out text no better than the"
        f" student before training ({student:.3f}): where {EQUAL_STEPS} ends no worse than the"
        " teacher, the verdict on nll will be INVALID. Choose a teacher that knows this text, or"
        " ask how near kd comes to it, in a new workdir: --config.study.measure=kl_to_teacher"
    )


def _measured(
    c: ConfigDict, where: Path, evaluator: Evaluator, result: RunResult, progress: Progress
) -> RunResult:
    """The result with every number; writes the per-token records and the texts.

    Raises NumbersBrokeDown where a number is not finite.
    """
    path, mesh = str(where / workdir.STUDENT), evaluator.inputs.mesh
    with progress.stage("load", "reading the student") as stage:
        student = load_model(c, path, c.student.dtype, c.student.shard, mesh, stage.advance)
    with progress.stage("evaluate", "measuring held-out text") as stage:
        records = measure_tokens(c, student, evaluator, stage.advance)
    metrics = aggregate(records.columns)
    if bad := [
        name for name, value in metrics.items() if value is not None and not isfinite(value)
    ]:
        raise NumbersBrokeDown(
            f"on held-out text, {', '.join(map(named, bad))} of the trained student is not finite:"
            " lower config.optim.learning_rate"
        )
    with progress.stage("write", "compiling and writing texts of the student"):
        written = measure_texts(c, student, evaluator)
    with progress.stage("evaluate", "tasks of lm-evaluation-harness") as stage:
        tasks = task_scores(c, student, stage.advance)
    if jax.process_index() == 0:
        write_records(where / TOKENS, records)
        workdir.write_json(where / BEHAVIOUR, written.json())
        workdir.write_json(where / EXAMPLES, [part.json() for part in tasks.examples])
    metrics |= tasks.numbers
    shown = [
        n for n in ("nll", "forward_kl", "agreement_top1", "ece") if metrics.get(n) is not None
    ]
    say("held-out: " + "  ".join(f"{name} {metrics[name]:.4g}" for name in shown))
    return result._replace(
        parameters=count(student.params), metrics=metrics, behaviour=written.metrics
    )
