"""How often the label is wrong, and how often it sees what is there; each question in tallies."""

import numpy as np

from distill_jax.study.rules import Rules
from distill_jax.study.table import read_table
from distill_jax.study.verdict import Comparison, judge_all
from experiments.verdict_audit import worlds
from experiments.verdict_audit.tally import (
    SLICE_MARGIN,
    Tally,
    first_seeds,
    generators,
    has_interval,
    improvement,
    judge,
    sides,
    tally,
    width,
    wrong,
)
from experiments.verdict_audit.worlds import BASELINE, TREATMENT, WORLDS, Part

BOUNDARY = (
    "false HELPS", "false WORSE", "effect below the interval", "effect above the interval",
    "covered", "INVALID",
)  # fmt: skip
LOOKS = (3, 5, 8, 12)
REACH = 200  # seeds beyond which no follow-up study is drawn
FEW = 20  # effective documents below which nothing is promised


def boundary(name: str, seeds: int, documents: int, studies: int) -> list[Tally]:
    """The true effect is the margin itself, by turns an improvement and a harm.

    Studies with fewer than 20 effective documents are counted apart.
    """
    world = WORLDS[name]
    enough, few = [], []  # (side, verdict, true effect)
    for side, rng in sides(f"boundary {name} {seeds} {documents}", studies):
        effect = improvement(world, side * world.margin)
        part = world.draw(rng, seeds, documents, effect)
        rows = enough if worlds.effective(part.weight_E) >= FEW else few
        rows.append((side, judge(part, world=world), effect))
    size = f"{seeds} x {documents}"
    level = 0.025 if world.independent else None
    tallies = _errors(name, size, enough, level) if enough else []
    return tallies + (_errors(f"{name}, few documents", size, few, None) if few else [])


def _errors(name: str, size: str, rows: list, level: float | None) -> list[Tally]:
    known = [(*v.interval, effect) for _, v, effect in rows if has_interval(v)]
    hits = (
        [wrong(v.label, 1) for side, v, _ in rows if side > 0],
        [wrong(v.label, -1) for side, v, _ in rows if side < 0],
        [effect < low for low, _, effect in known],
        [effect > high for _, high, effect in known],
        [low <= effect <= high for low, high, effect in known],
        [v.label == "INVALID" for _, v, _ in rows],
    )
    tallies = [
        tally(question, name, size, of, at_most=level)
        for question, of in zip(BOUNDARY[:4], hits[:4], strict=True)
    ]
    mean = float(np.mean([high - low for low, high, _ in known])) if known else None
    at_least = None if level is None else 1 - 2 * level
    tallies.append(tally(BOUNDARY[4], name, size, hits[4], at_least=at_least, mean=mean))
    return [*tallies, tally(BOUNDARY[5], name, size, hits[5], at_most=0.0)]


def power(name: str, seeds: int, documents: int, studies: int) -> list[Tally]:
    """A first study states the smallest effect it can find; a second one has twice that effect.

    Once the effect that the first study of the same pair stated, once the median of all of them.
    """
    world = WORLDS[name]

    def helps(rng, effect: float) -> bool:
        part = world.draw(rng, seeds, documents, improvement(world, effect))
        return judge(part, world=world).label == "HELPS"

    own, stated = [], []
    for rng in generators(f"power {name} {seeds} {documents}", studies):
        first = judge(world.draw(rng, seeds, documents, 0.0), world=world)
        smallest = first.minimum_detectable_effect
        own.append(smallest is not None and helps(rng, 2 * smallest))
        stated += [] if smallest is None else [smallest]
    middle = float(np.median(stated))
    again = generators(f"power at the median {name} {seeds} {documents}", studies)
    size = f"{seeds} x {documents}"
    return [
        tally("HELPS at twice its smallest effect", name, size, own, at_least=0.9),
        tally("HELPS at twice the median smallest effect", name, size,
              [helps(rng, 2 * middle) for rng in again], at_least=0.9, mean=middle),
    ]  # fmt: skip


