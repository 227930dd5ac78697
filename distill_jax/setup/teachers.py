"""The teachers of a config: one or several, the student's average, a cache, a part of them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.data.cache import Cache, open_cache
from distill_jax.data.cache_files import Manifest
from distill_jax.losses import partial_targets
from distill_jax.losses.sparse import check_partial_terms
from distill_jax.losses.targets import SPACES
from distill_jax.losses.terms import CROSS_ENTROPY, Term, needs_teacher
from distill_jax.models.binding import Model
from distill_jax.objective import (
    Teach,
    cached_teacher,
    live_teacher,
    mixed_teachers,
    partial_teacher,
)
from distill_jax.setup.models import Loaded, check_length, load_model, load_teacher
from distill_jax.setup.quantising import noted
from distill_jax.sharding import place_whole
from distill_jax.types import Advance, UserError, silent

AVERAGE = "average"
Part = Callable[..., Any]


class Teachers(NamedTuple):
    """The teachers of a run. `loaded`: the models of teacher.path and teacher.more, in order."""

    loaded: tuple[Loaded, ...]
    cache: Cache | None
    head: Any  # of the teacher whose hidden states a cache holds: (weight_DV, bias_V)
    average: bool  # whether the student's running average is one of them

    @property
    def first(self) -> Loaded | None:
        """The teacher that texts, tables and pruning use."""
        return self.loaded[0] if self.loaded else None


def check(c: ConfigDict, terms: tuple[Term, ...]) -> None:
    """Raises UserError for what can be seen to be wrong before a model is read."""
    t = c.teacher
    choose("teacher.mix", t.mix, SPACES)
    choose("teacher.targets", t.targets, TARGETS)
    paths = _paths(c)
    if not paths and not t.cache and needs_teacher(terms):
        raise UserError(
            "config.teacher.path is empty and the loss compares with a teacher: give"
            " --config.teacher.path=PATH, or let cross_entropy be the only weight"
        )
    if t.cache and (t.more or t.path == AVERAGE):
        raise UserError(
            "config.teacher.cache holds one teacher: leave config.teacher.more empty, and do not"
            " set config.teacher.path to average"
        )
    if t.weights and len(t.weights) != len(paths):
        raise UserError(
            f"config.teacher.weights has {len(t.weights)} numbers for {len(paths)} teachers:"
            " give one for each of teacher.path and teacher.more"
        )
    if t.targets != "hidden" and not t.cache and len(paths) > 1:
        raise UserError(
            f"config.teacher.targets {t.targets} needs a single teacher and config.teacher.more"
            " names others: use hidden"
        )
    if not t.cache:
        _check_part(c, t.targets, temperatures_of(terms), terms)


def _check_part(c, kind, temperatures, terms):
    """Raises UserError for a term that a kind of partial targets cannot serve."""
    if kind == "hidden" or not needs_teacher(terms):
        return
    if kind == "top_k":
        policy = partial_targets.check_policy("teacher.policy", c.teacher.policy)
    else:
        policy = None if kind == "sampled" else "renormalise"
    check_partial_terms(terms, temperatures, policy)


def load_teachers(
    c: ConfigDict, terms: tuple[Term, ...], mesh: Mesh, advance: Advance = silent
) -> Teachers:
    """Reads every model and the cache. Raises UserError where a cache is another teacher's."""
    paths = [path for path in c.teacher.more if path != AVERAGE]
    of = c.teacher.dtype, c.teacher.shard
    more = [load_model(c, path, *of, mesh, advance) for path in paths]
    first = load_teacher(c, mesh, advance) if c.teacher.path != AVERAGE else None
    loaded = (first, *more) if first else tuple(more)
    for one in loaded:
        check_length(c, one.model.config, one.path)
    found = Teachers(loaded, None, None, AVERAGE in _paths(c))
    return read_cache(c, found, terms, mesh) if c.teacher.cache else found


def read_cache(c: ConfigDict, teachers: Teachers, terms: tuple[Term, ...], mesh: Mesh) -> Teachers:
    """The same models with the cache. Raises UserError where it cannot serve a term."""
    cache = open_cache(Path(c.teacher.cache))
    form = cache.manifest.form
    _check_part(c, cache.manifest.kind, tuple(form["temperatures"]), terms)
    head = cache.head()
    return Teachers(teachers.loaded, cache, head and place_whole(head, mesh), False)


