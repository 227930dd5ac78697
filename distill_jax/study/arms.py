"""The arms of a study: what each one changes in the config, and which other arm pays its steps."""

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distill_jax.types import UserError

TREATMENT, EQUAL_STEPS, EQUAL_FLOPS = "kd", "sft", "sft_flops"


class Arm(NamedTuple):
    """One way to train, run once a seed.

    overrides: config keys as `terms.forward_kl.weight`. labels_alone: no term but cross-entropy.
    flops_of: the arm whose operations this one may spend, for as many steps as they pay.
    """

    name: str
    what: str
    overrides: Mapping[str, Any] = {}
    labels_alone: bool = False
    flops_of: str | None = None


def arms_of(
    chosen: Iterable[str], ablations: Mapping[str, Mapping[str, Any]], base: Mapping[str, Any]
) -> list[Arm]:
    """The chosen arms in order; no name chosen means ARMS' first four and every ablation.

    ablations: overrides by name. Several values where the base has one are an axis: the ablation
    becomes one arm for each point of the product of its axes, `name-temperature=2.0`. base: every
    key and its default. Raises UserError for a name or key that does not exist, or one given twice.

    >>> key = "terms.forward_kl.temperature"
    >>> [arm.name for arm in arms_of(["hot"], {"hot": {key: (2.0, 4.0)}}, {key: 1.0})]
    ['hot-temperature=2.0', 'hot-temperature=4.0']
    """
    known = {name: [arm] for name, arm in ARMS.items()}
    for name, overrides in ablations.items():
        if name in known:
            raise UserError(
                f"config.study.ablations.{name} has the name of a built-in arm: give it another"
            )
        known[name] = _expand(name, overrides, base)
    names = list(chosen) or [*DEFAULT, *ablations]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"config.study.arms names {unknown[0]!r}: use some of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise UserError(f"config.study.arms names an arm twice: {', '.join(names)}")
    arms = [arm for name in names for arm in known[name]]
    present = {arm.name for arm in arms}
    if len(present) < len(arms):
        raise UserError(
            f"{len(arms) - len(present)} of the study's arms have the name of another"
            f" ({', '.join(arm.name for arm in arms)}): rename an ablation"
        )
    for arm in arms:
        if arm.flops_of and arm.flops_of not in present:
            raise UserError(
                f"config.study.arms has {arm.name} without {arm.flops_of}, whose operations it"
                f" may spend: add {arm.flops_of}"
            )
    return arms


def _expand(name: str, overrides: Mapping[str, Any], base: Mapping[str, Any]) -> list[Arm]:
    if unknown := [key for key in overrides if key not in base]:
        raise UserError(f"config.study.ablations.{name} changes {unknown[0]}, which is not a key")
    axes = {key: _values(value, base[key]) for key, value in overrides.items()}
    several = [key for key, values in axes.items() if len(values) > 1]
    arms = []
    for point in itertools.product(*axes.values()):
        changed = dict(zip(axes, point, strict=True))
        axis = [(key.rsplit(".", 1)[-1], changed[key]) for key in several]
        # An ablation that is named after its axis does not say so twice.
        first = [] if name in dict(axis) else [name]
        label = "-".join([*first, *(f"{key}={value}" for key, value in axis)])
        what = "with " + ", ".join(f"{key}={value}" for key, value in changed.items())
        # The name is a directory's too.
        arms.append(Arm(re.sub(r"[^\w.=+-]+", "_", label), what, changed))
    return arms


def _values(value: Any, default: Any) -> tuple:
    """The values of an axis: of a key that is itself a sequence, a sequence of sequences."""
    if not isinstance(value, tuple | list):
        return (value,)
    nested = bool(value) and all(isinstance(entry, tuple | list) for entry in value)
    if isinstance(default, tuple | list) and not nested:
        return (value,)
    return tuple(value)


ARMS = {arm.name: arm for arm in (
    Arm(TREATMENT, "distilled with the terms of the config"),
    Arm(EQUAL_STEPS, "labels alone, equal steps", {}, True),
    Arm(EQUAL_FLOPS, "labels alone, as many steps as the operations of kd pay", {}, True,
        TREATMENT),
    Arm("random_teacher", "the same loss, a teacher with random weights",
        {"teacher.init": "random", "teacher.cache": ""}),
    Arm("scratch", "labels alone from random weights", {"student.init": "random"}, True),
)}  # fmt: skip
DEFAULT = (TREATMENT, EQUAL_STEPS, EQUAL_FLOPS, "random_teacher")
