"""The job cache: the teacher runs once over the text, and what it gives is stored for training."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from distill_jax.config import choose
from distill_jax.data.cache import open_cache, pieces_of
from distill_jax.data.cache_files import MANIFEST, Manifest, read_manifest, shard_keys
from distill_jax.data.cache_records import KINDS
from distill_jax.data.cache_writer import (
    Writer,
    check_disk,
    claim,
    finish,
    head_file,
    write_head,
)
from distill_jax.jobs.costs import with_costs
from distill_jax.losses.fused import linear_divergence
from distill_jax.losses.terms import Term
from distill_jax.objective import live_teacher, partial_teacher
from distill_jax.progress import COMPILE, Progress, Stage, say
from distill_jax.quantised import widened
from distill_jax.setup import data, reading, storing, teachers
from distill_jax.setup.early import check_read
from distill_jax.setup.hearing import Hear
from distill_jax.setup.loss import terms_of
from distill_jax.setup.models import Loaded, check_length, load_teacher, mesh_of, size_line
from distill_jax.setup.owner import claim as claim_directory
from distill_jax.sharding import (
    barrier,
    host_sharding,
    local_part,
    local_rows,
    writers_of_rows,
)
from distill_jax.signals import Saving, saving
from distill_jax.types import Batch, Stopped, UserError

STREAM = 2  # of random numbers


class CacheRun(NamedTuple):
    """What the parts of the job share."""

    config: ConfigDict
    directory: Path
    mesh: Mesh
    teacher: Loaded
    rows: list[Batch]
    compute: Any  # (params, batch) -> signals [B, T, ..] by name, jitted
    progress: Progress


def cache_job(c: ConfigDict, directory: Path, progress: Progress) -> None:
    """Writes config.teacher.targets of all training and held-out text into the workdir."""
    kind = c.teacher.targets
    check_read(c)
    mesh = mesh_of(c, "cache")
    choose("teacher.targets", kind, KINDS)
    choose("cache.dtype", c.cache.dtype, KINDS[kind].dtypes)
    if not c.teacher.path or c.teacher.path == teachers.AVERAGE or c.teacher.more:
        raise UserError(
            "the job cache stores one teacher: give --config.teacher.path=PATH, and no teacher.more"
        )
    if kind == "sampled" and not 1 <= c.teacher.draws <= 255:
        raise UserError(f"config.teacher.draws is {c.teacher.draws}: a cache holds 1 to 255 draws")
    with progress.stage("load", "reading the text") as stage:
        hear = Hear(stage.tell, say)
        documents, held_out = reading.training_documents(c, hear)
    with progress.stage("load", "reading the teacher") as stage:
        teacher = load_teacher(c, mesh, stage.advance)
    check_length(c, teacher.model.config, c.teacher.path)
    say(size_line("teacher", teacher))
    of = (teacher.tokenizer, teacher.model.config.vocab)
    with progress.stage("tokenise", "tokenising") as stage:
        hear = Hear(stage.tell, say)
        texts = [storing.tokenized(some, *of, hear) for some in (documents, held_out)]
        parts = [data.packed(c, text, seed=None) for text in texts]
    for name, part in zip(("training", "held-out"), parts, strict=True):
        say(f"{name} text: {data.description(part)}")
    with_costs(c, (teacher,), lambda: parts[1].rows, c.cache.batch_size, mesh, progress)
    rows = [part.rows[i] for part in parts for i in range(len(part.rows))]
    if jax.process_index() == 0:
        claim_directory(c, directory)
    fill_cache(c, directory, mesh, teacher, rows, progress)


def fill_cache(
    c: ConfigDict,
    directory: Path,
    mesh: Mesh,
    teacher: Loaded,
    rows: list[Batch],
    progress: Progress,
) -> None:
    """Stores the teacher's signals for all pieces of some rows, and reads one batch back."""
    kind = c.teacher.targets
    temperatures = teachers.temperatures_of(terms_of(c))
    compute = _compute(c, teacher, temperatures, mesh)
    run = CacheRun(c, directory, mesh, teacher, rows, compute, progress)
    stopped = read_manifest(directory) if (directory / MANIFEST).exists() else None
    hashes = data.cache_hashes(teacher, teacher.tokenizer, stopped)
    manifest = Manifest(kind, _form(c, teacher, temperatures), c.data.seq_len, hashes)
    _write(run, manifest)
    with progress.stage("check", "reading the cache back"):
        _report(run)


