"""Several processes of one run need one directory."""

import socket
import subprocess

from tests import cli


def test_processes_that_do_not_share_a_directory_are_refused(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = [
        subprocess.Popen(
            cli.command(
                f"--workdir={tmp_path / str(i)}",
                f"--coordinator=localhost:{port}",
                "--processes=2",
                f"--process={i}",
            ),
            cwd=cli.ROOT,
            env=cli.environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in together]
    assert [process.returncode for process in together] == [2, 2], said
    for i, line in enumerate(said):
        assert "is not one directory for all 2 processes" in line.splitlines()[-1]
        kept = [path.name for path in (tmp_path / str(i)).glob("*")]
        assert kept == ([".lock"] if i == 0 else [])