def planning(seeds: int, documents: int, studies: int) -> list[Tally]:
    """Studies without an effect say how many seeds they need: does a study of that many decide?

    new: other documents and other seeds. added: the same documents, the first seeds kept, both
    studies counted as looks.
    """
    world = worlds.World(worlds.of_parts(seed=0.05, document=0.01, interaction=0.02))
    told, new, added, needed = [], [], [], []
    for rng in generators(f"planning {seeds} {documents}", studies):
        whole = world.draw(rng, REACH, documents, 0.0)
        first = judge(first_seeds(whole, seeds), world=world)
        if first.label == "INCONCLUSIVE":
            told.append(first.seeds_needed is not None)
        if told and told[-1] and (first.seeds_needed or REACH + 1) <= REACH:
            needed.append(first.seeds_needed)
            other = judge(world.draw(rng, first.seeds_needed, documents, 0.0), world=world)
            new.append(other.label != "INCONCLUSIVE")
        look = judge(first_seeds(whole, seeds), world=world, look=1)
        if look.label == "INCONCLUSIVE" and (look.seeds_needed or REACH + 1) <= REACH:
            second = judge(first_seeds(whole, look.seeds_needed), world=world, look=2)
            added.append(second.label != "INCONCLUSIVE")
    size = f"{seeds} x {documents}"
    middle = float(np.median(needed)) if needed else None
    return [
        tally("says how many seeds it needs", "no effect", size, told, mean=middle),
        tally("a new study with that many decides", "no effect", size, new, at_least=0.95),
        tally("seeds added up to that many decide", "no effect", size, added, at_least=0.95),
    ]


def adding_seeds(
    name: str, documents: int, studies: int, looks=LOOKS, margin: float | None = None
) -> list[Tally]:
    """Seeds are added until the verdict decides; the true effect is the margin itself.

    looks: how many seeds there are at the first look, at the second ... margin: None for that of
    the world; 0 makes every study one of both sides.
    """
    world = WORLDS[name]
    world = world if margin is None else world._replace(margin=margin)
    errors = {1: [], -1: []}
    for side, rng in sides(f"adding seeds {name} {documents}", studies):
        whole = world.draw(rng, looks[-1], documents, improvement(world, side * world.margin))
        label = "INCONCLUSIVE"
        for look, seeds in enumerate(looks, 1):
            if label == "INCONCLUSIVE":
                label = judge(first_seeds(whole, seeds), world=world, look=look).label
        for either in (1, -1):
            if either == side or world.margin == 0:
                errors[either].append(wrong(label, either))
    size = f"{', '.join(map(str, looks))} x {documents}"
    return [
        tally("false HELPS, seeds added", name, size, errors[1], at_most=0.025),
        tally("false WORSE, seeds added", name, size, errors[-1], at_most=0.025),
    ]


def discrete_power(studies: int, seeds: int = 5, documents: int = 2000) -> list[Tally]:
    """2,000 right-or-wrong answers, better by 8.7 points, margin 2 points."""
    world = WORLDS["accuracy"]._replace(margin=0.02)
    hits = [
        judge(world.draw(rng, seeds, documents, 0.087), world=world).label == "HELPS"
        for rng in generators("discrete power", studies)
    ]
    size = f"{seeds} x {documents}"
    return [tally("HELPS at +8.7 points", "accuracy", size, hits, at_least=0.95)]


def sure_answers(studies: int, seeds: int = 5, documents: int = 500) -> list[Tally]:
    """500 one-token answers of which 30% are sure in every run, better by 0.2 on average."""
    name = "one-token answers"
    seen = [
        judge(WORLDS[name].draw(rng, seeds, documents, -0.2), world=WORLDS[name])
        for rng in generators("sure answers", studies)
    ]
    mean = float(np.mean([width(v) for v in seen if has_interval(v)]))
    hits = [v.label == "HELPS" for v in seen]
    size = f"{seeds} x {documents}"
    return [tally("HELPS at -0.2", name, size, hits, at_least=0.95, mean=mean)]


def null_arms(seeds: int, documents: int, studies: int, arms: int = 12) -> list[Tally]:
    """12 treatments without any effect, judged at margin 0 against one baseline."""
    hits = []
    for rng in generators(f"null arms {seeds} {documents}", studies):
        value_ARE = worlds.crossed(rng, seeds, documents, np.zeros(arms), paired=False, seed=0.03)
        table = worlds.table(Part("all", value_ARE, worlds.tokens(rng, documents)))
        hits.append(any(v.label in ("HELPS", "WORSE") for v in compare(table, arms)))
    where, size = f"{arms} null arms", f"{seeds} x {documents}"
    return [tally("any false label at margin 0", where, size, hits, at_most=0.05)]


def compare(table, arms: int) -> tuple:
    """Verdicts on several treatments against the one baseline, at margin 0."""
    names = (TREATMENT, *worlds.more_arms(arms))
    rules = Rules(margin=0.0, slice_margin=SLICE_MARGIN)
    scores, _ = read_table(table, (*names, BASELINE), None)
    return judge_all([Comparison(scores, name, BASELINE, rules) for name in names])
