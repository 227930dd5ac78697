"""Files that are written completely or not at all."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from distill_jax.files import write_json, written_whole


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_file_may_be_read_by_whom_the_umask_lets(tmp_path, mask):
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "weights") as part:
            part.touch(mode=0o600)  # as some libraries do
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o666 & ~mask


def test_several_may_write_the_same_path_at_once(tmp_path):
    """Processes of one run share the user's cache directory."""

    def write(value):
        for _ in range(50):
            write_json(tmp_path / "known.json", value, shared=True)
            assert json.loads((tmp_path / "known.json").read_text()) in values

    values = [{"of": i, "text": "x" * 1000 * i} for i in range(4)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, values))
    assert [path.name for path in tmp_path.iterdir()] == ["known.json"]
