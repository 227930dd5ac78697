"""The job replay: steps of a run once more, from a checkpoint, compared with what the run wrote.

The same devices give the same bits. Where a number differs, it was computed, kept or read wrongly,
then or now, and nothing else may tell of it. No file of the run changes.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.checkpoint_files import Damaged
from distill_jax.files import read_sealed
from distill_jax.fingerprint import bits
from distill_jax.jobs.train import read_inputs
from distill_jax.loop import BATCH_HASH, Run, batch_hash
from distill_jax.progress import Progress, say
from distill_jax.rollback import ROLLBACK
from distill_jax.setup import teachers
from distill_jax.setup.inputs import Setting, check, setting_of
from distill_jax.setup.models import bind_config
from distill_jax.setup.owner import check_owner, refuse_study
from distill_jax.setup.provenance import check_texts, provenance
from distill_jax.setup.student import student_config
from distill_jax.setup.training import (
    abstract_state,
    compiled_steps,
    open_checkpoints,
    run_of,
    saved_model,
    starter,
)
from distill_jax.types import Batch, NumbersBrokeDown, TrainState, UserError, path_name


def replay_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Runs the steps up to replay.step again, and says whether anything differs.

    Raises NumbersBrokeDown where something does, UserError where there is nothing to begin from.
    """
    run = workdir.kept(directory)
    if run is None or run["job"] != "train":
        refuse_study(directory)
        raise UserError(f"--workdir {directory} holds no training run: give one that does")
    c = c.copy_and_resolve_references()
    c.log.wandb_project = ""  # nothing is written, there neither
    inputs = read_inputs(c, check(c), progress)
    with progress.stage("tokenise", "packing rows"):
        setting = setting_of(c, directory, inputs)
    check_owner(setting.config, directory)  # again: the steps of config.epochs are known now
    parts = {"train": setting.training, "eval": setting.held_out}
    check_texts(directory, parts)
    manager = open_checkpoints(c, directory)
    try:
        steps, compared, found = _replay(setting, manager, progress)
    finally:
        manager.close()
    if not found:
        say(f"{steps} again: nothing differs ({compared})")
        return
    now = provenance(inputs.mesh, inputs.tokenizer, teachers.identity(inputs.teachers), parts)
    then = read_sealed(directory / workdir.PROVENANCE) or {}
    for key in then:
        if key in now and now[key] != then[key]:
            was = f"{key} was {then[key]} when the run began and is {now[key]}"
            found.append(f"{was}: numbers may differ for that alone")
    for line in found:
        say(line)
    raise NumbersBrokeDown(
        f"{steps} again: not what {directory} has, as told above, which is a fault if devices and"
        " versions are those of then: rename the later checkpoints, and the command of the run"
        " trains from there anew"
    )


def _replay(
    setting: Setting, manager: checkpoint.CheckpointManager, progress: Progress
) -> tuple[str, str, list[str]]:
    """Which steps were run, what was compared, and what differs, a line each."""
    c, directory, saved = setting.config, setting.directory, manager.all_steps()
    last = c.replay.step or max(saved, default=0)
    if last > c.steps:
        raise UserError(f"config.replay.step is {last}: use at most {c.steps}, the last of the run")
    model = saved_model(c, directory)
    if model is None:
        model = bind_config(c, student_config(c, setting.inputs.source), c.student.dtype)
    begin = starter(c, setting.recipe)
    abstract, shardings = abstract_state(model, begin, setting.inputs.mesh, c.student.shard)
    lines = workdir.read_lines(directory / workdir.METRICS)
    # Steps before a rollback do not lead to those after it.
    back = [line["step"] for line in lines if ROLLBACK in line and line["step"] <= last]
    with progress.stage("load", "reading the checkpoint before"):
        state = _before(manager, abstract, last, max(back, default=0))
    first = int(state.step) + 1
    compiled = compiled_steps(setting, model, shardings)
    run = run_of(setting, model, state, compiled, manager, lambda params: None, ())
    lines = {line["step"]: line for line in lines if "train/loss" in line}
    twice = last not in saved and last not in lines
    state, second, found = _run_again(run, range(first, last + 1), lines, twice, progress)
    of = "the second time" if twice else f"the checkpoint of step {last}"
    if last in saved:
        try:
            second = checkpoint.restore(manager, abstract, last, say)
        except Damaged as error:
            found.append(f"{of} is damaged ({error})")
    compared = [f"{sum(first <= step <= last for step in lines)} losses"]
    if second is not None:
        found += _other_arrays(of, second, state)
        compared.insert(0, f"{len(jax.tree.leaves(second))} arrays")
    if twice:
        compared.append(f"step {last} with itself: nothing is recorded of it")
    steps = f"steps {first} to {last}" if first < last else f"step {last}"
    return steps, ", ".join(compared), found