def teach_of(
    c: ConfigDict, teachers: Teachers, terms: tuple[Term, ...], student: Model, mesh: Mesh
) -> tuple[Teach | None, tuple]:
    """The function that gives the loss its targets, and its parameters; None where no term asks."""
    if not needs_teacher(terms):
        return None, ()
    if teachers.cache is not None:
        return _of_cache(teachers, c.teacher.policy)
    params = tuple(loaded.params for loaded in teachers.loaded)
    models = tuple(loaded.model for loaded in teachers.loaded)
    if teachers.average:
        models = (*models, student)
    if len(models) > 1:
        return mixed_teachers(models, _weights(c), c.teacher.mix), params
    teach = live_teacher(models[0])
    if c.teacher.targets != "hidden":
        teach = partial_teacher(teach, part_of(c, temperatures_of(terms), mesh))
    return teach, params


def measure_of(c: ConfigDict, teachers: Teachers) -> tuple[Teach | None, tuple]:
    """The function that gives whole distributions for evaluation, and its parameters."""
    if teachers.cache is not None and teachers.cache.manifest.kind == "hidden":
        return _of_cache(teachers, "")
    if not teachers.loaded:
        return None, ()
    params = tuple(loaded.params for loaded in teachers.loaded)
    if len(params) == 1:
        return live_teacher(teachers.loaded[0].model), params
    weights = _weights(c)[: len(params)]
    weights = tuple(w / sum(weights) for w in weights)
    models = tuple(loaded.model for loaded in teachers.loaded)
    return mixed_teachers(models, weights, c.teacher.mix), params


def identity(teachers: Teachers) -> dict[str, str | None]:
    """What identifies the teachers, for the provenance of a run."""
    cache, first = teachers.cache, teachers.first
    stored = cache.manifest.hashes["teacher"] if cache else None
    more = {f"teacher.{i}.sha256": t.fingerprint for i, t in enumerate(teachers.loaded[1:], 2)}
    kind = f"{cache.manifest.kind} {cache.manifest.form['dtype']}" if cache else None
    sha256 = {"teacher.sha256": first.fingerprint if first else stored, **more}
    return {**sha256, **noted(teachers.loaded), "teacher.cache": kind}


def part_of(c: ConfigDict, temperatures: tuple[float, ...], mesh: Mesh) -> Part:
    """The function that keeps a part of a full distribution, by teacher.targets."""
    of = {"block_tokens": c.model.block_tokens, "mesh": mesh}
    return TARGETS[c.teacher.targets](c, temperatures, of)


def temperatures_of(terms: tuple[Term, ...]) -> tuple[float, ...]:
    """1 and all others at which a term compares."""
    others = {term.temperature for term in terms if term.name != CROSS_ENTROPY} - {1.0}
    return (1.0, *sorted(others))


def cached(manifest: Manifest, policy: str) -> Teach:
    """The targets that a cache of a manifest holds; policy: for the mass outside top_k."""
    form = manifest.form
    return cached_teacher(
        manifest.kind,
        head=(form["softcap"], form["scale"]),
        temperatures=tuple(form["temperatures"]),
        policy=policy if manifest.kind == "top_k" else "renormalise",
        vocab=form["vocab"],
    )


def _of_cache(teachers: Teachers, policy: str) -> tuple[Teach, tuple]:
    params = () if teachers.head is None else (teachers.head,)
    return cached(teachers.cache.manifest, policy), params


def _paths(c: ConfigDict) -> tuple[str, ...]:
    return tuple(path for path in (c.teacher.path, *c.teacher.more) if path)


def _weights(c: ConfigDict) -> tuple[float, ...]:
    """Of each teacher in the order of their parameters: the running average is the last."""
    paths = _paths(c)
    given = c.teacher.weights or [1.0] * len(paths)
    ordered = sorted(zip(paths, given, strict=True), key=lambda pair: pair[0] == AVERAGE)
    return tuple(weight / sum(given) for _, weight in ordered)


def _top_k(c, temperatures, blocks):
    options = {"temperatures": temperatures, "policy": c.teacher.policy or "renormalise"}
    of = partial(partial_targets.top_k, k=c.teacher.k, **blocks, **options)
    return lambda targets, batch, key: of(targets)


def _sampled(c, temperatures, blocks):
    of = partial(partial_targets.sampled, **blocks)
    return lambda targets, batch, key: of(targets, _uniforms(c, batch, key))


def _sampled_renormalised(c, temperatures, blocks):
    of = partial(partial_targets.sampled_renormalised, temperatures=temperatures, **blocks)
    return lambda targets, batch, key: of(targets, _uniforms(c, batch, key))


def _uniforms(c, batch, key) -> jax.Array:
    return partial_targets.uniforms(key, batch.tokens_BT, batch.segment_BT, c.teacher.draws)


TARGETS: dict[str, Callable[..., Part] | None] = {
    "hidden": None,
    "top_k": _top_k,
    "sampled": _sampled,
    "sampled_renormalised": _sampled_renormalised,
}
