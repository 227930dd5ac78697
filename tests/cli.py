"""The command line as a user meets it, on models and texts small enough for a test."""

import contextlib
import io
import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from distill_jax.data.tokenizer import make_tokenizer
from distill_jax.export import export_student
from distill_jax.program import main
from distill_jax.progress import Progress
from distill_jax.signals import Saving
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
TEXT = "the a quick slow red blue fox dog cat jumps runs sleeps over under near lazy old tree"
WORDS = TEXT.split(" ")


def command(*arguments, config="configs/base.py"):
    """The argument vector of a run; without a config, that of the run in its workdir."""
    file = [f"--config={config}"] if config else []
    return [sys.executable, "-m", "distill_jax.main", *file, *map(str, arguments)]


def environment(devices=1):
    """The variables of a run on simulated CPU devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    # Two processes may compile the same program; what one has half written, the other compiles.
    quiet = "ignore:Error reading persistent compilation cache entry"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": quiet}


def run_process(*arguments, config="configs/base.py", devices=1, timeout=300):
    """Runs to the end and gives the completed process, output as text."""
    return subprocess.run(
        command(*arguments, config=config),
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run(*arguments, config="configs/base.py"):
    """The same within this process, on its one device: importing everything anew costs seconds.

    How far it is depends on the machine and is not told.
    """
    _, _, *words = command(*arguments, config=config and ROOT / config)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
        mock.patch("distill_jax.program.Progress", lambda _, **more: Progress(None, **more)),
    ):
        # What the interpreter hides from a user, and no other warning.
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        code = main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def stop_asked(finish=None):
    """In place of signals.saving: a signal comes as soon as there is something to save."""
    holder = Saving(threading.Event(), threading.Event(), finish)
    holder.asked.set()
    yield holder


def sentence(r):
    return " ".join(r.choice(WORDS, r.integers(4, 14))) + "."


def write_text(path, documents=60, seed=0, sentences=3):
    """A jsonl file of short documents."""
    r = np.random.default_rng(seed)
    lines = [
        json.dumps({"text": " ".join(sentence(r) for _ in range(sentences))})
        for _ in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_tiny_tokenizer(extra=()):
    """A byte-level BPE of a few hundred tokens, trained on the tests' own words."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>", *extra],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    r = np.random.default_rng(0)
    backend.train_from_iterator((sentence(r) for _ in range(200)), trainer)
    return make_tokenizer(backend, special_tokens={"eos_token": "<end>"}, chat_template=None)


def write_model(path, *, seed=0, extra=(), **shape):
    """A Hugging Face directory with random weights large enough to be far from uniform."""
    tokenizer = make_tiny_tokenizer(extra)
    model = tiny.model(vocab=tokenizer.vocab_size, **shape)
    params = jax.tree.map(np.asarray, tiny.params(model, seed))
    export_student(path, model.config, params, tokenizer, dtype="float32")
    return path


def metrics(workdir):
    """The lines of metrics.jsonl."""
    text = (Path(workdir) / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


SMALL = (
    "--config.steps=6", "--config.data.seq_len=32", "--config.data.batch_size=8",
    "--config.optim.warmup_steps=1", "--config.eval.every=3", "--config.checkpoint.every=2",
    "--config.data.held_out_fraction=0.2", "--config.model.block_tokens=64",
)  # fmt: skip
