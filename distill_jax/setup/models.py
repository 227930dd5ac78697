"""Teacher and student of a config: read, checked against each other, placed on the mesh."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.data.tokenizer import Tokenizer, load_tokenizer
from distill_jax.data.tokenizer_difference import first_difference
from distill_jax.models import huggingface
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.binding import REMAT, Model, bind
from distill_jax.models.families import read_config
from distill_jax.models.load import load_checkpoint, resolve
from distill_jax.models.weights import Checkpoint
from distill_jax.models.weights import fingerprint as weights_fingerprint
from distill_jax.quantised import Bits, is_quantised
from distill_jax.report.number_formats import parameters
from distill_jax.report.tables import Size
from distill_jax.setup.bits import bits_of, wide_dtype
from distill_jax.setup.identity import digests, identity
from distill_jax.setup.placing import place_params
from distill_jax.sharding import check_batch, check_row, make_mesh
from distill_jax.types import Advance, Params, UserError, silent

TEACHER = 3  # the stream of random numbers for a teacher without knowledge
TEACHER_INITS = ("checkpoint", "random")
RANDOM = "random:"  # how the fingerprint of a teacher without knowledge begins


class Cost(NamedTuple):
    """KL(wide || quantised) of a model over so many held-out tokens, in nats per token."""

    kl: float
    tokens: int


class Loaded(NamedTuple):
    """A model on the mesh, its tokenizer, and what identifies it.

    fingerprint  see setup/identity.py
    former       computes what former versions identified it by; None where they had the same
    cost         of its quantising, where that was measured
    """

    model: Model
    params: Params
    tokenizer: Tokenizer
    path: str
    fingerprint: str
    former: Callable[[], str] | None = None
    cost: Cost | None = None


class Source(NamedTuple):
    """Where a student comes from: an architecture, and the weights for it, if any."""

    config: ModelConfig
    read: Checkpoint | None


def mesh_of(c: ConfigDict, *parts: str) -> Mesh:
    """The mesh over all devices. Raises UserError where it does not divide a part's batches."""
    m = c.mesh
    mesh = make_mesh(m.data, m.fsdp, m.tensor, m.expert, m.sequence)
    if parts:
        check_row("data.seq_len", c.data.seq_len, mesh)
    for part in parts:
        microbatches = c[part].get("microbatches", 1)
        check_batch(f"{part}.batch_size", c[part].batch_size, microbatches, mesh)
    return mesh


def bind_config(c: ConfigDict, config: ModelConfig, dtype: str, mesh: Mesh | None = None) -> Model:
    """The decoder of an architecture with the dtypes and remat policy of a config.

    mesh: that it is computed on; None: that of the config over all devices here. Raises UserError
    where its experts do not divide over it.
    """
    remat = choose("model.remat", c.model.remat, REMAT)
    mesh = mesh_of(c) if mesh is None else mesh
    if config.experts and config.experts % mesh.shape["expert"]:
        raise UserError(
            f"config.mesh.expert is {mesh.shape['expert']}, which does not divide the"
            f" {config.experts} experts of a model: use a divisor"
        )
    bits = bits_of(c, dtype)
    dtypes = {"param_dtype": wide_dtype(c, dtype), "compute_dtype": c.model.compute_dtype}
    return bind(config, **dtypes, remat=remat, mesh=mesh, bits=bits)


def load_model(
    c: ConfigDict,
    path: str,
    dtype: str,
    shard: Sequence[str],
    mesh: Mesh,
    advance: Advance = silent,
) -> Loaded:
    """Reads of a model path what this process's devices hold of it. Every process must call it.

    shard: the mesh axes that its parameters are split over.
    """
    read = load_checkpoint(path, dtype=jnp.dtype(wide_dtype(c, dtype)))
    model = bind_config(c, read.config, dtype, mesh)
    advance(f"tokenizer of {path}", 0, 0)
    tokenizer = load_tokenizer(read.path)
    with ThreadPoolExecutor(1) as aside:  # both read the same files
        hashing = aside.submit(digests, read.files)
        params = place_params(model, read.params, mesh, shard, told_of(path, advance))
        advance(f"hashing {path}", 0, 0)
        fingerprint = identity(hashing.result(), _held_in(model.bits, dtype))
    former = None if model.bits else partial(weights_fingerprint, read.params)
    return Loaded(model, params, tokenizer, path, fingerprint, former)


def _held_in(bits: Bits | None, dtype: str) -> str:
    return f"{dtype}/{bits.group}" if bits and bits.group else dtype


def load_only_model(c: ConfigDict, mesh: Mesh, advance: Advance = silent) -> Loaded:
    """The one model of a job without training: student.path, or else teacher.path."""
    path = c.student.path or c.teacher.path
    if not path:
        raise UserError("config.student.path is empty: give --config.student.path=PATH")
    of = c.student if c.student.path else c.teacher
    return load_model(c, path, of.dtype, of.shard, mesh, advance)


def load_measured(
    c: ConfigDict, mesh: Mesh, baseline: str = "", advance: Advance = silent
) -> dict[str, Loaded]:
    """`teacher` where both paths are given, `student`, and `baseline` where a path is given.

    Raises UserError where tokenizers differ, or where a row is longer than a model's positions.
    """
    teacher = load_teacher(c, mesh, advance) if c.student.path else None
    models = {"teacher": teacher} if teacher else {}
    models["student"] = load_only_model(c, mesh, advance)
    if baseline:
        of_student = c.student.dtype, c.student.shard
        models["baseline"] = load_model(c, baseline, *of_student, mesh, advance)
    for loaded in models.values():
        check_length(c, loaded.model.config, loaded.path)
        check_tokenizers(loaded.tokenizer, teacher and teacher.tokenizer)
    return models


