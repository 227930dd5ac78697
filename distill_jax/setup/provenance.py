"""What a result depends on: versions, and hashes of data, tokenizers, templates and weights."""

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from distill_jax import __version__
from distill_jax.data.tokenizer import Tokenizer
from distill_jax.files import read_sealed
from distill_jax.setup.data import Data, template_hash
from distill_jax.setup.storing import Text
from distill_jax.types import UserError
from distill_jax.workdir import PROVENANCE

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def provenance(
    mesh: Mesh, tokenizer: Tokenizer, teachers: dict[str, str | None], data: dict[str, Data | Text]
) -> dict[str, Any]:
    """Flat, so that two runs compare line by line. teachers: what identifies them, by name."""
    return {
        "distill_jax": __version__,
        "python": platform.python_version(),
        **{f"package.{name}": metadata.version(name) for name in PACKAGES},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        **{f"mesh.{name}": size for name, size in mesh.shape.items()},
        "tokenizer.sha256": tokenizer.fingerprint,
        "chat_template.sha256": template_hash(tokenizer),
        **teachers,
        **{f"data.{name}.sha256": part.fingerprint for name, part in data.items()},
        **{f"data.{name}.documents": part.documents for name, part in data.items()},
        **{f"data.{name}.read": " | ".join(part.read) for name, part in data.items() if part.read},
        **{
            f"data.{name}.removed.{step}.{what}": value
            for name, part in data.items()
            for step, removed in part.removed.items()
            for what, value in (
                ("documents", removed.documents),
                ("characters", removed.characters),
                ("first", " | ".join(removed.names) or None),
            )
        },
        **{
            f"data.{name}.{source.name}.{what}": value
            for name, part in data.items()
            if len(part.parts) > 1
            for source in part.parts
            for what, value in (
                ("sha256", source.fingerprint),
                ("documents", source.documents),
                ("tokens", source.tokens),
            )
        },
    }


def check_texts(directory: Path, data: dict[str, Data | Text]) -> None:
    """Raises UserError where a text is not what the run in a directory began with.

    Of most files nothing else tells that they have changed.
    """
    known = read_sealed(directory / PROVENANCE) or {}
    for name, part in data.items():
        before, now = known.get(f"data.{name}.sha256"), part.fingerprint
        if before not in (None, now):
            raise UserError(
                f"the text of data.{name} is not what {directory} began with (sha256 {now[:12]},"
                f" and {before[:12]} in {PROVENANCE}): restore it, or use another --workdir"
            )