def _before(
    manager: checkpoint.CheckpointManager, abstract: TrainState, last: int, back: int
) -> TrainState:
    """The state of the newest good checkpoint before a step; none before step `back`."""
    saved = manager.all_steps()
    for step in sorted((step for step in saved if back <= step < last), reverse=True):
        try:
            return checkpoint.completed(checkpoint.restore(manager, abstract, step, say), abstract)
        except Damaged as error:
            say(f"the checkpoint of step {step} is damaged ({error}): trying an older one")
    since = f" and after the rollback at step {back}" if back else ""
    raise UserError(
        f"{manager.directory} has no good checkpoint before step {last}{since} to begin from (it"
        f" has {', '.join(map(str, saved)) or 'none'}): give a step after one as"
        " --config.replay.step, or train with a smaller config.checkpoint.every"
    )


def _run_again(
    run: Run, steps: range, lines: dict[int, dict[str, Any]], twice: bool, progress: Progress
) -> tuple[TrainState, TrainState | None, list[str]]:
    """The state after the steps, that of the last one's second time, and the first other number."""
    state, second, found = run.state, None, []
    with progress.stage("train", "running steps again") as stage:
        for step, (host, batch) in zip(steps, run.batches(steps[0] - 1), strict=False):
            rest = run.teacher_params, batch, run.key
            if twice and step == steps[-1]:
                second, _ = run.train_step(jax.tree.map(jnp.copy, state), *rest)
            state, metrics = run.train_step(state, *rest)
            if step in lines and not found:
                # Cause before effect: a run that was given more steps since has other rates.
                now = {"learning_rate": run.learning_rate(step - 1)}
                now |= {name: float(metrics[name]) for name in ("loss", "gradient_norm")}
                found = _other_number(lines[step], now, host)
            stage.advance("steps", step - steps[0] + 1, len(steps))
    return state, second, found


def _other_number(line: dict[str, Any], now: dict[str, float], host: Batch) -> list[str]:
    """A line where a step's line in metrics.jsonl has another batch or number."""
    batch = batch_hash(host)
    other = jax.process_index() == 0 and line.get(BATCH_HASH, batch) != batch
    for name, number in now.items():
        again = number if math.isfinite(number) else None
        then = line.get(f"train/{name}", again)
        if then != again or (other and name == "loss"):
            which = "another batch" if other else "the same batch"
            return [f"step {line['step']}: {name} was {then} and is {again}, of {which}"]
    return []


def _other_arrays(of: str, then: TrainState, now: TrainState) -> list[str]:
    """A line where any bit of a state is other than it was, with the first array by name.

    Fields that a former version did not keep are not compared.
    """
    now = now._replace(**dict.fromkeys(checkpoint.absent(then)))
    paths, leaves = zip(*jax.tree.leaves_with_path(now), strict=True)
    apart = jax.device_get(_apart(jax.tree.leaves(then), leaves))
    other = [i for i, (count, _) in enumerate(apart) if count]
    if not other:
        return []
    count, most = apart[other[0]]
    return [
        f"{of}: {len(other)} of {len(leaves)} arrays differ, first {path_name(paths[other[0]])}"
        f" ({count:,} of {leaves[other[0]].size:,} numbers, by up to {most:.3g})"
    ]


@jax.jit
def _apart(then, now):
    """For each array, how many numbers differ in any bit, and the largest difference."""

    def of(a, b):
        distance = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32))
        other = bits(a) != bits(b)
        return jnp.sum(other), jnp.max(jnp.where(other, distance, 0))

    return [of(a, b) for a, b in zip(then, now, strict=True)]