def _form(c: ConfigDict, teacher: Loaded, temperatures: tuple[float, ...]) -> dict[str, Any]:
    """The sizes of what is stored, and how the teacher's hidden states become logits."""
    unembed = jax.eval_shape(teacher.model.unembed, teacher.model.abstract())
    width, vocab = unembed.weight_DV.shape
    head = teacher.model.config
    k = min(c.teacher.k, vocab) if c.teacher.targets == "top_k" else c.teacher.draws
    sizes = {"width": width, "vocab": vocab, "k": k, "draws": c.teacher.draws}
    fixed = {"softcap": head.final_softcap, "scale": head.logit_scale}
    return {"dtype": c.cache.dtype, "temperatures": list(temperatures), **sizes, **fixed}


def _compute(c: ConfigDict, teacher: Loaded, temperatures: tuple[float, ...], mesh: Mesh):
    """The jitted function from a batch to the signals of a kind."""
    teach, kind = live_teacher(teacher.model), c.teacher.targets
    if kind != "hidden":
        teach = partial_teacher(teach, teachers.part_of(c, temperatures, mesh))
    key = jax.random.fold_in(jax.random.key(c.seed), STREAM)

    def compute(params, batch):
        targets = teach((params,), batch, key)
        if kind == "hidden":
            return {"hidden": targets.hidden_BTD}
        if kind == "sampled":
            counts = jax.numpy.round(targets.probability_BTE * c.teacher.draws)
            return {"ids": targets.ids_BTE, "counts": counts.astype("int32")}
        return {"ids": targets.ids_BTE, "logits": targets.logits_BTE, "rest": targets.rest_BTM}

    return jax.jit(compute, out_shardings=host_sharding(mesh))


def _write(run: CacheRun, manifest: Manifest) -> None:
    """Writes every piece that is not stored yet, batch by batch; a stop keeps what is done."""
    c, directory, process = run.config, run.directory, jax.process_index()
    head = None
    if manifest.kind == "hidden":
        head, digest = _head(run)
        manifest = manifest._replace(hashes=manifest.hashes | {"head": digest})
    pieces = [list(pieces_of(row)) for row in run.rows]
    tokens = {key: place.stop - place.start for row in pieces for place, key in row}
    with run.progress.stage(COMPILE, "compiling the teacher"):
        some = data.batch_of(run.rows[: c.cache.batch_size], c.cache.batch_size, run.mesh)
        run.compute.lower(run.teacher.params, some).compile()
    first = _signals(run, run.rows[: c.cache.batch_size])
    size = KINDS[manifest.kind].bytes_per_token(manifest.form, _distinct(first))
    total = sum(tokens.values())
    say(
        f"{manifest.kind} signals of {total:,} tokens, {size:,.0f} bytes per token:"
        f" {total * size / 1e9:.3f} GB"
    )
    if process == 0:
        claim(directory, manifest)
        if head is not None:
            write_head(directory, head)
    barrier("cache claimed")
    done = shard_keys(directory)
    left = sum(n for key, n in tokens.items() if key.hex() not in done)
    check_disk(directory, round(left * size))
    if left < total:
        say(f"{total - left:,} tokens are there already")
    writer = Writer(directory, manifest, process, c.cache.shard_tokens)
    todo = [i for i, row in enumerate(pieces) if any(key.hex() not in done for _, key in row)]
    barrier("cache read")
    with saving() as stop:
        with run.progress.stage("cache", "running the teacher") as stage:
            _batches(run, writer, pieces, todo, stop, stage)
        writer.commit()
    if stop.asked.is_set():
        raise Stopped("stopped by a signal after saving what the teacher gave so far")
    barrier("cache written")
    if process == 0:
        finish(directory, set(tokens))
    barrier("cache finished")


