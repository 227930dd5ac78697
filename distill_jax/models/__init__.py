"""Decoders: config, arithmetic, parameters; read from and written to files; pruned.

Imports types alone of distill_jax. Start with architecture.py (what fixes a decoder), then
transformer.py and binding.py (a decoder as functions of its parameters). Files: load.py is the
door, then huggingface.py, gguf.py and weights.py; what differs between models of different makers
is in families/. prune.py makes a smaller student, with prune_blocks.py and refit.py.
"""
