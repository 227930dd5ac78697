"""The job train: reads, trains, exports the student and writes the report."""

from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax import checkpoint, workdir
from distill_jax.config import flatten, load_base
from distill_jax.files import read_sealed, sealed
from distill_jax.jobs import student_files
from distill_jax.jobs.costs import with_costs
from distill_jax.loop import train
from distill_jax.losses.terms import needs_teacher
from distill_jax.models.binding import Model
from distill_jax.progress import COMPILE, Progress, say, times_line
from distill_jax.report.page import page
from distill_jax.report.run import report_json, study_command
from distill_jax.report.tables import Size, model_rows, samples_text, text_table
from distill_jax.report.taught import Taught
from distill_jax.setup import data, growth, reading, samples, student, teachers
from distill_jax.setup.cleaning import removed_json
from distill_jax.setup.early import check_room
from distill_jax.setup.hearing import Hear
from distill_jax.setup.inputs import Inputs, Setting, check, description, inputs_of, setting_of
from distill_jax.setup.loss import terms_of
from distill_jax.setup.models import count, size_line, size_of, size_text, student_source
from distill_jax.setup.owner import check_owner, claim
from distill_jax.setup.provenance import check_texts, provenance
from distill_jax.setup.quantising import quantised_of
from distill_jax.setup.training import (
    CompiledSteps,
    abstract_state,
    compiled_beside,
    compiled_steps,
    open_checkpoints,
    rebuilt_model,
    run_of,
    saved_model,
    shape_of,
    starter,
    write_architecture,
)
from distill_jax.setup.writing import writing
from distill_jax.types import Params
from distill_jax.writers import Writer


