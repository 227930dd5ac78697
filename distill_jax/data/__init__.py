"""Text: sources, formats, tokenizers, chat templates, packed rows, batches, the teacher's cache.

Everything here is host-side NumPy and knows no model. May import types, config, files. Start with
`sources.py` (where documents come from), then `encode.py` (their tokens and which of them count),
`pack.py` (rows) and `pipeline.py` (batches as a function of seed and step); `cache.py` reads what a
teacher gave for a piece of text.
"""
