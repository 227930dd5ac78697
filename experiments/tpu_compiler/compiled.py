"""What a compiled program says of itself: its arrays, its collectives, its bytes per chip."""

import re
from collections import Counter, defaultdict
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np

_SHAPE = re.compile(r"\b([a-z]+\d*\w*)\[(\d+(?:,\d+)*)\]")
_WIDTH = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(-start)?\("
    r".*?channel_id=(\d+)"
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_ROUNDS = re.compile(r"constant\((\d+)\)")


class Collective(NamedTuple):
    """One collective of a program. bytes: that a ring brings into a chip, in all rounds of loops.

    That is (n - 1) / n of what is gathered or scattered over n chips, and twice that of a sum.
    """

    kind: str
    rounds: int
    bytes: int


def shapes(compiled) -> set[tuple[int, ...]]:
    """Of all arrays in the program of a chip, but for flat views of an array as its bytes."""
    return {
        tuple(map(int, sizes.split(",")))
        for dtype, sizes in set(_SHAPE.findall(_text(compiled)))
        if dtype not in ("s8", "u8") or "," in sizes
    }


def largest(compiled) -> int:
    """Entries of the largest array in the program of a chip."""
    return max(int(np.prod(shape)) for shape in shapes(compiled))


def collectives(compiled) -> list[Collective]:
    """Every collective once: parts of an overlapped one share a channel. A loop runs as often as
    the number in its condition says."""
    lines, entry = _computations(_text(compiled))
    rounds: Counter = Counter({entry: 1})
    waiting, found = [entry], {}
    while waiting:
        name = waiting.pop()
        for line in lines[name]:
            times = rounds[name]
            if " while(" in line:
                condition = re.search(r"condition=%?([\w.\-]+)", line)[1]
                numbers = _ROUNDS.findall("\n".join(lines[condition]))
                times *= max(map(int, numbers), default=1)
            if match := _COLLECTIVE.search(line):
                result, kind, start, channel = match.groups()
                size = _bytes(result, second=bool(start) and kind != "all-reduce")
                ways = _ways(line)
                if kind == "reduce-scatter":
                    size *= ways
                elif "all-reduce-scatter" in name:  # a fusion that keeps a part of the sum
                    kind = "reduce-scatter"
                elif kind == "all-reduce":
                    size *= 2
                size = round(size * (ways - 1) / ways) if kind != "collective-permute" else size
                key = kind, channel, size
                older = found.get(key, Collective(kind, 0, 0))
                found[key] = max(older, Collective(kind, times, times * size))
            for called in _CALLED.findall(line):
                for inner in re.findall(r"[\w.\-]+", called):
                    if inner in lines and times > rounds[inner]:
                        rounds[inner] = times
                        waiting.append(inner)
    return list(found.values())


def kinds(compiled) -> Counter:
    """How many collectives of each kind a program has; the body of a loop counts once."""
    return Counter(one.kind for one in collectives(compiled))


def traffic(compiled) -> dict[str, int]:
    """Bytes that each kind of collective brings into a chip in one run."""
    total: dict[str, int] = defaultdict(int)
    for one in collectives(compiled):
        total[one.kind] += one.bytes
    return dict(total)


def total(compiled) -> int:
    """Bytes of a chip: arguments, temporaries, and outputs that are not arguments."""
    m = compiled.memory_analysis()
    made = m.output_size_in_bytes - m.alias_size_in_bytes
    return m.argument_size_in_bytes + m.temp_size_in_bytes + made


def size(tree: Any) -> int:
    """Bytes of all arrays of a tree, over all chips."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def held(tree: Any) -> int:
    """Bytes of all arrays of a tree that a chip has."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


@lru_cache(maxsize=32)
def _text(compiled) -> str:
    return compiled.as_text()


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the first that runs."""
    lines: dict[str, list[str]] = {}
    name = entry = ""
    for line in text.split("\n"):
        if head := _HEAD.match(line):
            name = head[2]
            lines[name] = []
            entry = name if head[1] else entry
        elif name:
            lines[name].append(line)
    return lines, entry


def _ways(line: str) -> int:
    """Chips that a collective goes over."""
    if found := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return int(np.prod([int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2])]))
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    return 2  # source_target_pairs: each chip has one neighbour


def _bytes(result: str, second: bool) -> int:
    """Of a result as it is written. second: it is a tuple of what is given and what comes."""
    arrays = _SHAPE.findall(result)
    if second and len(arrays) > 1:
        arrays = arrays[1:2]
    return sum(
        int(np.prod([int(x) for x in sizes.split(",")])) * _WIDTH.get(dtype, 4)
        for dtype, sizes in arrays
    )