def train_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Trains, exports the student and writes the report; a finished run says so again."""
    if _says_done(c, directory):
        return
    growth.check_steps(c, directory)
    inputs = read_inputs(c, check(c), progress, directory)
    with progress.stage("tokenise", "packing rows"):
        setting = setting_of(c, directory, inputs, fit=partial(growth.fitted, directory=directory))
    say(description(setting))
    if c.epochs:  # as above, now that their steps are known
        c = setting.config
        check_owner(c, directory)
        if _says_done(c, directory):
            return
        growth.check_steps(c, directory)
    with writing(c, directory, name=directory.resolve().name) as writers:
        model, params = train_student(setting, {}, writers, progress)
        lines = finish(setting, model, params, writers, progress)
    for line in lines:
        say(line)
    say(f"time:    {times_line(progress.times())}")


def _says_done(c: ConfigDict, directory: Path) -> bool:
    """Whether a run has done all of config.steps, which it then says."""
    path = directory / workdir.REPORT
    if workdir.kept(directory) is None or not path.exists():
        return False
    report = read_sealed(path)
    if report is None or not {"config", "table"} <= report.keys():
        say(f"{path} is damaged: it is written again, from the last checkpoint")
        return False
    if report["config"]["steps"] != c.steps:
        return False
    if bad := student_files.damaged(c, directory):
        say(
            f"{directory / bad[0]} is damaged or lost: it is written again, from the last"
            " checkpoint"
        )
        return False
    say(
        f"{directory} is done (to go on, give more than --config.steps={c.steps}; to train again,"
        " another --workdir)\n"
    )
    say(report["table"])
    exported = workdir.exported(directory)
    if exported and exported[0] != c.steps:
        say(f"\n{directory / workdir.STUDENT} is of step {exported[0]}, as the job export wrote it")
    return True


def read_inputs(
    c: ConfigDict, mesh: Mesh, progress: Progress, directory: Path | None = None, runs: int = 1
) -> Inputs:
    """Reads the text and the models, and tokenizes.

    directory: where so many runs will write. Raises UserError where there is no room for them.
    """
    with progress.stage("load", "reading the text") as stage:
        hear = Hear(stage.tell, say)
        documents, held_out = reading.training_documents(c, hear)
    with progress.stage("load", "reading the models") as stage:
        found = teachers.load_teachers(c, terms_of(c), mesh, stage.advance)
        source = student_source(c, found.first)
    if directory is not None and jax.process_index() == 0:
        check_room(c, directory, student.student_config(c, source), runs=runs)
    for one in found.loaded:
        say(size_line("teacher", one))
    with progress.stage("tokenise", "tokenising") as stage:
        hear = Hear(stage.tell, say)
        inputs = inputs_of(c, mesh, found, source, documents, held_out, hear)
    rows = lambda: data.packed(c, inputs.held_out, seed=None).rows
    of = c, found.loaded, rows, c.eval.batch_size, mesh
    return inputs._replace(teachers=found._replace(loaded=with_costs(*of, progress, directory)))


def train_student(
    setting: Setting,
    steps_by_shape: dict[str, CompiledSteps],
    writers: tuple[Writer, ...],
    progress: Progress,
) -> tuple[Model, Params]:
    """Trains from the start or the last checkpoint to the last step.

    steps_by_shape: those of earlier runs, by what shapes them; this run's are added.
    """
    c, directory, mesh = setting.config, setting.directory, setting.inputs.mesh
    manager = open_checkpoints(c, directory)
    begin = starter(c, setting.recipe)
    if manager.latest_step() is None:
        waiting = partial(progress.stage, COMPILE, "compiling the training step")
        with compiled_beside(setting, steps_by_shape, waiting):
            model, params = start_of(setting, progress)
        write_architecture(directory, model)
        _, shardings = abstract_state(model, begin, mesh, c.student.shard)
        with progress.stage("load", "placing the student"):
            state = jax.block_until_ready(jax.jit(begin, out_shardings=shardings)(params))
        del params
    else:
        check_texts(directory, {"train": setting.training, "eval": setting.held_out})
        model = saved_model(c, directory)
        if model is None:
            model, said = rebuilt_model(c, directory, setting.inputs.source)
            say(said)
        abstract, shardings = abstract_state(model, begin, mesh, c.student.shard)
        with progress.stage("load", "reading the last checkpoint"):
            state = checkpoint.restore_good(manager, abstract, say)
        for line in growth.told(c, directory, setting.recipe, int(state.step)):
            say(line)
        say(f"resuming from step {int(state.step)} of {c.steps}")
    say(f"student: {size_text(size_of(model, state.params))}")
    shape = shape_of(c, model)
    if shape not in steps_by_shape:
        steps_by_shape[shape] = compiled_steps(setting, model, shardings)
    on_start = lambda params: _begin_files(setting, model, params, writers, progress)
    run = run_of(setting, model, state, steps_by_shape[shape], manager, on_start, writers)
    if jax.process_index() == 0:
        claim(c, directory)
    state = train(run, progress)
    return model, state.params


def start_of(setting: Setting, progress: Progress) -> tuple[Model, Params]:
    """The student before its first step."""
    c, inputs, mesh = setting.config, setting.inputs, setting.inputs.mesh
    if c.student.init == "prune":
        p = c.student.prune
        say(
            f"pruning to {p.blocks or 'all'} blocks and {p.neurons or 'all'} neurons per block"
            f" by {p.calibration_tokens:,} tokens"
        )
    # Pruning needs no teacher signals, and may read rows that a cache does not hold.
    rows = data.plain(setting.training.rows)
    calibration = lambda: data.calibration_batches(c, rows, mesh)
    of = (inputs.source, inputs.teachers.first, mesh, calibration)
    if c.student.init != "prune":
        with progress.stage("load", "reading the student") as stage:
            return student.make_student(c, *of, stage.advance)
    with progress.stage("prune", "pruning") as stage:
        return student.make_student(c, *of, stage.advance)


def _begin_files(
    setting: Setting,
    model: Model,
    params: Params,
    writers: tuple[Writer, ...],
    progress: Progress,
) -> None:
    """Writes provenance, and what teacher and student write before the first step."""
    lines, teacher = [], setting.inputs.teachers.first
    if teacher is not None:
        lines += _samples(setting, "teacher", 0, teacher.model, teacher.params, progress)
    lines += _samples(setting, "student before", 0, model, params, progress)
    if jax.process_index() == 0:
        _write_provenance(setting)
        workdir.write_lines(setting.directory / workdir.SAMPLES, map(sealed, lines))
    for writer in writers if lines else ():
        writer.samples(0, lines)


def _write_provenance(setting: Setting) -> dict:
    inputs, parts = setting.inputs, {"train": setting.training, "eval": setting.held_out}
    versions = provenance(inputs.mesh, inputs.tokenizer, teachers.identity(inputs.teachers), parts)
    workdir.write_json(setting.directory / workdir.PROVENANCE, sealed(versions))
    return versions


def _samples(
    setting: Setting, name: str, step: int, model: Model, params: Params, progress: Progress
) -> list[dict]:
    inputs = setting.inputs
    subject = (model, params, inputs.tokenizer, inputs.stop_ids)
    with progress.stage("write", f"writing texts of the {name}") as stage:
        advance = stage.advance
        return samples.sample(setting.config, name, step, *subject, time_it=True, advance=advance)


def finish(
    setting: Setting,
    model: Model,
    params: Params,
    writers: tuple[Writer, ...],
    progress: Progress,
) -> tuple[str, ...]:
    """Writes the exported student, the samples and the report; gives the lines to print."""
    c, directory, inputs = setting.config, setting.directory, setting.inputs
    after = _samples(setting, "student after", c.steps, model, params, progress)
    with progress.stage("write", "writing the student"):
        target = student_files.write(c, directory, model, params, inputs.tokenizer, c.steps)
    if jax.process_index():
        return ()
    texts = directory / workdir.SAMPLES
    written, damaged = workdir.whole_lines(texts)
    if damaged or (after and not written):
        say(f"{texts} was damaged or empty: texts from before the training are missing")
    asked = {line["prompt"] for line in after}  # a run that went on may have others
    begun = [line for line in written if line["step"] == 0 and line["prompt"] in asked]
    lines = begun + after
    workdir.write_lines(texts, map(sealed, lines))
    history = workdir.read_lines(directory / workdir.METRICS)
    evaluations = [line for line in history if "eval/nll" in line]
    speeds = {line["model"]: line["tokens_per_s"] for line in lines}
    loaded, alone = setting.references.loaded, not needs_teacher(setting.recipe.terms)
    narrow = inputs.teachers.first and quantised_of(inputs.teachers.first)
    taught = Taught(len(loaded), inputs.teachers.average, alone, narrow)
    if len(loaded) > 1:  # their row is of the mixture, which has written nothing
        speeds.pop("teacher", None)
    several = Size(sum(count(one.params) for one in loaded) or None)
    teacher = size_of(loaded[0].model, loaded[0].params) if len(loaded) == 1 else several
    sizes = [teacher, *[size_of(model, params)] * 2]
    begin = [line for line in evaluations if line["step"] == 0]  # none where it was lost
    rows = model_rows(sizes, [*begin[:1], evaluations[-1]], speeds)
    versions = read_sealed(directory / workdir.PROVENANCE)
    if versions is None:
        versions = _write_provenance(setting)
        say(f"{directory / workdir.PROVENANCE} was missing or damaged: written again, as of today")
    last = {k: v for k, v in evaluations[-1].items() if k.startswith("eval/")}
    diff = (directory / workdir.CONFIG_DIFF).read_text(encoding="utf-8")
    command = study_command(flatten(c), flatten(load_base()), str(directory))
    report = report_json(
        rows, last, lines, flatten(c), versions, history=history, config_diff=diff,
        study_command=command, times=progress.times(), taught=taught,
        removed=removed_json(setting.training.removed),
    )  # fmt: skip
    workdir.write_text(directory / workdir.PAGE, page(report))
    workdir.write_json(directory / workdir.REPORT, sealed(report))
    files = [directory / name for name in (workdir.CONFIG, workdir.REPORT, workdir.PAGE)]
    for writer in writers:
        if lines:
            writer.samples(c.steps, lines)
        writer.finish(c.steps, [row._asdict() for row in rows], files)
    said = "\n".join(["", report["headline"], *report["findings"], *_refused(history)])
    where = f"\nstudent: {target}\nreport:  {directory / workdir.PAGE}"
    return samples_text(lines), text_table(rows), said, where


def _refused(history: list[dict]) -> list[str]:
    """A line where a run has refused updates, from its metrics."""
    steps = [line for line in history if "train/skipped_in_a_row" in line]
    refused = [line for line in steps if line["train/skipped_in_a_row"]]
    if not refused:
        return []
    finite = lambda line: None not in (line["train/loss"], line["train/gradient_norm"])
    spikes = sum(map(finite, refused))
    said = [f"{len(refused) - spikes} were not finite", f"{spikes} were spikes"]
    return [f"{len(refused)} of {len(steps)} updates were refused: {', '.join(said)}"]
