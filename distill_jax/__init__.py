"""distill_jax: distil language models in JAX and learn whether it helped."""

__version__ = "0.1.0"