def load_teacher(c: ConfigDict, mesh: Mesh, advance: Advance = silent) -> Loaded | None:
    """The teacher of a config; None where it names none."""
    if not c.teacher.path:
        return None
    loaded = load_model(c, c.teacher.path, c.teacher.dtype, c.teacher.shard, mesh, advance)
    if choose("teacher.init", c.teacher.init, TEACHER_INITS) == "random":
        return without_knowledge(c, loaded, mesh)
    return loaded


def without_knowledge(c: ConfigDict, loaded: Loaded, mesh: Mesh) -> Loaded:
    """A model of the same architecture with random weights, of config.seed."""
    params = place_params(loaded.model, _random(c, loaded.model), mesh, c.teacher.shard)
    fingerprint = f"{RANDOM}{c.seed}"
    return loaded._replace(params=params, fingerprint=fingerprint, former=None, cost=None)


def _random(c: ConfigDict, model: Model) -> Params:
    """The weights of a teacher without knowledge."""
    return model.init(jax.random.fold_in(jax.random.key(c.seed), TEACHER))


def student_source(c: ConfigDict, teacher: Loaded | None) -> Source:
    """The architecture the student starts from, and the weights of student.path.

    There are none where student.path is empty, which means the teacher's, or where only its
    architecture is wanted. Of a quantised teacher the weights are read again, as they were before.
    Raises UserError where there is neither path.
    """
    if not c.student.path:
        if teacher is None:
            raise UserError(
                "config.student.path and config.teacher.path are both empty:"
                " give --config.student.path=PATH"
            )
        if teacher.model.bits is None or c.student.init == "random":
            return Source(teacher.model.config, None)
        return _wide_source(c, teacher)
    directory = resolve(c.student.path)
    if c.student.init == "random" and directory.is_dir():
        raw = huggingface.read_json(directory / "config.json")
        return Source(read_config(raw, directory / "config.json"), None)
    read = load_checkpoint(c.student.path, dtype=jnp.dtype(c.student.dtype))
    return Source(read.config, read)


def _wide_source(c: ConfigDict, teacher: Loaded) -> Source:
    """The weights of a quantised teacher, in the dtype of the student that starts from them."""
    config, dtype = teacher.model.config, c.student.dtype
    if teacher.fingerprint.startswith(RANDOM):
        params = _random(c, bind_config(c, config, dtype))
        return Source(config, Checkpoint(config, params, Path(teacher.path)))
    return Source(config, load_checkpoint(teacher.path, dtype=jnp.dtype(dtype)))


def own_tokenizer(c: ConfigDict) -> Path | None:
    """Where the student has a tokenizer of its own; None where it takes the teacher's."""
    path = resolve(c.student.path) if c.student.path else None
    lacks = path is None or (path.is_dir() and not (path / "tokenizer.json").exists())
    return None if lacks else path


def student_tokenizer(c: ConfigDict, teacher: Tokenizer | None) -> Tokenizer:
    """The student's tokenizer, which must make the same tokens as the teacher's.

    A student without one (the architecture alone) takes the teacher's. Raises UserError naming the
    first token that differs.
    """
    path = own_tokenizer(c)
    if path is None:
        if teacher is None:
            raise UserError(
                f"config.student.path {c.student.path} has no tokenizer.json and there is no"
                " teacher to take one from: add the file"
            )
        return teacher
    tokenizer = load_tokenizer(path)
    check_tokenizers(tokenizer, teacher)
    return tokenizer


def check_tokenizers(tokenizer: Tokenizer, teacher: Tokenizer | None) -> None:
    """Raises UserError naming the first token that student and teacher make differently."""
    difference = teacher and first_difference(tokenizer, teacher)
    if difference:
        raise UserError(
            f"student and teacher have different tokenizers: {difference} (student first):"
            " use a student of the teacher's tokenizer"
        )


def check_length(c: ConfigDict, config: ModelConfig, name: str) -> None:
    """Raises UserError where a row is longer than the positions of a model."""
    if c.data.seq_len > config.max_positions:
        raise UserError(
            f"config.data.seq_len is {c.data.seq_len} and {name} has {config.max_positions}"
            f" positions: use at most {config.max_positions}"
        )


def told_of(path: str, advance: Advance) -> Advance:
    """The same, with the model that is read in words."""
    return lambda what, done, total: advance(f"{what} of {path}", done, total)


def size_line(name: str, loaded: Loaded) -> str:
    """How large a model is and where it is from, for a reader."""
    return f"{name}: {size_text(size_of(loaded.model, loaded.params))}, {loaded.path}"


def size_text(size: Size) -> str:
    """For a terminal, such as `46.7 M parameters, 12.9 M of them per token`."""
    text = f"{parameters(size.total)} parameters"
    return text if size.active is None else f"{text}, {parameters(size.active)} of them per token"


def size_of(model: Model, params: Params) -> Size:
    """The size of a model; of its experts, those of one token are active."""
    total, config = count(params), model.config
    if not config.experts:
        return Size(total)
    half = params["blocks"]["feed_forward"].items()
    of_experts = sum(leaf.size for name, leaf in half if name.startswith("expert_"))
    idle = config.experts - config.experts_per_token
    return Size(total, total - of_experts * idle // config.experts)


def count(params: Params) -> int:
    """Numbers in a parameter tree; a tied embedding counts once, scales do not."""
    return sum(leaf.size for leaf in jax.tree.leaves(params, is_leaf=is_quantised))
