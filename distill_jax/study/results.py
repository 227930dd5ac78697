"""What a study decides before its first run, and what each of its runs leaves behind."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_jax.study.arms import Arm
from distill_jax.types import UserError

Key = tuple[str, int]  # (arm, seed)


class Measure(NamedTuple):
    """What a verdict is about: a score per token, or per example, of every held-out document."""

    name: str
    unit: str
    higher_is_better: bool = False


class PlannedArm(NamedTuple):
    """An arm with the updates it makes and the operations of each."""

    arm: Arm
    steps: int
    step_flops: int

    @property
    def flops(self) -> int:
        """Operations of a whole run."""
        return self.steps * self.step_flops

    def json(self) -> dict[str, Any]:
        """As study.json has it."""
        arm = {"what": self.arm.what, "overrides": dict(self.arm.overrides)}
        return arm | {"steps": self.steps, "flops_per_step": self.step_flops}


class StudyPlan(NamedTuple):
    """Decided before any arm ran and written to study.json; more arms and seeds may come later.

    looks                 the seeds that each verdict so far was given on, this one's last.
    fixed_seeds           no seeds will be added, so that one look may spend the whole level.
    measure               what the verdict is about; secondary: what is reported beside it.
    margin, slice_margin  in the unit of the measure.
    slices                registered names; prompts and new_tokens: how much the models write.
    """

    arms: tuple[PlannedArm, ...]
    seeds: tuple[int, ...]
    looks: tuple[tuple[int, ...], ...]
    fixed_seeds: bool
    measure: Measure
    secondary: tuple[Measure, ...]
    margin: float
    slice_margin: float
    confidence: float
    slices: tuple[str, ...]
    prompts: int
    new_tokens: int
    held_out_sha256: str

    @property
    def look(self) -> int | None:
        """How often the study was looked at, this time included; None where it is once for all."""
        return None if self.fixed_seeds else len(self.looks)

    @property
    def by_name(self) -> dict[str, PlannedArm]:
        """The arms by their names, in order."""
        return {planned.arm.name: planned for planned in self.arms}

    def json(self) -> dict[str, Any]:
        """As study.json has it."""
        return self._asdict() | {
            "arms": {name: planned.json() for name, planned in self.by_name.items()},
            "seeds": list(self.seeds),
            "looks": [list(seeds) for seeds in self.looks],
            "measure": self.measure._asdict(),
            "secondary": [measure._asdict() for measure in self.secondary],
            "slices": list(self.slices),
        }


def looks_with(
    earlier: tuple[tuple[int, ...], ...], seeds: tuple[int, ...], *, fixed: bool
) -> tuple[tuple[int, ...], ...]:
    """The looks at a study, this one included; the same seeds again are the same look.

    Raises UserError where seeds were taken away, or added although they had been fixed.
    """
    if earlier and earlier[-1] == seeds:
        return earlier
    if earlier and not set(seeds) > set(earlier[-1]):
        raise UserError(
            f"config.study.seeds is {len(seeds)} and the verdict was given on"
            f" {len(earlier[-1])} seeds before: seeds can be added and not taken away"
        )
    if earlier and fixed:
        raise UserError(
            f"config.study.fixed_seeds is set and the verdict was given on {len(earlier[-1])}"
            " seeds: it stands; ask anew in another --workdir"
        )
    return (*earlier, seeds)


class RunResult(NamedTuple):
    """One arm x seed. workdir: relative to the study's. metrics and behaviour: values by name.

    failed: why the run broke down; then nothing was measured.
    """

    arm: str
    seed: int
    steps: int
    flops_per_step: int
    workdir: str
    wall_s: float | None = None
    parameters: int | None = None
    metrics: Mapping[str, float] = {}
    behaviour: Mapping[str, float | None] = {}
    failed: str | None = None

    @property
    def key(self) -> Key:
        return self.arm, self.seed

    def json(self) -> dict[str, Any]:
        """As result.json and results.jsonl have it: without what was not measured."""
        known = {name: value for name, value in self._asdict().items() if value not in (None, {})}
        return known | {"flops": self.steps * self.flops_per_step}


def result_of(values: Mapping[str, Any]) -> RunResult:
    """What RunResult.json wrote."""
    return RunResult(**{name: values[name] for name in RunResult._fields if name in values})
