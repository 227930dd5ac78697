"""What a student is trained to make small, and its gradient, for a few tokens at a time.

Imports `types` alone; everything from `objective` on may import from here. Start with terms.py
(what the loss is a sum of), then fused.py (the loss over a vocabulary), token_loss.py (of some
tokens) and divergences.py (of one). A new divergence is a function and a line in divergences.py.
"""
