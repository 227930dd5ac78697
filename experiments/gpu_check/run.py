"""The command behind run.sh: checks a device against the CPU, then times it, within its seconds.

Every finding is written at once, to results.jsonl and to a table, so that what stops early leaves
what it had.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from distill_jax.models.gpu_attention import lacks
from experiments.benchmarks.shapes import Shape, llama
from experiments.gpu_check import laws, table, times
from experiments.gpu_check.kernels import Size, kernels

RESULTS = Path(__file__).parent / "results"
# Seconds that a case of a part may take: none is begun with less left. Guesses, with compilation.
NEEDED = {
    "attention": 15, "loss": 15, "step": 30, "times": 45, "decode": 30, "long": 60, "kernels": 20,
}  # fmt: skip


class Sizes(NamedTuple):
    """What is run; `length` is of the rows of attention's laws, `seconds` of the timed rounds."""

    length: int
    law: Shape
    times: Shape
    seconds: float
    decode: Shape
    new_tokens: int
    long: Shape
    kernels: tuple[Size, ...]


_STUDENT, _TEACHER = llama(1024, 8, 32_000), llama(2048, 16, 32_000, kv_heads=8)
_TINY = llama(64, 1, 97), llama(128, 1, 97, kv_heads=1)
SIZES = {
    "full": Sizes(
        length=1000,
        law=Shape("law", llama(128, 2, 1000), llama(256, 2, 1000, kv_heads=2), 2, 256),
        times=Shape("step", _STUDENT, _TEACHER, 8, 1024),
        seconds=40.0,
        decode=Shape("decode", _STUDENT, _TEACHER, 8, 1024),
        new_tokens=256,
        long=Shape("long", _STUDENT, _TEACHER, 1, 32_768),
        kernels=(Size(8, 1024, 16, 128), Size(1, 32_768, 16, 128)),
    ),
    "tiny": Sizes(
        length=40,
        law=Shape("law", *_TINY, 2, 24),
        times=Shape("step", *_TINY, 2, 24),
        seconds=0.1,
        decode=Shape("decode", *_TINY, 2, 24),
        new_tokens=4,
        long=Shape("long", *_TINY, 1, 128),
        kernels=(Size(1, 128, 2, 16),),
    ),
}


def parts(device, sizes: Sizes) -> dict[str, laws.Part]:
    """The cases of each part; a part of laws first, since times of wrong numbers mean nothing."""
    return {
        "attention": laws.attention(device, sizes.length),
        "loss": laws.loss(device, sizes.law),
        "step": laws.step(device, sizes.law),
        "times": times.steps(sizes.times, sizes.seconds),
        "decode": times.decode(sizes.decode, sizes.new_tokens),
        "long": times.long(sizes.long),
        "kernels": kernels(device, sizes.kernels),
    }


def main(arguments: list[str] | None = None) -> int:
    """0: all laws hold; 1: one does not, or a case failed; 2: there is no such device."""
    options = parser().parse_args(arguments)
    end = time.monotonic() + options.seconds
    try:
        device = jax.devices(options.device)[0]
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        print(f"error: JAX sees no {options.device}: {first}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    records = [about(device, options)]
    table.write(options.out, records)
    for part, cases in parts(device, SIZES[options.sizes]).items():
        for what, measure in cases:
            if end - time.monotonic() < NEEDED[part]:
                found = {"skipped": "time is out"}
            else:
                found = result_of(measure)
            records.append({"part": part, "what": what, **found})
            table.write(options.out, records)
            print(f"{part}: {what}: {table.shown(found)}", flush=True)
    print(f"written to {options.out}")
    return int(any("failed" in found or found.get("met") is False for found in records))


def result_of(measure: Callable[[], dict]) -> dict:
    """What a case gives, or why it failed: another one may still run."""
    start = time.perf_counter()
    try:
        found = measure()
    except Exception as error:  # a kernel that does not compile, memory that does not suffice
        lines = str(error).splitlines() or [""]
        found = {"failed": f"{type(error).__name__}: {lines[0][:300]}"}
    return found | {"case_seconds": round(time.perf_counter() - start, 2)}


def about(device, options: argparse.Namespace) -> dict:
    """The device, the versions, and which form attention takes there."""
    capability = getattr(device, "compute_capability", "")
    forms = {dtype: lacks(dtype, capability) or "tokamax's kernel" for dtype in laws.LIMITS}
    return {
        "part": "environment",
        "device": device.device_kind,
        "compute_capability": capability,
        "platform": device.client.platform_version.splitlines()[0],
        "jax": jax.__version__,
        "attention": forms,
        "sizes": options.sizes,
    }


def parser() -> argparse.ArgumentParser:
    own = argparse.ArgumentParser(prog="python -m experiments.gpu_check.run", description=__doc__)
    own.add_argument("--device", default="gpu", choices=["gpu", "cpu"], help="what is checked")
    own.add_argument("--sizes", default="full", choices=list(SIZES), help="tiny: for any machine")
    own.add_argument("--seconds", type=float, default=540, help="after which no case is begun")
    own.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    return own


if __name__ == "__main__":
    sys.exit(main())
