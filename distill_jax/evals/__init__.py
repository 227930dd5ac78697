"""How good a model is: from one pass over held-out text, from what it writes, from benchmarks.

Start with token_values.py (what is measured per token), then records.py (the pass that keeps it)
and likelihood.py (means during training); aggregates, calibration, slices and document_totals are
NumPy on records; prompts, continuations, text_measures and exposure are about written text.
Imports models, data, losses, objective and sampling; nothing here sees a config or prints.
"""
