"""The job generate: prompts continued by one model."""

import jax

from distill_jax import workdir
from distill_jax.progress import Progress, say
from distill_jax.setup import samples
from distill_jax.setup.models import load_only_model, mesh_of
from distill_jax.setup.owner import Reading
from distill_jax.types import UserError


def generate_job(asked: Reading, progress: Progress) -> None:
    """Continues config.generate.prompts with student.path, or else teacher.path."""
    c = asked.config
    samples.check(c)
    if not c.generate.prompts:
        raise UserError(
            "config.generate.prompts is empty: give texts, as"
            " --config.generate.prompts='(\"Once upon\",)'"
        )
    with progress.stage("load", "reading the model") as stage:
        read = load_only_model(c, mesh_of(c), stage.advance)
    stop_ids = samples.stop_ids(read.tokenizer)
    subject = (read.model, read.params, read.tokenizer, stop_ids)
    with progress.stage("write", "compiling and writing texts"):
        lines = samples.sample(c, read.path, 0, *subject, time_it=False)
    if jax.process_index() == 0:
        workdir.write_lines(asked.results / workdir.SAMPLES, lines)
    for line in lines:
        say(f"{line['prompt']}|{line['text']}\n")
