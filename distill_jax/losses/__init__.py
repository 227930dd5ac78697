"""The training loss and its gradient, computed for a block of tokens at a time.

Imports `types` only; everything from `objective` on may import from here. Start with terms.py (the
summands of the loss), then fused.py (the loss over a vocabulary), token_loss.py (the loss of a
block) and divergences.py (of one token). A new divergence is a function and a line in
divergences.py.
"""
