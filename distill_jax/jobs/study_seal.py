"""What a study does about runs that it finds: whole ones count, damaged ones are made again.

A run is sealed once it is trained and again once it is measured. What has changed since is renamed,
said in a line, and made again from the nearest thing that is whole: the exported student, the last
checkpoint, or the start. Process 0 does it alone, before the others look.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from distill_jax import workdir
from distill_jax.config import flatten, load_base
from distill_jax.evals.aggregates import aggregate
from distill_jax.evals.records_file import read_records
from distill_jax.files import DAMAGED, read_sealed, remove, sealed, set_aside, write_json
from distill_jax.progress import say
from distill_jax.seals import SEAL, Seal, changed, hash_of, read_seal, write_seal
from distill_jax.setup.arm_config import arm_config
from distill_jax.setup.owner import MAY_CHANGE, matches
from distill_jax.study.results import PlannedArm
from distill_jax.types import UserError

PLAN, RESULT, SERVING = "study.json", "result.json", "serving.json"
TOKENS, BEHAVIOUR, EXAMPLES = "tokens.parquet", "behaviour.json", "examples.json"
MEASURED = (TOKENS, BEHAVIOUR, EXAMPLES, RESULT)
SAME_NUMBER = 1e-9  # relative: sums in another order than another machine's

Looks = tuple[tuple[int, ...], ...]


def of_study(c: ConfigDict, texts: Mapping[str, str]) -> dict[str, Any]:
    """What everything in a study's workdir belongs to. texts: hashes of what is read, by name."""
    return {"config": hash_of(_counted(flatten(c))), **texts}


def of_run(c: ConfigDict, p: PlannedArm, seed: int, texts: Mapping[str, str]) -> dict[str, Any]:
    """The same of one arm x seed."""
    own = flatten(arm_config(c, p.arm, seed, steps=p.steps))
    config = hash_of(_counted(flatten(c) | own))
    return {"arm": p.arm.name, "seed": seed, "steps": p.steps, "config": config, **texts}


