"""The README's table of families, made from the registry: what the tests of every family show.

`python -m tests.models.family_table` writes it anew.
"""

import re

import transformers

from distill_jax.models.families import FAMILIES
from distill_jax.models.prune import PruneOptions, pruned_config
from distill_jax.types import UserError
from tests.cli import ROOT
from tests.models.conftest import SIZES

README = ROOT / "README.md"
PLACE = re.compile(r"(?<=tests\.models\.family_table -->\n).*?(?=<!-- end of families)", re.S)
COLUMNS = ("`model_type`", "models", "HF in", "HF out", "GGUF in", "GGUF out", "prune", "experts")


def table():
    """The lines of the table, one per family in the order of the registry."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *(_row(name) for name in FAMILIES)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(name):
    family = FAMILIES[name]
    configs = [_config(name, entries) for entries in family.variants.values()]
    lacks = sorted({family.gguf.lacks(config) for config in configs} - {""}) if family.gguf else []
    written = f"not {', '.join(lacks)}" if lacks else "yes"
    return (
        f"`{name}`",
        family.models,
        "yes",
        "yes",
        "yes" if family.gguf else "no",
        written if family.gguf else "no",
        " and ".join(what for what in ("blocks", "neurons") if all(_pruned(configs, what))) or "no",
        "yes" if any(config.experts for config in configs) else "no",
    )


def _config(name, entries):
    raw = transformers.AutoConfig.for_model(name, **{**SIZES, **entries}).to_dict()
    return FAMILIES[name].from_hf(raw)


def _pruned(configs, what):
    """Whether each of the configs can lose blocks, or neurons."""
    for config in configs:
        options = PruneOptions(0, 0, "loss", "activation", False, 0, 0, 0)._replace(**{what: 1})
        try:
            yield pruned_config(config, options)
        except UserError:
            yield False


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(PLACE.sub(lambda _: table(), text), encoding="utf-8")
