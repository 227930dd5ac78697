"""How long the runs of a study will still take, from those that ran."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from distill_jax.study.results import PlannedArm


class Took(NamedTuple):
    """What a run took: seconds of a step, and of all else without compiling, if that is known."""

    arm: str
    step_flops: int
    step_s: float
    rest_s: float | None = None


def run_seconds(planned: PlannedArm, took: Sequence[Took]) -> float | None:
    """Expected seconds of a whole run: by its own arm's steps, or else by operations of others'.

    None where nothing was measured.
    """
    if not took:
        return None
    own = [one.step_s for one in took if one.arm == planned.arm.name]
    if own:
        step_s = median(own)
    else:
        step_s = planned.step_flops * median(one.step_s / one.step_flops for one in took)
    rest = [one.rest_s for one in took if one.rest_s is not None]
    return planned.steps * step_s + (median(rest) if rest else 0.0)


def seconds_left(
    current: PlannedArm, elapsed_s: float, later: Sequence[PlannedArm], took: Sequence[Took]
) -> float | None:
    """Expected seconds of the current run from here on and of the later ones; None: not known."""
    whole = [run_seconds(planned, took) for planned in (current, *later)]
    if None in whole:
        return None
    return max(0.0, whole[0] - elapsed_s) + sum(whole[1:])