def _counted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that a rerun of a study may not change, where they are not as in configs/base.py.

    A key that a later version adds so changes no seal. A default that a later version changes is
    seen in config.json, which has them all.
    """
    free, defaults = MAY_CHANGE["study"], flatten(load_base())
    other = lambda key, value: key not in defaults or value != defaults[key]
    return {k: v for k, v in values.items() if other(k, v) and not matches(k, free)}


def seal_run(where: Path, of: Mapping[str, Any], *, look: int, failed: bool) -> None:
    """Seals what a run has written. look: that it was measured for. failed: it broke down."""
    names = (*MEASURED, workdir.METRICS, workdir.STUDENT)
    write_seal(where, names, dict(of) | {"look": look, "failed": failed})


def mend_run(where: Path, of: Mapping[str, Any]) -> None:
    """Leaves result.json where the run is whole and `of` this study alone; says what is not.

    Raises UserError where it is whole and of another config or text.
    """
    seal, trained = read_seal(where), (where / workdir.REPORT).exists()
    if seal is None:
        if (where / SEAL).exists() or (where / RESULT).exists():
            why = f"{SEAL} is damaged" if (where / SEAL).exists() else f"it has no {SEAL}"
            how = "measured" if trained else "trained"
            _make_again(where, [SEAL], [RESULT], f"{why}: it is {how} again")
        return
    differ = [key for key, value in of.items() if seal.of.get(key) != value]
    if differ:
        _of_another(where, seal, of, differ)
        return
    broken = changed(where, seal)
    if any(name.startswith(f"{workdir.STUDENT}/") for name in broken):
        lost = [name for name in broken if "/" not in name]
        why = f"{_have(broken)}: it is trained again, from its last checkpoint if there is one"
        _make_again(where, [workdir.STUDENT, *lost], [workdir.REPORT, RESULT, SEAL], why)
    elif set(broken) & set(MEASURED):
        how = "measured again from its student" if trained else "trained again"
        _make_again(where, broken, [RESULT, SEAL], f"{_have(broken)}: it is {how}")
    elif broken:
        _make_again(where, broken, [], f"{_have(broken)}: its learning curve is missing")
        write_seal(where, seal.files, seal.of)
    elif (where / RESULT).exists() and (why := _unlike_records(where, seal)):
        _make_again(where, [RESULT], [SEAL], f"{why}: it is measured again")


def _of_another(where: Path, seal: Seal, of: Mapping[str, Any], differ: list[str]) -> None:
    """A run that is whole, but not of this place, text or config."""
    theirs = f"{seal.of.get('arm')} seed {seal.of.get('seed')}"
    if {"arm", "seed"} & set(differ):
        why = f"its {SEAL} is of {theirs}: it is trained again"
    elif seal.of.get("failed") and set(differ) <= {"config", "steps"}:
        why = "it broke down with another config: it is trained again with this one"
    else:
        raise UserError(
            f"{where} was measured with another {' and '.join(differ)}: bring the old one back,"
            " give a changed ablation another name, or use another --workdir"
        )
    say(f"{where}: {why} (what there was: {set_aside(where)})")


def _unlike_records(where: Path, seal: Seal) -> str | None:
    """Why result.json cannot be of the records beside it."""
    if RESULT not in seal.files:
        return "it was stopped before it was sealed"
    result = json.loads((where / RESULT).read_text(encoding="utf-8"))
    if seal.of.get("failed"):
        return None
    for name, value in aggregate(read_records(where / TOKENS).columns).items():
        said = result["metrics"].get(name)
        same = said == value or (
            None not in (said, value) and math.isclose(said, value, rel_tol=SAME_NUMBER)
        )
        if not same:
            return f"{RESULT} says {name} {said} and its records {value}"
    return None


def _have(names: list[str]) -> str:
    first = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{first}{more} {'is' if len(names) == 1 else 'are'} damaged or lost"


def _make_again(where: Path, damaged: Iterable[str], remade: Iterable[str], why: str) -> None:
    """Renames what is damaged, removes what is made again, the seal last, and says so."""
    kept = [set_aside(where / name).name for name in damaged if (where / name).exists()]
    for name in remade:
        remove(where / name)
    say(f"{where}: {why}" + (f" (set aside: {', '.join(kept)})" if kept else ""))


def write_part(path: Path, of: Mapping[str, Any], value: Mapping[str, Any]) -> None:
    """Writes a JSON object that is shared by all runs, sealed with what it belongs to."""
    write_json(path, sealed({"of": dict(of), **value}))


def start_of_seed(directory: Path, seed: int) -> Path:
    """Where the pruned student is that all arms of a seed start from."""
    return directory / "students" / f"seed-{seed}"


def mend_parts(directory: Path, of: Mapping[str, Any], seeds: Iterable[int]) -> None:
    """Sets aside, of what all runs share, what is damaged or of another study; says so."""
    teacher = directory / "teacher" / BEHAVIOUR
    for path in (teacher, directory / SERVING):
        if path.exists() and (read_sealed(path) or {}).get("of") != of:
            say(f"{path} is damaged: it is measured again (set aside: {set_aside(path).name})")
    for seed in seeds:
        start = start_of_seed(directory, seed)
        seal = read_seal(start)
        if start.exists() and (
            seal is None or seal.of != of | {"seed": seed} or changed(start, seal)
        ):
            say(f"{start} is damaged: it is pruned again (set aside: {set_aside(start).name})")
    if (directory / PLAN).exists() and read_sealed(directory / PLAN) is None:
        aside = set_aside(directory / PLAN).name
        say(
            f"{directory / PLAN} is damaged: its looks are taken from the runs (set aside: {aside})"
        )


def earlier_looks(directory: Path) -> Looks:
    """The seeds of every verdict that was given in this directory.

    Where study.json is lost, by the seals of the runs, which say for which look each was measured.
    """
    plan = read_sealed(directory / PLAN)
    if plan is not None and "looks" in plan:
        return tuple(tuple(look) for look in plan["looks"])
    first: dict[int, int] = {}
    for path in directory.glob(f"arms/*/*/{SEAL}"):
        seal = read_seal(path.parent)
        if seal is not None and RESULT in seal.files and DAMAGED not in path.parent.name:
            seed, look = seal.of["seed"], seal.of["look"]
            first[seed] = min(look, first.get(seed, look))
    number = sorted(set(first.values()))
    return tuple(tuple(sorted(s for s, at in first.items() if at <= n)) for n in number)
