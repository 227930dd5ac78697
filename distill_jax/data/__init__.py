"""Text: sources, formats, tokenizers, chat templates, packed rows, batches, the teacher cache.

Everything here is host-side NumPy, independent of models. Start with `sources.py` (where documents
come from: `files.py` reads the rows of a file, `rows.py` makes documents of them by their shape),
then `encode.py` (their tokens, and which of these are trained), `store.py` (these on disk),
`pack.py` (rows) and `pipeline.py` (batches as a function of seed and step); `cache.py` reads the
teacher's stored signals for a piece of text. Chat templates are programs from elsewhere: `chat.py`
asks for texts, and `template_worker.py`, a process of its own, renders them.
"""
