"""Streams and a directory that whoever started the process took away: one line, or nothing."""

import subprocess
import sys

import pytest

from distill_jax import streams
from tests import cli

SAYS = "import distill_jax.main as m\nm.run()\n"


def run(before="", after="", *words, code=SAYS, **variables):
    """`--version` of a process that a shell starts; code of one's own, instead of the command."""
    shell = f'{before} exec "$@" {after}'
    words = [sys.executable, "-c", code, *(words or ["--version"])]
    return subprocess.run(
        ["bash", "-c", shell, "bash", *words], cwd=cli.ROOT,
        env=cli.environment() | {"PYTHONPATH": str(cli.ROOT)} | variables,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(closed):
    done = run(after=closed)
    assert done.returncode == 0
    assert done.stderr == ""


def test_letters_that_a_stream_lacks_are_escaped():
    code = "from distill_jax import streams\nstreams.prepare()\nprint('f\\u00fcr')\n"
    done = run(code=code, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, "f\\xfcr\n")


def test_a_full_disk_of_stdout_is_named_as_that():
    done = run(after=">/dev/full")
    assert done.returncode == 70
    assert done.stderr.startswith("error: standard output cannot be written (No space left on")
    assert len(done.stderr.splitlines()) == 1


GONE = "import sys\nfrom distill_jax.peers import Group\nGroup(10).fail(70, 'error: gone')\n"


@pytest.mark.parametrize("words", [("--config=none.py",), ()])
def test_an_error_that_stderr_does_not_take_is_told_by_the_code(words):
    """Of a process alone, and of one that ends others with it."""
    code = SAYS if words else GONE
    done = run("", "2>/dev/full", *words, code=code)
    assert done.returncode == (2 if words else 70)


def test_a_file_that_has_no_room_is_not_stdout(tmp_path):
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No sp") as e:
        full.write(b"text")
    assert not streams.refused(e.value)


def test_a_directory_that_is_gone_is_one_line(tmp_path):
    (tmp_path / "gone").mkdir()
    done = run(before=f"cd {tmp_path}/gone && rmdir ../gone;")
    assert done.returncode == 2
    assert done.stderr == "error: the current directory is gone: cd to one that exists\n"


def test_the_package_itself_is_the_command():
    words = [sys.executable, "-m", "distill_jax", "--version"]
    done = subprocess.run(words, cwd=cli.ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout[:11]) == (0, "distill_jax")
