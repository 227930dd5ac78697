"""Studies whose true effect is known: seeds and documents are drawn, then every example's score.

Letters here: A arms (0 the baseline, 1 and on the treatments), R seeds, E documents
(examples). A score of arm a, seed r and document e is

    base_E + run_R + [a is a treatment] * (effect + seed_R + document_E + interaction_RE) + noise

where every part has mean 0 and is independent of the documents' weights, so that the effect is
exactly the expected difference of the arms, whatever the weights. base and run are shared by the
arms and cancel.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BASELINE, TREATMENT = "sft", "kd"


class Part(NamedTuple):
    """The scores of one slice; a document with weight 0 has no tokens in it."""

    name: str
    value_ARE: np.ndarray
    weight_E: np.ndarray


class World(NamedTuple):
    """draw(rng, seeds, documents, effect) -> Part; the margin is in the unit of the score."""

    draw: Callable[[np.random.Generator, int, int, float], Part]
    margin: float = 0.05
    higher_is_better: bool = False
    independent: bool = True  # seeds and documents, with a variance that such studies can see


def normal(rng, sd: float, *shape: int) -> np.ndarray:
    return sd * rng.standard_normal(shape)


def heavy(rng, sd: float, *shape: int) -> np.ndarray:
    """Student's t with 3 degrees of freedom, whose variance is 3."""
    return sd / 3**0.5 * rng.standard_t(3, shape)


def skewed(rng, sd: float, *shape: int) -> np.ndarray:
    return sd * (rng.standard_exponential(shape) - 1)


def crossed(
    rng, seeds, documents, effects_A, *, seed=0.02, document=0.1, interaction=0.05, paired=True,
    tails=normal,
) -> np.ndarray:  # fmt: skip
    """Scores [arms, seeds, documents] of positive size; effects_A: of the treatments alone.

    seed, document, interaction  standard deviations of the parts of treatment - baseline.
    paired                       else each arm has a seed's noise of its own, the baseline too.
    """
    effects = np.asarray(effects_A)[:, None, None]
    arms = len(effects)
    seed_AR = tails(rng, seed, arms, seeds)[:, :, None]
    document_AE = tails(rng, document, arms, documents)[:, None]
    room = np.abs(seed_AR).max(0) + np.abs(document_AE).max(0)  # shared: keeps scores positive
    base_RE = room + rng.uniform(2.5, 4, documents) + rng.uniform(0, 0.2, seeds)[:, None]
    noise_ARE = normal(rng, interaction / 2**0.5, arms + 1, seeds, documents)
    value_ARE = base_RE + noise_ARE
    value_ARE[1:] += effects + document_AE
    if paired:
        value_ARE[1:] += seed_AR
    else:
        own_AR = tails(rng, seed / 2**0.5, arms + 1, seeds)[:, :, None]
        value_ARE += own_AR - own_AR.min()
    return value_ARE


def tokens(rng, documents: int) -> np.ndarray:
    """Documents of about equal length."""
    return rng.integers(40, 80, documents)


def of_parts(**parts) -> Callable:
    """A world of crossed effects with these standard deviations and equal documents."""

    def draw(rng, seeds, documents, effect):
        value_ARE = crossed(rng, seeds, documents, [effect], **parts)
        return Part("all", value_ARE, tokens(rng, documents))

    return draw


def unequal_lengths(rng, seeds, documents, effect) -> Part:
    """Lognormal lengths: about a fifth of the documents is effective, for small studies more."""
    weight_E = np.ceil(100 * np.exp(1.2 * rng.standard_normal(documents)))
    return Part("all", crossed(rng, seeds, documents, [effect]), weight_E)


def accuracy(rng, seeds, documents, effect) -> Part:
    """Right or wrong, weight 1. What decides an answer is the document's in 7 seeds of 10."""
    chance_E = rng.uniform(0.25, 0.75, documents)
    gain_RE = effect + rng.uniform(-0.1, 0.1, documents) + rng.uniform(-0.03, 0.03, seeds)[:, None]
    luck_RE = np.where(
        rng.random((seeds, documents)) < 0.7,
        rng.random(documents),
        rng.random((seeds, documents)),
    )
    value_ARE = np.stack([luck_RE < chance_E, luck_RE < chance_E + gain_RE]).astype(float)
    return Part("all", value_ARE, np.ones(documents, int))


def one_token_answers(rng, seeds, documents, effect) -> Part:
    """Documents with one counted token, of which 30% are certain to every run of every arm."""
    value_ARE = crossed(rng, seeds, documents, [effect / 0.7])
    easy_E = rng.random(documents) < 0.3
    value_ARE = np.where(easy_E, 1e-7 * rng.random(value_ARE.shape), value_ARE)
    return Part("all", value_ARE, np.ones(documents, int))


def bad_runs(rng, seeds, documents, effect) -> Part:
    """One run in 20 of the treatment is worse by 0.5; the effect is the mean with those."""
    value_ARE = crossed(rng, seeds, documents, [effect - 0.05 * 0.5])
    value_ARE[1] += 0.5 * (rng.random((seeds, 1)) < 0.05)
    return Part("all", value_ARE, tokens(rng, documents))


WORLDS = {
    "normal": World(of_parts()),
    "seeds alone": World(of_parts(seed=0.05, document=0.01)),
    "documents alone": World(of_parts(seed=0, interaction=0.01)),
    "t(3)": World(of_parts(tails=heavy)),
    "interaction": World(of_parts(seed=0.005, document=0.01, interaction=0.3)),
    "unpaired": World(of_parts(paired=False, seed=0.05)),
    "unequal lengths": World(unequal_lengths),
    "accuracy": World(accuracy, higher_is_better=True),
    "one-token answers": World(one_token_answers),
    "skewed documents": World(of_parts(tails=skewed)),
    "bad runs": World(bad_runs, independent=False),
}


def effective(weight_E: np.ndarray) -> float:
    """How many documents of equal weight would vary as little as these."""
    return weight_E.sum() ** 2 / (weight_E.astype(float) ** 2).sum()


def table(*parts: Part, group_E: np.ndarray | None = None, names_E=None) -> dict[str, np.ndarray]:
    """The columns that a verdict takes: one row for an arm, a seed, a document and a slice."""
    columns = [_rows(part, group_E, names_E) for part in parts]
    return {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}


def more_arms(treatments: int) -> list[str]:
    """Names of the treatments after the first."""
    return [f"arm{a}" for a in range(2, treatments + 1)]


def _rows(part: Part, group_E, names_E) -> dict[str, np.ndarray]:
    arms, seeds, _ = part.value_ARE.shape
    held_E = np.flatnonzero(part.weight_E)
    many = len(held_E)
    names_E = (
        names_E
        if names_E is not None
        else np.char.add("d", np.arange(len(part.weight_E)).astype(str))
    )
    arm_names = np.array([BASELINE, TREATMENT, *more_arms(arms - 1)])
    rows = {
        "arm": np.repeat(arm_names, seeds * many),
        "seed": np.tile(np.repeat(np.arange(seeds), many), arms),
        "document": np.tile(names_E[held_E], arms * seeds),
        "slice": np.full(arms * seeds * many, part.name),
        "total": (part.value_ARE * part.weight_E)[:, :, held_E].ravel(),
        "weight": np.tile(part.weight_E[held_E], arms * seeds),
    }
    if group_E is not None:
        rows["group"] = np.tile(group_E[held_E], arms * seeds)
    return rows