def _batches(
    run: CacheRun,
    writer: Writer,
    pieces: list[list[tuple[slice, bytes]]],
    todo: list[int],
    stop: Saving,
    stage: Stage,
) -> None:
    size, rows = run.config.cache.batch_size, run.rows
    part, seen, owner = local_rows(run.mesh, size), 0, {}
    mine = writers_of_rows(run.mesh, size)[part] == jax.process_index()
    tokens = sum(int((rows[i].segment_BT > 0).sum()) for i in todo)
    for i in todo:
        # Rows of several processes may hold the same piece: only one of them writes it.
        for _, key in pieces[i]:
            owner.setdefault(key, i)
    for start in range(0, len(todo), size):
        indices = todo[start : start + size]
        chosen = [rows[i] for i in indices]
        computed = _signals(run, chosen)
        for n, i in enumerate(indices[part]):
            for place, key in pieces[i]:
                if mine[n] and owner[key] == i and writer.missing([key]):
                    writer.add(key, {name: value[n][place] for name, value in computed.items()})
        stop.begun.set()
        if stop.asked.is_set():
            return
        seen += sum(int((row.segment_BT > 0).sum()) for row in chosen)
        stage.advance("tokens", seen, tokens)


def _signals(run: CacheRun, chosen: list[Batch]) -> dict[str, np.ndarray]:
    """The signals of this process's rows of a batch, after filling it up with padding rows."""
    size = run.config.cache.batch_size
    batch = data.batch_of(chosen, size, run.mesh)
    return jax.tree.map(local_part, run.compute(run.teacher.params, batch))


def _distinct(signals: dict[str, np.ndarray]) -> float:
    """Used entries per token, for kinds that store entries."""
    return float((signals["ids"] >= 0).sum(-1).mean()) if "ids" in signals else 0.0


def _head(run: CacheRun) -> tuple[bytes, str]:
    """The teacher's head beside its hidden states, so that training needs no teacher."""

    @jax.jit
    def wide(params):
        weight_DV, bias_V, *_ = run.teacher.model.unembed(params)
        return widened(weight_DV, run.config.model.compute_dtype), bias_V

    weight, bias = multihost_utils.process_allgather(wide(run.teacher.params), tiled=True)
    return head_file(np.asarray(weight), bias)


def _report(run: CacheRun) -> None:
    """Reads the cache as training will, and prints the KL of the stored form from the teacher."""
    size, teacher = run.config.cache.batch_size, run.teacher
    cache = open_cache(run.directory)
    manifest, teach = cache.manifest, teachers.cached(cache.manifest, "renormalise")
    stored = [cache.attach(row) for row in run.rows[:size]]
    batch = data.batch_of(stored, size, run.mesh, cache.padding)

    @jax.jit
    def lost(params, head, batch):
        live = live_teacher(teacher.model)((params,), batch, jax.random.key(0))
        return linear_divergence(
            live.hidden_BTD,
            live.unembed,
            teach((head,), batch, jax.random.key(0)),
            batch.labels_BT,
            (batch.segment_BT > 0).astype("float32"),
            terms=(Term("forward_kl", 1.0),),
            block_tokens=run.config.model.block_tokens,
            mesh=run.mesh,
        )[1]["forward_kl"]

    mean = lost(teacher.params, cache.head(), batch)
    say(
        f"wrote {manifest.pieces:,} pieces, {manifest.tokens:,} tokens to {run.directory};"
        f" KL(stored || teacher) {float(mean.total) / float(mean.count):.1e} nats per token"
        " over the first batch"
    )
