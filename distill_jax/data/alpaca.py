"""The words that Alpaca puts around an instruction."""

from distill_jax.data.documents import Document

# What Alpaca's models are trained on before an output, with an input and without. The wording is
# that of its README: https://github.com/tatsu-lab/stanford_alpaca#data-release
_ALPACA = (
    "Below is an instruction that describes a task{paired}. Write a response that appropriately"
    " completes the request.\n\n### Instruction:\n{instruction}\n\n{more}### Response:\n"
)
_PAIRED = ", paired with an input that provides further context"


def as_plain(document: Document) -> Document:
    """A pair of Alpaca's form with its prompt in Alpaca's words; other documents as they are."""
    if document.input is None:
        return document
    prompt, completion = document.pair
    more = f"### Input:\n{document.input}\n\n" if document.input else ""
    prompt = _ALPACA.format(
        paired=_PAIRED if document.input else "",
        instruction=prompt.removesuffix(f"\n{document.input}") if document.input else prompt,
        more=more,
    )
    return document._replace(pair=(prompt, completion), input=None)
