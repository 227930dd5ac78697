"""What a chip holds and how fast it is, from what its maker has published."""

import re
from math import prod
from typing import NamedTuple

from distill_jax.types import UserError
from distill_jax.words import cut

GB, GIB, TERA = 1e9, 2**30, 1e12


class Chip(NamedTuple):
    """One chip. None: not published, or there is no such thing.

    platform   of its devices, as JAX names it
    memory     bytes that one program may have
    flops      peak floating-point operations per second, by the dtype of the products
    bandwidth  bytes per second between the chip and its memory
    link       bytes per second into a chip from its neighbours, along one dimension of the torus or
               from all chips of its node: both directions of a link are used
    node       chips joined by `link`; None: all of a slice
    network    bytes per second into a chip from other nodes
    source     where the figures stand
    """

    platform: str
    memory: float | None
    flops: dict[str, float] | None
    bandwidth: float | None
    link: float | None
    node: int | None
    network: float | None
    source: str


class Topology(NamedTuple):
    """So many chips of a kind. sizes: of a torus, chips along each of its dimensions."""

    name: str
    kind: str  # a key of CHIPS
    chip: Chip
    sizes: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many there are."""
        return prod(self.sizes)


def read_topology(text: str) -> Topology:
    """The chips that a text such as v5e:8x8, cpu:8 or gpu:16xA100-80G names.

    Raises UserError for anything else.

    >>> read_topology("v5e:8x8").chips, read_topology("gpu:16xA100-80G").sizes
    (64, (16,))
    """
    name = text.strip()
    number = r"([1-9]\d{0,8})"
    if found := re.fullmatch(rf"cpu:{number}", name):
        return _checked(Topology(name, "cpu", CHIPS["cpu"], (int(found[1]),)), MOST)
    if found := re.fullmatch(rf"gpu:{number}x([A-Za-z][\w-]*)", name):
        count, kind = found.groups()
        _known(name, "gpu", kind)
        return _checked(Topology(name, kind, CHIPS[kind], (int(count),)), MOST)
    if found := re.fullmatch(rf"(?!cpu|gpu)([A-Za-z]\w*):{number}x{number}(?:x{number})?", name):
        kind, *sizes = [part for part in found.groups() if part]
        _known(name, "tpu", kind)
        return _slice(Topology(name, kind, CHIPS[kind], tuple(map(int, sizes))))
    given = f"is {cut(repr(name))}" if name else "is empty"
    raise UserError(
        f"config.plan.topology {given}: give one such as v5e:8x8, v5p:4x4x4, v6e:4x4 (the shape of"
        " a slice), cpu:8 or gpu:16xA100-80G"
    )


def _known(name: str, platform: str, kind: str) -> None:
    known = [key for key, chip in CHIPS.items() if chip.platform == platform]
    if kind not in known:
        plain = kind.replace("_", "-").casefold()
        near = [key for key in known if key.casefold().startswith(plain)]
        near = near or [key for key in known if plain.startswith(key.casefold())]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(
            f"config.plan.topology is {cut(name)}: {hint}{platform.upper()}s that can be planned"
            f" for are {', '.join(known)}"
        )


def _slice(topology: Topology) -> Topology:
    """Raises UserError for what no slice of TPUs can be."""
    kind, sizes, known = topology.kind, topology.sizes, SLICES[topology.kind]
    of = f"config.plan.topology is {topology.name}"
    if len(sizes) != known.dimensions:
        raise UserError(
            f"{of}: a slice of {kind} has {known.dimensions} dimensions, as {known.example} has"
        )
    _checked(topology, known.most)
    if odd := [size for size in sizes[:2] if size > 1 and size % 2]:
        raise UserError(
            f"{of}, and hosts of TPUs have 2x2 chips: use an even number instead of {odd[0]}"
        )
    return topology


def _checked(topology: Topology, most: int) -> Topology:
    if topology.chips > most:
        raise UserError(
            f"config.plan.topology is {topology.name}, {topology.chips:,} chips: use at most"
            f" {most:,}"
        )
    return topology


MOST = 8192  # GPUs, or simulated devices


class Slice(NamedTuple):
    """What slices of a TPU there are. most: chips of the largest one that a job can have."""

    dimensions: int
    most: int
    example: str


# The same pages as those of the chips.
SLICES = {
    "v5e": Slice(2, 256, "v5e:4x4"),
    "v5p": Slice(3, 6144, "v5p:2x2x2"),
    "v6e": Slice(2, 256, "v6e:4x4"),
}

# Google gives the interconnect of a chip in both directions over all its ports, 4 or 6 of them, of
# which a dimension of the torus has two: half, or a third, of it is into and out of the chip along
# one dimension, and half of that is inward. float32: on TPUs the products of JAX's default
# precision are those of bfloat16, on GPUs those of TF32.
#
# memory of TPUs: what their compiler (libtpu 0.0.52) lets a program have, which it says when it
# refuses one. NVIDIA's GPUs: JAX takes 75% of the memory at first and grows into the rest.
_TPU = "https://docs.cloud.google.com/tpu/docs/"
CHIPS = {
    "v5e": Chip(
        "tpu", 15.75 * GIB, {"bfloat16": 197 * TERA, "float32": 197 * TERA}, 819 * GB,
        400 * GB / 4, None, None, _TPU + "v5e",
    ),
    "v5p": Chip(
        "tpu", 95.74 * GIB, {"bfloat16": 459 * TERA, "float32": 459 * TERA}, 2765 * GB,
        1200 * GB / 6, None, None, _TPU + "v5p",
    ),
    "v6e": Chip(
        "tpu", 31.25 * GIB, {"bfloat16": 918 * TERA, "float32": 918 * TERA}, 1638 * GB,
        800 * GB / 4, None, None, _TPU + "v6e",
    ),
    # NVLink: half of the published figure, which is of both directions. Network: one InfiniBand
    # adapter per GPU, as in NVIDIA's own systems (DGX A100: 200 Gb/s, DGX H100 and H200: 400 Gb/s).
    "A100-40G": Chip(
        "gpu", 40 * GB, {"bfloat16": 312 * TERA, "float16": 312 * TERA, "float32": 156 * TERA},
        1555 * GB, 300 * GB, 8, 25 * GB, "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    "A100-80G": Chip(
        "gpu", 80 * GB, {"bfloat16": 312 * TERA, "float16": 312 * TERA, "float32": 156 * TERA},
        2039 * GB, 300 * GB, 8, 25 * GB, "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    "H100-80G": Chip(
        "gpu", 80 * GB, {"bfloat16": 989 * TERA, "float16": 989 * TERA, "float32": 494 * TERA},
        3350 * GB, 450 * GB, 8, 50 * GB, "https://www.nvidia.com/en-us/data-center/h100/",
    ),
    "H200-141G": Chip(
        "gpu", 141 * GB, {"bfloat16": 989 * TERA, "float16": 989 * TERA, "float32": 494 * TERA},
        4800 * GB, 450 * GB, 8, 50 * GB, "https://www.nvidia.com/en-us/data-center/h200/",
    ),
    # The devices of this machine share its memory; no published figure says how fast they are.
    "cpu": Chip("cpu", None, None, None, None, None, None, "this machine"),
}  # fmt: skip
