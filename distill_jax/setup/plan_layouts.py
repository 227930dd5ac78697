"""What the models of memory and time, and a compiler, say of a layout, as plan.json has it."""

from collections.abc import Callable
from typing import Any

from distill_jax.config import as_flags, flatten
from distill_jax.planning.layout import Facts, Layout
from distill_jax.planning.owners import chip_bytes
from distill_jax.planning.roofline import COMPUTE, MEMORY, roofline, run_seconds
from distill_jax.planning.search import Tried
from distill_jax.report.plan import FAILS, FITS, NOT
from distill_jax.setup.compiling import Compiled
from distill_jax.setup.planning import Planned, config_of
from distill_jax.sharding import AXES

TRIES = 3  # layouts of a kind that are compiled before the search gives up


def layout_json(
    name: str, planned: Planned, facts: Facts, layout: Layout, compiled: Compiled | None
) -> dict[str, Any]:
    """A layout of plan.json. compiled: None where nothing was compiled."""
    c, limit = planned.config, planned.memory
    held, roof = chip_bytes(facts, layout), roofline(facts, layout, planned.topology)
    verdict = _verdict(held.total, compiled, limit)
    seconds = run_seconds(facts, layout, planned.topology)
    hours = None if seconds is None else seconds * c.steps / 3600
    price = c.plan.price_per_hour
    same, changed = (flatten(config_of(c, one)) for one in (planned.layout, layout))
    return {
        "name": name,
        "verdict": verdict,
        "fits": verdict == FITS,
        "flags": " ".join(as_flags(changed, same)),
        "keys": {key: changed[key] for key in _keys()},
        "bytes": {"phase": held.phase, "owners": held.owners, "total": held.total},
        "compiled": compiled and compiled._asdict(),
        "flops_per_token": roof.flops,
        "links": roof.links,
        "times": roof.times and {key: roof.times.get(key) for key in (COMPUTE, MEMORY, *AXES)},
        "bound": roof.bound,
        "step_seconds": roof.seconds,
        "hours": hours,
        "cost": hours * planned.topology.chips * price if price and hours is not None else None,
    }


def _keys() -> tuple[str, ...]:
    of_mesh = (f"mesh.{axis}" for axis in AXES)
    of_step = ("data.microbatches", "model.remat", "model.block_tokens")
    return (*of_mesh, *of_step, "teacher.dtype", "teacher.cache")


def _verdict(modelled: float, compiled: Compiled | None, limit: float) -> str:
    """By the compiler; where nothing was compiled, by the model of memory."""
    total = modelled if compiled is None else compiled.total
    if total is None:
        return FAILS
    refused = compiled is not None and compiled.refused
    return NOT if refused or total > limit else FITS


def first_that_fits(
    name: str, ordered: list[Tried], judged: Callable[[str, Layout], dict[str, Any]]
) -> tuple[dict[str, Any] | None, list[Tried]]:
    """The first of some layouts that fits, and those before it that do not after all."""
    refused = []
    for one in ordered:
        if len(refused) == TRIES:
            break
        found = judged(name, one.layout)
        if found["fits"]:
            return found, refused
        refused.append(one)
    return None, refused
