"""Decoders: config, forward pass, parameters; reading and writing them; pruning.

Imports only types and files of distill_jax. Start with architecture.py (what fixes a decoder), then
transformer.py (its blocks, out of attention.py, feed_forward.py, experts.py and norms.py) and
binding.py (a decoder as functions of its parameters). Files are read by load.py through
huggingface.py, gguf.py and weights.py; differences between model families are in families/.
prune.py makes a smaller student, with prune_blocks.py and refit.py.
"""
