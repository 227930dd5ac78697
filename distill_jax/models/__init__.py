"""Decoders: config, forward pass, parameters; reading and writing them; pruning.

Imports only types and files of distill_jax. Start with architecture.py (what fixes a decoder), then
transformer.py (its blocks, out of attention.py, feed_forward.py, experts.py and norms.py) and
binding.py (a decoder as functions of its parameters). Files are read by load.py through
huggingface.py, gguf.py and weights.py, which gives parameters that are still in files: stored.py
and pieces.py read any part of them. Differences between model families are in families/.
prune.py makes a smaller student, with prune_blocks.py, block_passes.py and refit.py.
"""
