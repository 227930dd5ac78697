"""GGUF files: read, and written; the gguf package quantizes and dequantizes, on the host."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    LlamaFileType,
    dequantize,
    quantize,
)

from distill_jax.gguf_file import NewTensor, Tensor, read_gguf, write_gguf
from distill_jax.models.architecture import ModelConfig
from distill_jax.models.families import FAMILIES
from distill_jax.models.family import Gguf
from distill_jax.models.gguf_metadata import (
    ROPE_DIVISORS,
    Tensors,
    check_same,
    read_config,
    write_metadata,
)
from distill_jax.models.pieces import Source
from distill_jax.models.storage import Place, flatten, gatherer, places
from distill_jax.models.stored import Stored, read_whole
from distill_jax.models.weights import Checkpoint, check_names, stack_weights
from distill_jax.types import Params, UserError

# What weights may be written as, and the name of such a file.
KINDS = {
    "float32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "float16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bfloat16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}
Q8_BLOCK = 32  # numbers of a row that share a scale
# Matrices that llama.cpp wants in float32, as it does vectors.
_PRECISE = re.compile(r"position_embd\..*|blk\.\d+\.ffn_gate_inp\..*|.*\.bias")
_gguf_name = attrgetter("gguf")  # of a family.Weight


def read(path: Path, *, dtype) -> Checkpoint:
    """A checkpoint from a .gguf file. `dtype` None means float32, the result of dequantizing.

    Of the weights only the places are read. Raises UserError for a truncated GGUF file, an unknown
    architecture or quantization, incomplete metadata, missing, extra or misshapen weights.
    """
    config, stored = _config_and_tensors(path)
    present = [tensor for tensor in stored if tensor != ROPE_DIVISORS]
    check_names(config, present, _gguf_name, source=path)
    conventions = FAMILIES[config.family].gguf

    def source_of(parameter, tensor_name):
        return _source(conventions, parameter, _stored(stored[tensor_name], path), config)

    params = stack_weights(config, source_of, _gguf_name, dtype=dtype)
    return Checkpoint(config, params, path, (path,))


def read_sizes(path: Path) -> ModelConfig:
    """The architecture that a .gguf file says. Raises UserError as read does of its metadata."""
    return _config_and_tensors(path)[0]


def _config_and_tensors(path):
    metadata, stored = read_gguf(path)
    embedding, divisors = stored.get("token_embd.weight"), stored.get(ROPE_DIVISORS)
    tensors = Tensors(
        stored,
        None if embedding is None else int(embedding.shape[-1]),
        None if divisors is None else read_whole(_stored(divisors, path)),
    )
    return read_config(metadata, tensors, path), stored


def write(
    path: Path,
    config: ModelConfig,
    params: Params,
    *,
    metadata: Mapping[str, Any],
    kind: str,
    writes: bool = True,
) -> None:
    """Writes a .gguf file, completely or not at all.

    Every process that holds a part of the parameters calls it, and one of them `writes`.
    kind: of KINDS. Vectors, norms among them, routers and positions stay float32; matrices whose
    rows Q8_BLOCK does not divide are float16 in a file of q8_0. metadata: of the tokenizer.
    Raises UserError for a config that such a file cannot say.
    """
    own, divisors = check(config)
    gather, held = gatherer(flatten(params)), places(config, _gguf_name)
    conventions = FAMILIES[config.family].gguf
    quantization, file_type = KINDS[kind]
    if not writes:
        for place in held.values():
            gather(place, np.float32)
        return
    tensors = [_new(conventions, name, held[name], gather, config, quantization) for name in held]
    if divisors is not None:
        values = divisors.astype(np.float32)
        tensors.append(
            NewTensor(ROPE_DIVISORS, GGMLQuantizationType.F32, values.shape, lambda: values)
        )
    write_gguf(
        path,
        conventions.architecture,
        {"general.file_type": int(file_type), **own, **metadata},
        tensors,
    )


def check(config: ModelConfig) -> tuple[dict[str, Any], np.ndarray | None]:
    """The metadata of a config, and the values of ROPE_DIVISORS where it has some.

    Raises UserError for what a GGUF file of its family cannot say.
    """
    own, divisors = write_metadata(config)
    check_same(config, own, Tensors(places(config, _gguf_name), config.vocab, divisors))
    return own, divisors


def _source(gguf: Gguf, path: str, stored: Stored, config: ModelConfig) -> Source:
    """How Hugging Face's array lies in a file's; path: of its first parameter."""
    turned = re.fullmatch(gguf.swapped, path) is not None
    minus = gguf.norm_offset if _offset(gguf, path) else 0.0
    return Source(stored, turned, gguf.order(path, config), minus)


def gguf_array(gguf: Gguf, path: str, array: np.ndarray, config: ModelConfig) -> np.ndarray:
    """A file's array of one as Hugging Face stores it; path: of its first parameter."""
    array = array + np.float32(gguf.norm_offset) if _offset(gguf, path) else array
    array = array.swapaxes(-1, -2) if re.fullmatch(gguf.swapped, path) else array
    order = gguf.order(path, config)
    return np.ascontiguousarray(array if order is None else array[order])


def _offset(gguf, path):
    return gguf.norm_offset and path.endswith("norm")


def _new(
    gguf: Gguf, name: str, place: Place, gather: Callable, config: ModelConfig, kind
) -> NewTensor:
    path, shape = place.paths[0], place.shape
    shape = (*shape[:-2], shape[-1], shape[-2]) if re.fullmatch(gguf.swapped, path) else shape
    if len(shape) == 1 or _PRECISE.fullmatch(name):
        kind = GGMLQuantizationType.F32
    elif kind == GGMLQuantizationType.Q8_0 and shape[-1] % Q8_BLOCK:
        kind = GGMLQuantizationType.F16

    def values():
        array = gguf_array(gguf, path, gather(place, np.float32), config)
        return quantize(array, kind)

    return NewTensor(name, kind, shape, values)


def _stored(tensor: Tensor, path: Path) -> Stored:
    """Where the numbers of a tensor lie. Raises UserError for a kind that is not dequantized."""
    block = GGML_QUANT_SIZES[tensor.kind]
    decode = partial(dequantize, qtype=tensor.kind)
    try:
        decode(np.zeros(block[1], np.uint8))
    except NotImplementedError as error:
        raise UserError(
            f"{path} stores {tensor.name} as {tensor.kind.name}, which the gguf package "
            "cannot dequantize: use another quantization"
        ) from error
    return Stored(path, tensor.offset, tensor.shape[::-1], "float32", block, decode)
