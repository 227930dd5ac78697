"""A checkpoint that is not as it was written is never gone on from, and harms no other one."""

import json
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import checkpoint
from distill_jax.checkpoint_files import MARKER, SEAL, Damaged
from distill_jax.files import set_aside
from distill_jax.types import Recent, TrainState, UserError

LEAVES = {"matrix": (64, 48), "vector": (7,), "scalar": ()}


def state_of(step):
    keys = jax.random.split(jax.random.key(step), 2 * len(LEAVES))
    names = LEAVES.items()
    params = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys[::2], names, strict=True)}
    moments = {
        n: jax.random.normal(k, s, jnp.bfloat16)
        for k, (n, s) in zip(keys[1::2], names, strict=True)
    }
    return TrainState(jnp.int32(step), params, moments, jnp.int32(0), jnp.int32(0), {}, None)


def opened(directory):
    return checkpoint.open_manager(directory, keep_last=2, keep_best=0, metric="eval/nll")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two checkpoints, of steps 4 and 6."""
    directory = tmp_path_factory.mktemp("written")
    manager = opened(directory)
    for step in (4, 6):
        checkpoint.save(manager, state_of(step), {"eval/nll": 1.0})
    manager.close()
    return directory


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def files(step):
    return sorted(path for path in step.rglob("*") if path.is_file())


def flip(path, byte, bit=3):
    data = bytearray(path.read_bytes())
    data[byte % len(data)] ^= 1 << bit
    path.write_bytes(data)


def gone_on(directory):
    """The state that a run goes on from, and what it says."""
    said, manager = [], opened(directory)
    try:
        return checkpoint.restore_good(manager, state_of(0), said.append), said
    finally:
        manager.close()


def assert_same(state, step):
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))


def arrays(step, of="state"):
    """The file that holds the bytes of the arrays."""
    return max(files(step / of), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("part", range(24))
def test_one_flipped_bit_in_the_arrays_is_seen(copy, part, capfd):
    path = arrays(copy / "step_6")
    flip(path, path.stat().st_size * part // 24, bit=part % 8)
    state, said = gone_on(copy)
    # Some bytes of the file are between the arrays and mean nothing.
    assert_same(state, int(state.step))
    assert (int(state.step) == 6) == (said == [])
    assert capfd.readouterr() == ("", "")


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "deleted": lambda path: path.unlink(),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_no_damage_of_any_file_changes_a_number_or_stops_a_run(written, tmp_path, kind, capfd):
    for i, file in enumerate(files(written / "step_6")):
        copy = shutil.copytree(written, tmp_path / str(i))
        DAMAGE[kind](copy / file.relative_to(written))
        state, said = gone_on(copy)
        assert_same(state, int(state.step))
        if int(state.step) == 4:
            assert sorted(path.name for path in copy.iterdir()) == ["damaged_step_6", "step_4"]
            assert [line.count("step 6 is damaged") for line in said] == [1]
            assert "\n" not in said[0]
            assert gone_on(copy)[1] == []  # it is said once
    assert capfd.readouterr() == ("", "")


WHOLE = {
    "no marker": lambda step: (step / MARKER).unlink(),
    "no second marker": lambda step: (step / "commit_success.txt").unlink(),
    "no seal": lambda step: (step / MARKER).write_text(
        (step / MARKER).read_text().replace('"custom_metadata"', '"custom"')
    ),
    "no metrics": lambda step: shutil.rmtree(step / "metrics"),
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "nothing": lambda step: (shutil.rmtree(step), step.mkdir()),
    "another's arrays": lambda step: (
        shutil.rmtree(step / "state"),
        shutil.copytree(step.parent / "step_4/state", step / "state"),
    ),
    "another step": lambda step: (
        shutil.rmtree(step),
        shutil.copytree(step.parent / "step_4", step),
    ),
    "another metric": lambda step: (step / "metrics/metrics").write_text('{"eval/nll": 0.5}'),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_what_is_no_whole_checkpoint_is_set_aside(copy, kind):
    WHOLE[kind](copy / "step_6")
    state, said = gone_on(copy)
    assert_same(state, 4)
    assert len(said) == 1
    assert sorted(path.name for path in copy.iterdir()) == ["damaged_step_6", "step_4"]


def test_where_no_checkpoint_is_good_nothing_is_renamed_and_all_reasons_are_said(copy):
    for step in (4, 6):
        WHOLE["no marker"](copy / f"step_{step}")
    with pytest.raises(UserError, match=r"(?s)step 6: .*; step 4: .*remove that directory"):
        gone_on(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["step_4", "step_6"]


def test_a_checkpoint_of_other_shapes_is_not_taken(copy):
    manager = opened(copy)
    wide = state_of(0)._replace(params={"matrix": jnp.zeros((64, 49))})
    with pytest.raises(Damaged):
        checkpoint.restore(manager, wide, 6)
    assert checkpoint.good_steps(manager, state_of(0)) == [4, 6]
    manager.close()


def test_the_same_step_may_be_set_aside_twice(copy):
    for again in ("damaged_step_6", "damaged_step_6_2", "damaged_step_6_3"):
        assert set_aside(copy / "step_6") == copy / again
        (copy / "step_6").mkdir()
    manager = opened(copy)
    assert manager.all_steps() == [4, 6]
    manager.close()


def test_a_run_goes_on_saving_after_damage(copy):
    flip(arrays(copy / "step_6"), 300)
    said, manager = [], opened(copy)
    checkpoint.restore_good(manager, state_of(0), said.append)
    for step in (6, 8, 10):
        checkpoint.save(manager, state_of(step), None)
    manager.close()
    assert len(said) == 1
    assert gone_on(copy)[0].step == 10
    assert sorted(path.name for path in copy.iterdir()) == ["damaged_step_6", "step_10", "step_8"]


def test_one_without_fingerprints_is_taken_with_a_line(copy):
    """As the version before wrote it."""
    marker = json.loads((copy / "step_6" / MARKER).read_text())
    (copy / "step_6" / MARKER).write_text(json.dumps(marker | {SEAL: {}}))
    state, said = gone_on(copy)
    assert_same(state, 6)
    assert [line.count("no fingerprints") for line in said] == [1]


def test_the_last_whole_one_stays_while_the_newest_are_not(tmp_path):
    manager = checkpoint.open_manager(tmp_path, keep_last=1, keep_best=0, metric="eval/nll")
    for step in (1, 2, 3, 4):
        checkpoint.save(manager, state_of(step), None)
        manager.wait_until_finished()
        if step in (2, 3):
            WHOLE["no marker"](tmp_path / f"step_{step}")
    manager.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_4"]


def test_what_a_former_version_did_not_keep_is_as_before_the_first_update(tmp_path):
    """It is one of no spike window; the rest is as it was saved."""
    whole = state_of(6)._replace(spikes=jnp.int32(3), recent=window(6))
    former = NamedTuple("Former", [(name, object) for name in whole._fields[:-2]])
    manager, said = opened(tmp_path), []
    checkpoint.save(manager, former(*whole[:-2]), None)
    manager.wait_until_finished()
    assert checkpoint.absent(checkpoint.restore(manager, whole, 6)) == ["spikes", "recent"]
    state = checkpoint.restore_good(manager, whole, said.append)
    manager.close()
    zero = jax.tree.map(jnp.zeros_like, (whole.spikes, whole.recent))
    expected = whole._replace(spikes=zero[0], recent=zero[1])
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    assert said == []


def test_the_window_of_a_checkpoint_is_verified(tmp_path):
    whole = state_of(6)._replace(spikes=jnp.int32(3), recent=window(6))
    manager = opened(tmp_path)
    checkpoint.save(manager, whole, None)
    manager.close()
    marker = tmp_path / "step_6" / MARKER
    written = json.loads(marker.read_text())
    written[SEAL]["arrays"]["recent/norm_W"] += 1
    marker.write_text(json.dumps(written))
    manager = opened(tmp_path)
    with pytest.raises(Damaged, match="recent/norm_W: not as saved"):
        checkpoint.restore(manager, whole, 6)
    manager.close()


def window(step):
    return Recent(jnp.int32(step), jnp.full(64, 0.5), {"nll": jnp.full(64, 3.0)})
