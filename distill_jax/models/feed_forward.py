"""The feed-forward half of a block."""

import jax
from flax import nnx

from distill_jax.models.architecture import ACTIVATIONS, ModelConfig
from distill_jax.models.norms import normed, stream_norm
from distill_jax.models.projections import back_to_stream, matrix, project, vector
from distill_jax.types import Array


class FeedForward(nnx.Module):
    """An activation, or one times a second projection (gated), between two projections."""

    def __init__(self, config: ModelConfig, dtype, key):
        self.config = config
        gated, biased = config.gated, config.feed_forward_bias
        keys = jax.random.split(key, 3)
        self.norm = stream_norm(config.pre_norms, config, dtype)
        self.norm_bias = vector(config.norm_bias, config.width, dtype)
        # Assigned once: NNX refuses a parameter in the place of None.
        self.gate = matrix(keys[0], config.width, config.neurons, config, dtype) if gated else None
        self.gate_bias = vector(gated and biased, config.neurons, dtype)
        self.up = matrix(keys[1], config.width, config.neurons, config, dtype)
        self.up_bias = vector(biased, config.neurons, dtype)
        self.down = matrix(keys[2], config.neurons, config.width, config, dtype)
        self.down_bias = vector(biased, config.width, dtype)
        self.post_norm = stream_norm(config.post_norms, config, dtype)

    def activations(self, x_BTD: Array) -> Array:
        """Input of the down projection, [B, T, F], of the residual stream."""
        h_BTD = normed(self, x_BTD)
        activation = ACTIVATIONS[self.config.activation]
        up_BTF = project(h_BTD, self.up, self.up_bias)
        if not self.config.gated:
            return activation(up_BTF)
        return activation(project(h_BTD, self.gate, self.gate_bias)) * up_BTF

    def __call__(self, x_BTD: Array) -> Array:
        """What the half adds to the residual stream, [B, T, D]."""
        return self.project_back(self.activations(x_BTD))

    def project_back(self, a_BTF: Array) -> Array:
        """The same of the down projection's input."""
        return back_to_stream(self, project(a_BTF, self.down, self.down_bias))
