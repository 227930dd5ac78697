"""What a study decides before its first run, and what each of its runs leaves behind."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from distill_jax.study.arms import Arm

Key = tuple[str, int]  # (arm, seed)


class PlannedArm(NamedTuple):
    """An arm with the updates it makes and the operations of each."""

    arm: Arm
    steps: int
    step_flops: int

    @property
    def flops(self) -> int:
        """Operations of a whole run."""
        return self.steps * self.step_flops


class StudyPlan(NamedTuple):
    """Decided before any arm ran and written to study.json; more arms and seeds may come later.

    margin, slice_margin  in the unit of what is measured.
    slices                registered names; prompts and new_tokens: how much the models write.
    """

    arms: tuple[PlannedArm, ...]
    seeds: tuple[int, ...]
    margin: float
    slice_margin: float
    confidence: float
    one_token_documents: bool
    slices: tuple[str, ...]
    prompts: int
    new_tokens: int
    held_out_sha256: str

    @property
    def by_name(self) -> dict[str, PlannedArm]:
        """The arms by their names, in order."""
        return {planned.arm.name: planned for planned in self.arms}

    def json(self) -> dict[str, Any]:
        """As study.json has it."""
        arms = {
            name: {
                "what": planned.arm.what,
                "overrides": dict(planned.arm.overrides),
                "steps": planned.steps,
                "flops_per_step": planned.step_flops,
            }
            for name, planned in self.by_name.items()
        }
        return self._asdict() | {
            "arms": arms,
            "seeds": list(self.seeds),
            "slices": list(self.slices),
        }


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
