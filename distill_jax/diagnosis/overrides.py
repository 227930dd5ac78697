"""What can be changed about a run, as overrides of its config that this version understands."""

import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from distill_jax.config import as_flags
from distill_jax.losses.divergences import DIVERGENCES

Overrides = dict[str, Any]  # config key -> new value


class AdviceInputs(NamedTuple):
    """What advice may depend on beside the report.

    config                           every key of configs/base.py, flat, with its resolved value
    steps, flops_per_step            of the distilled arm; the FLOPs None where not counted
    targets                          what it learned of the teacher: hidden, top_k, sampled, ...
    cache_dtype                      of its teacher cache; None without one
    teacher_blocks, teacher_neurons  what pruning can keep at most; None: not known
    values                           of the report, by the names of TRIGGERS: filled in by advise()
    """

    config: Mapping[str, Any]
    steps: int
    flops_per_step: float | None
    targets: str = "hidden"
    cache_dtype: str | None = None
    teacher_blocks: int | None = None
    teacher_neurons: int | None = None
    values: Mapping[str, float] = {}


def flags(overrides: Overrides, config: Mapping[str, Any]) -> str:
    """Overrides as they are pasted into the command line."""
    return shlex.join(as_flags(overrides, config))


def instead(term: str) -> Callable[[AdviceInputs], Overrides]:
    """Another divergence in place of all that the run used, on the teacher's whole distribution."""

    def overrides(run: AdviceInputs) -> Overrides:
        if run.config[f"terms.{term}.weight"] > 0:
            return {}
        others = {}
        for name in DIVERGENCES:
            if name != term and run.config[f"terms.{name}.weight"] > 0:
                others[f"terms.{name}.weight"] = 0.0
                others[f"terms.{name}.schedule"] = "constant"
        return others | {f"terms.{term}.weight": 1.0} | whole_distribution(run)

    return overrides


def whole_distribution(run: AdviceInputs) -> Overrides:
    """Live hidden states in place of a part of the distribution."""
    return {} if run.targets == "hidden" else {"teacher.targets": "hidden", "teacher.cache": ""}


def labels(weight: float) -> Callable[[AdviceInputs], Overrides]:
    """At least that much cross-entropy on the labels."""
    key = "terms.cross_entropy.weight"
    return lambda run: {key: weight} if run.config[key] < weight else {}


def labels_at_the_end(run: AdviceInputs) -> Overrides:
    """From the divergences at the first step to the labels at the last."""
    active = [n for n in DIVERGENCES if run.config[f"terms.{n}.weight"] > 0]
    fading = {f"terms.{name}.schedule": "linear:0" for name in active}
    return fading | {"terms.cross_entropy.schedule": "linear:1"}


def soft_targets_only(run: AdviceInputs) -> Overrides:
    """No cross-entropy on the labels beside a divergence."""
    if run.config["terms.cross_entropy.weight"] == 0:
        return {}
    return {"terms.cross_entropy.weight": 0.0, "terms.cross_entropy.schedule": "constant"}


def softer(run: AdviceInputs) -> Overrides:
    """Both sides of the divergence at temperature 2, which weighs unlikely tokens more."""
    if run.config["terms.forward_kl.weight"] == 0:
        return {}
    return {"terms.forward_kl.temperature": 2.0} | whole_distribution(run)


def larger(run: AdviceInputs) -> Overrides:
    """A third more of what pruning keeps, at most all of it."""
    if run.config["student.init"] != "prune":
        return {}
    most = {"blocks": run.teacher_blocks, "neurons": run.teacher_neurons}
    kept = {name: run.config[f"student.prune.{name}"] for name in most}
    return {
        f"student.prune.{name}": min(math.ceil(kept[name] * 4 / 3), most[name])
        for name in most
        if kept[name] and most[name]
    }


def growth(run: AdviceInputs, overrides: Overrides) -> float:
    """An upper bound: as if all FLOPs, the teacher's and the head's too, were the grown parts'."""
    return math.prod(value / run.config[key] for key, value in overrides.items())


def best_checkpoint(run: AdviceInputs) -> Overrides:
    """The checkpoint of the lowest NLL; a study keeps none, but can stop as early."""
    if run.config["job"] != "study":
        return {"job": "export", "export.checkpoint": "best"}
    step = round(run.values.get("best_step", 0.0))
    return {"steps": step} if step else {}


def more_seeds(run: AdviceInputs) -> Overrides:
    """As many seeds as the verdict asks for."""
    missing = math.ceil(run.values.get("seeds_missing", 0.0))
    return {"study.seeds": run.config["study.seeds"] + missing}


def finer_cache(run: AdviceInputs) -> Overrides:
    """The teacher itself, or bfloat16 where a study makes the cache."""
    if run.cache_dtype != "int8":
        return {}
    return {"teacher.cache": ""} if run.config["teacher.cache"] else {"cache.dtype": "bfloat16"}
