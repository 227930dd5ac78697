"""The command line: flags, processes, one job, and an exit code that a launcher can act on.

    python -m distill_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Exit codes: 0 done, 2 the input or config is wrong, 3 the verdict forbids shipping, 70 an unexpected
failure or no room, 74 no progress, 75 stopped by a signal, 76 the numbers broke down, or the job
replay finds others.
"""

import errno
import os
import re
import select
import sys
import tempfile
import time
import traceback
import warnings
from logging import getLogger
from pathlib import Path

from absl import logging

from distill_jax import __version__, signals, streams
from distill_jax.command_line import Command, parse
from distill_jax.files import lack_of
from distill_jax.key_help import help_text
from distill_jax.peers import Group, Place
from distill_jax.progress import Progress
from distill_jax.types import (
    ChangedOnDisk,
    Forbidden,
    NumbersBrokeDown,
    OutOfRoom,
    Stopped,
    UserError,
)
from distill_jax.visible import visible
from distill_jax.words import cut, first_line, shortened

EXIT_CODES = {
    UserError: 2,
    Forbidden: 3,
    OutOfRoom: 70,
    ChangedOnDisk: 70,
    Stopped: 75,
    NumbersBrokeDown: 76,
}


def main(argv: list[str], began: float | None = None) -> int:
    """Runs one command line and gives its exit code; errors are one line on stderr.

    began: when the process did, by time.monotonic(); now, if it is not given.
    """
    began = time.monotonic() if began is None else began
    # What orbax logs of a failed save is raised as well, and told in one line.
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").disabled = True
    workdir, group = None, None
    try:
        if argv[1:] == ["--version"]:
            return _show(f"distill_jax {__version__}\n")
        if (names := _help(argv[1:])) is not None:
            return _show(help_text(names))
        command = parse(argv)
        workdir = command.workdir
        group = _group(command)
        return _run(command, group, began)
    except BrokenPipeError as error:
        return _unread(error, workdir, group)
    except tuple(EXIT_CODES) as error:
        return _fail(EXIT_CODES[type(error)], str(error), group)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENAMETOOLONG:
            name = cut(str(error.filename))
            return _fail(2, f"{name} is too long for the name of a file: use a shorter one", group)
        if streams.refused(error):
            streams.drop()
            return _fail(
                70,
                f"standard output cannot be written ({error.strerror}): lead it elsewhere and run"
                " the same command again, which goes on from what is saved",
                group,
            )
        lack = lack_of(error, workdir)
        return _fail(70, lack or _unexpected(error, workdir, group), group)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust, such as tokenizers
            raise
        reason = " ".join(str(error).split())[:200]
        return _fail(
            2,
            f"the tokenizer cannot read this text ({reason}): use another tokenizer.json, or leave"
            " out the text",
            group,
        )


def _help(words):
    """The names after --help, or None where it is not asked for."""
    for i, word in enumerate(words):
        if found := re.fullmatch(r"--?h(?:elp)?(?:=(.*))?", word):
            after = [found[1]] if found[1] else words[i + 1 :]
            return [name for name in after if not name.startswith("-")]
    return None


def _show(text):
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # --help | head
        streams.drop()
    return 0


def _unread(error, workdir, group):
    """Whoever read the output, such as head, is gone; any other pipe is an unexpected failure."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # only tells of errors
    if pipe.poll(0):
        streams.drop()
        return _fail(75, "nobody reads stdout any more: the same command goes on", group)
    return _fail(70, _unexpected(error, workdir, group), group)


def _group(command: Command) -> Group | None:
    """What holds several processes together; None for one. Raises UserError for wrong numbers."""
    number, of = command.process, command.processes
    if of < 1:
        raise UserError(f"--processes is {of}: use at least 1")
    if not 0 <= number < of:
        raise UserError(f"--process is {number} of --processes={of}: use 0 to {of - 1}")
    if of > 1 and not command.distributed:
        told = f"is {command.coordinator!r}" if command.coordinator else "is missing"
        host, _, port = command.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 65536):
            raise UserError(
                f"--processes is {of} and --coordinator {told}: give the address of process 0, such"
                " as --coordinator=host0:9876"
            )
    timeout_s = command.config.distributed.timeout_s
    return Group(timeout_s) if of > 1 or command.distributed else None


def _run(command: Command, group: Group | None, began: float) -> int:
    # For example, orbax warns of a missing sharding file whenever it restores a host scalar.
    warnings.filterwarnings("ignore", module="orbax")
    # Of a save that failed, of which the error tells.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if group:
        coordinator = "" if command.distributed else command.coordinator
        group.join(Place(coordinator, command.processes, command.process))
        signals.retake()  # the distributed runtime takes SIGTERM for itself
    stream = None if group and group.index else sys.stderr
    with Progress(stream, every_s=command.config.log.every, began=began).shown() as progress:
        with progress.stage("start", f"starting the job {command.config.job}"):
            from distill_jax.jobs.run import run_job  # takes seconds

            _check_platform()
        run_job(command.config, command.base, command.workdir, progress)
    if group:
        group.leave()
    return 0


def _check_platform() -> None:
    """Raises UserError where JAX_PLATFORMS asks for devices that are not here."""
    import jax

    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # of some platforms JAX only asserts
        if not (asked := os.environ.get("JAX_PLATFORMS")):
            raise
        reason = " ".join(str(error).split())[:200] or "JAX finds none of them"
        raise UserError(
            f"JAX_PLATFORMS is {asked} ({reason}): unset it, or use one that is here, such as cpu"
        ) from error


def _unexpected(error: Exception, workdir: Path | None, group: Group | None) -> str:
    """One line; the traceback goes to a file in the workdir, or else to a temporary one."""
    if group:
        group.await_reason()
    said = f"unexpected {type(error).__name__}: {first_line(error)}"
    text = "".join(traceback.format_exception(error)).encode(errors="backslashreplace")
    for write in (_into_workdir, _into_temporary):
        try:
            return f"{said} (traceback in {write(workdir, text)}): run again"
        except OSError as refused:  # there is no workdir yet, or no room
            reason = first_line(refused)
    return f"{said} (its traceback could not be written: {reason}): run again"


def _into_workdir(workdir, text):
    if workdir is None:
        raise FileNotFoundError
    path = workdir / "traceback.txt"
    path.write_bytes(text)
    return path


def _into_temporary(workdir, text):
    with tempfile.NamedTemporaryFile(prefix="distill_jax_", suffix=".txt", delete=False) as file:
        file.write(text)
    return file.name


def _fail(code: int, message: str, group: Group | None) -> int:
    line = visible(shortened("error: " + message.replace("\n", " ")))
    if group:
        group.fail(code, line)
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # stderr has no room, or nobody reads it: the code is all that can be said
        streams.drop(sys.stderr)
    return code
