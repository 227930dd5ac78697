"""The config of a decoder."""

from dataclasses import dataclass
from functools import partial

import jax

from distill_jax.models.rope import RopeScaling
from distill_jax.types import UserError

_gelu_tanh = partial(jax.nn.gelu, approximate=True)
# By the names of transformers, some of which mean the same.
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that defines the decoder's forward pass; hashable.

    family            key of families.FAMILIES: how files are read and written
    neurons           width of the feed-forward half, or of each expert (F)
    rope_local_theta  rotary base of local blocks; None: the same as global blocks
    sliding_window    positions a local block looks back, itself included
    local_blocks      one flag per block; None: no block is local
    rotary_width      coordinates of a head that turn with the position; None: all
    learned_positions a table of max_positions rows is added to the embedding
    norm              a key of NORMS: "rms", or "layer" (LayerNorm)
    norm_bias         the norms of the residual stream add a bias
    rope_blocks       one flag per block: positions turn queries and keys; None: in all blocks
    query_key_norm    a norm on queries and keys: "head", over each head's width; "whole", over
                      all heads side by side; "": none
    unit_offset_norm  norms multiply by (1 + weight)
    gated             the feed-forward half multiplies two projections
    experts           feed-forward halves side by side, of which a router chooses; 0: one half
    experts_per_token of them, those that a token goes to
    router_normalised the weights of a token's experts add up to 1
    parallel_residual both halves of a block take in the block's input
    pre_norms         a norm on the input of each half
    post_norms        a norm on the output of each half, before the residual sum
    residual_scale    factor of what each half adds to the residual stream
    attention_sinks   each head may attend to nothing, with a score that is a parameter
    swiglu_limit      of experts: gate and up are clamped, and up + 1 multiplies the gate; None:
                      a plain gate
    swiglu_alpha      of a clamped gate x: x sigmoid(alpha x)
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
    rope_blocks: tuple[bool, ...] | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    rotary_width: int | None = None
    learned_positions: bool = False
    norm: str = "rms"
    norm_bias: bool = False
    gated: bool = True
    feed_forward_bias: bool = False
    experts: int = 0
    experts_per_token: int = 0
    router_normalised: bool = True
    parallel_residual: bool = False
    query_key_norm: str = ""
    unit_offset_norm: bool = False
    pre_norms: bool = True
    post_norms: bool = False
    residual_scale: float = 1.0
    embedding_scale: float = 1.0
    attention_sinks: bool = False
    swiglu_limit: float | None = None
    swiglu_alpha: float = 1.702
    attention_scale: float | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    logit_scale: float = 1.0
    init_std: float = 0.02

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise UserError(
                f"{self.heads} query heads are not a multiple of {self.kv_heads} key/value heads: "
                "change one of the numbers"
            )
        if self.turned_width % 2 or not 0 <= self.turned_width <= self.head_width:
            raise UserError(
                f"heads are {self.head_width} wide, of which {self.turned_width} turn with the"
                " position, and rotary positions turn pairs: use an even head_dim"
            )
        scaling = self.rope_scaling
        if scaling is not None and scaling.kind == "longrope":
            counts = {len(scaling.short_factors), len(scaling.long_factors)}
            if counts != {self.turned_width // 2}:
                raise UserError(
                    f"{len(scaling.short_factors)} short and {len(scaling.long_factors)} long rope"
                    f" factors for {self.turned_width // 2} pairs that turn in a head: give one per"
                    " pair"
                )
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation '{self.activation}' is not supported: use one of {sorted(ACTIVATIONS)}"
            )
        if self.experts and not 1 <= self.experts_per_token <= self.experts:
            raise UserError(
                f"a token goes to {self.experts_per_token} of {self.experts} experts: use a number"
                f" from 1 to {self.experts}"
            )
        for name in ("local_blocks", "rope_blocks"):
            flags = getattr(self, name)
            if flags is not None and len(flags) != self.blocks:
                raise UserError(
                    f"{len(flags)} flags in {name} for {self.blocks} blocks: give one per block"
                )
        if self.local_blocks is not None and any(self.local_blocks) and not self.sliding_window:
            raise UserError("local blocks without a sliding window: set sliding_window")

    @property
    def turned_width(self) -> int:
        """Coordinates of a head that turn with the position."""
        return self.head_width if self.rotary_width is None else self.rotary_width
