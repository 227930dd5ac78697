"""Damages checkpoints in every way that a disk can, and counts what a run would go on from.

    python -m experiments.chaos.damage --flips=4 --out=/tmp/damage.jsonl

Two checkpoints of a small training state are written; the newer one is damaged, with the older one
beside it and alone. Each file is truncated, emptied, deleted, filled with zeros and grown, and of
each single bits are flipped at `--flips` places, of the file with the arrays at 60 times as many.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from distill_jax import checkpoint
from distill_jax.types import TrainState, UserError

OLDER, NEWER = 4, 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", type=int, default=4, help="places per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a line of JSON per case")
    flags = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    lines = []
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / "written"
        manager = opened(written)
        for step in (OLDER, NEWER):
            checkpoint.save(manager, state_of(step), {"eval/nll": 1.0})
        manager.close()
        for name, kind, damage in cases(written / f"step_{NEWER}", flags.flips, flags.seed):
            for alone in (False, True):
                copy = shutil.copytree(written, Path(place) / "copy")
                if alone:
                    shutil.rmtree(copy / f"step_{OLDER}")
                damage(copy / f"step_{NEWER}" / name)
                outcome, said = tried(copy)
                beside = "alone" if alone else "an older one beside"
                lines.append({"file": name, "damage": kind, "beside": beside, "outcome": outcome})
                lines[-1]["said"] = said
                shutil.rmtree(copy)
    if flags.out:
        flags.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    counts = Counter((line["damage"], line["beside"], line["outcome"]) for line in lines)
    for (kind, beside, outcome), count in sorted(counts.items()):
        print(f"{kind:10} {beside:20} {outcome:40} {count:4}")


def state_of(step: int) -> TrainState:
    """A training state like a small decoder's: parameters, two moments, counters."""
    shapes = {"embedding": (300, 16), "up": (2, 16, 24), "norm": (2, 16)}
    keys = iter(jax.random.split(jax.random.key(step), 3 * len(shapes)))
    tree = lambda: {name: jax.random.normal(next(keys), shape) for name, shape in shapes.items()}
    moments = {"mu": tree(), "nu": tree(), "count": jnp.int32(step)}
    return TrainState(jnp.int32(step), tree(), moments, jnp.int32(0), jnp.int32(0), {}, None)


def opened(directory: Path) -> checkpoint.CheckpointManager:
    return checkpoint.open_manager(directory, keep_last=2, keep_best=1, metric="eval/nll")


def cases(step: Path, flips: int, seed: int):
    """(file, kind, damage(path)) for every file of a checkpoint."""
    random_ = random.Random(seed)
    files = sorted(path for path in step.rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    whole = {
        "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        "empty": lambda path: path.write_bytes(b""),
        "deleted": lambda path: path.unlink(),
        "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    }
    for file in files:
        name = str(file.relative_to(step))
        for kind, damage in whole.items():
            yield name, kind, damage
        for _ in range(flips * (60 if file == largest else 1)):
            place, bit = random_.randrange(max(1, file.stat().st_size)), random_.randrange(8)
            yield name, "flip", lambda path, at=place, bit=bit: flip(path, at, bit)
    for folder in sorted(path for path in step.rglob("*") if path.is_dir()):
        yield str(folder.relative_to(step)), "folder", shutil.rmtree
    yield ".", "emptied", lambda path: (shutil.rmtree(path), path.mkdir())


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    if data:
        data[place] ^= 1 << bit
    path.write_bytes(data)


def tried(directory: Path) -> tuple[str, str]:
    """What going on from a directory comes to, and what is said."""
    said: list[str] = []
    try:
        manager = opened(directory)
        state = checkpoint.restore_good(manager, state_of(0), said.append)
    except UserError as error:
        return "refused in one line", str(error)
    except Exception as error:
        return f"CRASH {type(error).__name__}", str(error)[:200]
    manager.close()
    step = int(state.step)
    right = step in (OLDER, NEWER) and all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(step)), strict=True)
    )
    if not right:
        return "SILENT" if not said else "WRONG, AND SAID SO", " ".join(said)
    if step == NEWER:
        return "harmless: same numbers, nothing said" if not said else "same, and said", str(said)
    lines = "in a line" if len(said) == 1 else f"in {len(said)} lines"
    return f"the older one, {lines}", " ".join(said)


if __name__ == "__main__":
    main()
