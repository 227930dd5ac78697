"""Tokenised documents in memory, which a store is held to."""

import numpy as np

from distill_jax.data.encode import Tokenized, encode_documents


def tokenize_documents(documents, tokenizer, *, max_tokens=0):
    """What a store of these documents holds."""
    encoded = list(encode_documents(documents, tokenizer, max_tokens=max_tokens))
    return Tokenized(
        tokens=np.concatenate([one.ids for one in encoded]),
        trained=np.concatenate([one.marks for one in encoded]),
        offsets=np.cumsum([0, *(len(one.ids) for one in encoded)]),
        labels=tuple(one.document.label for one in encoded),
    )
