"""Files that are written completely or not at all."""

import os

import pytest

from distill_jax.files import written_whole


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path, mask):
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "weights") as part:
            part.touch(mode=0o600)  # as some libraries do
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o666 & ~mask
