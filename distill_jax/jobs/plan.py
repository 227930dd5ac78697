"""The job plan: will it fit, how long, what does it cost; from two config.json files alone."""

import platform
from contextlib import nullcontext
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from distill_jax import __version__, workdir
from distill_jax.config import flatten, load_base
from distill_jax.data.cache_records import DTYPES
from distill_jax.planning.layout import Layout
from distill_jax.planning.search import fastest, search, smallest_change
from distill_jax.progress import Progress, say
from distill_jax.report.number_formats import FORMATS, THIN
from distill_jax.report.plan import (
    FASTEST,
    GIVEN,
    SMALLEST,
    plan_page,
    plan_report,
    plan_text,
)
from distill_jax.setup.compile_process import compile_process, has_tpu_compiler
from distill_jax.setup.compiling import Compiled
from distill_jax.setup.plan_layouts import first_that_fits, layout_json
from distill_jax.setup.planning import Planned, config_of, make_facts, read_plan, sizes_of
from distill_jax.types import COMPILING
from distill_jax.words import plural

PLAN, PLAN_PAGE = "plan.json", "plan.html"
PACKAGES = ("jax", "jaxlib", "libtpu")


def plan_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Plans the run of a config on config.plan.topology, and writes plan.json and plan.html.

    That it does not fit is an answer, not an error. Raises UserError as read_plan does.
    """
    with progress.stage("load", "counting what the step computes"):
        planned = read_plan(c)
        facts = make_facts(planned)
    compiles = compile_process(planned.topology) if c.plan.compile else nullcontext()
    notes: list[str] = []
    with compiles as compiler, progress.stage("plan", "planning") as stage:

        @cache
        def compiled(layout: Layout) -> Compiled | None:
            if compiler is None:
                return None
            stage.advance(f"{COMPILING} the step", 0, 0)
            return compiler(config_of(planned.config, layout))

        def judged(name: str, layout: Layout) -> dict[str, Any]:
            return layout_json(name, planned, facts, layout, compiled(layout))

        layouts = [judged(GIVEN, planned.layout)]
        stage.advance("searching layouts", 0, 0)
        found = search(facts, planned.layout, planned.topology, planned.memory)
        if not layouts[0]["fits"]:
            found = [one for one in found if one.changes]
        ordered = {} if layouts[0]["fits"] else {SMALLEST: smallest_change(found)}
        if planned.topology.chip.flops:
            ordered[FASTEST] = fastest(found)
        for name, several in ordered.items():
            one, refused = first_that_fits(name, several, judged)
            if refused:
                notes.append(_refused(name, len(refused), found=one is not None))
            if one is None and not refused:
                notes.append(f"{name}: no layout that was tried fits")
            if one and one["flags"] == layouts[-1]["flags"] != "":
                notes.append(f"the {layouts[-1]['name']} is the {name} layout too")
            elif one and one["flags"]:
                layouts.append(one)
    report = plan_report(
        statement=_statement(planned),
        topology=_topology(planned),
        models=sizes_of(planned),
        compiler=_compiler(planned),
        layouts=layouts,
        notes=[*notes, *_notes(planned, layouts)],
        config=_differences(c),
        provenance=_provenance(),
    )
    if jax.process_index() == 0:
        workdir.write_json(directory / PLAN, report)
        workdir.write_text(directory / PLAN_PAGE, plan_page(report))
    say(plan_text(report))
    say(f"\nplan: {directory / PLAN_PAGE}")


def _statement(planned: Planned) -> str:
    c, rows = planned.config, plural(planned.config.data.batch_size, "row")
    taught = f"{c.teacher.path} teaches " if planned.teacher else "Labels teach "
    tokens = f"{c.steps * planned.tokens_per_step:,} tokens"
    return (
        f"{taught}{c.student.path or 'a student of its own architecture'} in"
        f" {plural(c.steps, 'step')} of {rows} of {c.data.seq_len:,} tokens ({tokens}), on"
        f" {plural(planned.topology.chips, 'chip')} of the kind {planned.topology.kind}."
    )


def _topology(planned: Planned) -> dict[str, Any]:
    topology, chip = planned.topology, planned.topology.chip
    return {
        "name": topology.name,
        "chip": topology.kind,
        "chips": topology.chips,
        "memory": planned.memory,
        "flops": chip.flops and chip.flops.get(planned.config.model.compute_dtype),
        "bandwidth": chip.bandwidth,
        "link": chip.link,
        "network": chip.network,
        "source": chip.source,
    }


def _compiler(planned: Planned) -> str:
    if not planned.config.plan.compile:
        return "nothing"
    if has_tpu_compiler(planned.topology):
        return f"the compiler of TPUs, libtpu {metadata.version('libtpu')}"
    return f"the compiler of CPUs, for {planned.topology.chips} simulated devices"


def _refused(name: str, count: int, *, found: bool) -> str:
    layouts = f"{plural(count, 'layout')} that the model of memory lets pass"
    end = "the next one fits" if found else "the search ended there"
    return f"{name}: the compiler refused {layouts}; {end}"


def _notes(planned: Planned, layouts: list[dict[str, Any]]) -> list[str]:
    c, notes = planned.config, []
    notes.append(
        "times are those of training steps at published speeds: evaluations, checkpoints, reading"
        " and starting come on top"
    )
    platform = planned.topology.chip.platform if c.plan.compile else ""
    if platform == "tpu" and not has_tpu_compiler(planned.topology):
        notes.append(
            "the TPU's own compiler is not installed (pip install libtpu): simulated CPU devices"
            " took its place, whose temporaries differ"
        )
    if platform == "gpu":
        notes.append(
            "no compiler of GPUs runs without one: simulated CPU devices took its place, whose"
            " temporaries differ"
        )
    dtypes = {one["keys"]["teacher.dtype"] for one in layouts[1:]} - {c.teacher.dtype}
    if dtypes:
        notes.append(
            f"teacher.dtype {', '.join(sorted(dtypes))} rounds the teacher's weights: what that"
            " costs is measured before a run's first step"
        )
    if any(one["keys"]["teacher.cache"] for one in layouts[1:]) and not c.teacher.cache:
        tokens = c.steps * planned.tokens_per_step
        size = tokens * planned.teacher.width * DTYPES[c.cache.dtype].itemsize
        notes.append(
            f"teacher.cache is a directory that the job cache writes first, of up to"
            f" {FORMATS['bytes'](size).replace(THIN, ' ')}; that pass is in the hours"
        )
    return notes


def _differences(c: ConfigDict) -> dict[str, Any]:
    """The keys that differ from base."""
    base = flatten(load_base())
    return {key: value for key, value in flatten(c).items() if value != base.get(key)}


def _provenance() -> dict[str, Any]:
    versions: dict[str, Any] = {"distill_jax": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[f"package.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[f"package.{name}"] = None
    return versions
