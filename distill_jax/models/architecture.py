"""What fixes a decoder's arithmetic."""

from dataclasses import dataclass

import jax

from distill_jax.models.rope import RopeScaling
from distill_jax.types import UserError

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the decoder's arithmetic; hashable.

    family            key of families.FAMILIES: how it is read and written
    neurons           width of the feed-forward half (F)
    rope_local_theta  rotary base of local blocks; None: the same tables as the others
    sliding_window    positions a local block looks back, itself included
    local_blocks      one flag a block; None: no block is local
    unit_offset_norm  norms multiply by (1 + weight)
    post_norms        a second norm on what each half adds to the residual stream
    attention_scale   factor of the scores; None: head_width ** -0.5
    init_std          standard deviation of a random initialization
    """

    family: str
    vocab: int
    width: int
    blocks: int
    heads: int
    kv_heads: int
    head_width: int
    neurons: int
    max_positions: int
    norm_eps: float
    rope_theta: float
    activation: str
    tied: bool
    rope_scaling: RopeScaling | None = None
    rope_local_theta: float | None = None
    sliding_window: int | None = None
    local_blocks: tuple[bool, ...] | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    query_key_norm: bool = False
    unit_offset_norm: bool = False
    post_norms: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    logit_scale: float = 1.0
    init_std: float = 0.02

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} query heads do not share {self.kv_heads} key/value heads evenly: "
                "make one a multiple of the other"
            )
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation '{self.activation}' is not supported: use one of {sorted(ACTIVATIONS)}"
            )
        if self.local_blocks is not None and len(self.local_blocks) != self.blocks:
            raise UserError(
                f"{len(self.local_blocks)} flags in local_blocks for {self.blocks} blocks: "
                "give one each"
            )
        if self.local_blocks is not None and any(self.local_blocks) and not self.sliding_window:
            raise UserError("local blocks without a sliding window: set sliding_window")
