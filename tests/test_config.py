"""The schema is frozen: a key that comes, goes or changes its type is seen here."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs.base import get_config
from distill_jax.command_line import parse
from distill_jax.config import (
    OF_NUMBERS,
    as_flags,
    check_keys,
    choose,
    config_diff,
    flatten,
    leaves,
    load_base,
)
from distill_jax.key_names import unknown_key
from distill_jax.schema import CHOICES, key_limits
from distill_jax.types import UserError

KEYS = """
cache.batch_size cache.dtype cache.shard_tokens checkpoint.every checkpoint.keep_best
checkpoint.keep_last checkpoint.metric data.batch_size data.clean.decontaminate
data.clean.exact_duplicates data.clean.filter data.clean.max_characters data.clean.min_characters
data.clean.near_duplicates data.eval_max_documents data.eval_max_tokens
data.eval_source data.fields data.format data.held_out_fraction data.max_documents data.max_tokens
data.microbatches data.on_error data.prefetch data.seq_len data.source data.store data.template
data.weights
diagnose.baseline distributed.timeout_s
epochs eval.batch_size eval.every eval.task_limit eval.task_path eval.tasks
export.checkpoint export.dtype export.format
generate.batch_size generate.chat generate.max_new_tokens generate.messages generate.prompts
generate.temperature generate.top_p job log.every
log.tensorboard log.wandb_project mesh.data mesh.expert mesh.fsdp mesh.sequence mesh.tensor
model.block_tokens
model.compute_dtype model.remat optim.beta1 optim.beta2 optim.clip_norm optim.decay_steps
optim.epsilon optim.final_fraction optim.frozen optim.learning_rate optim.max_rollbacks
optim.max_skipped
optim.muon_iterations optim.muon_learning_rate optim.muon_momentum optim.name optim.schedule
optim.spike_factor
optim.warmup_steps optim.weight_decay plan.compile plan.price_per_hour plan.tokens plan.topology
replay.step seed steps student.dtype student.init student.path student.shard
student.prune.attention_ridge student.prune.block_criterion student.prune.blocks
student.prune.calibration_tokens student.prune.neuron_criterion student.prune.neurons
student.prune.ranking_tokens student.prune.refit student.prune.ridge study.arms study.cache
study.confidence study.fixed_seeds study.gate study.margin study.measure study.new_tokens
study.price_per_hour study.prompt_tokens study.prompts study.scorer study.seeds study.slice_margin
teacher.average_decay teacher.cache teacher.draws teacher.dtype teacher.group teacher.init teacher.k
teacher.kl_tokens teacher.mix teacher.more teacher.path teacher.policy teacher.shard teacher.targets
teacher.weights verdict.baseline
verdict.higher_is_better verdict.look verdict.margin verdict.metric verdict.minimum_seeds
verdict.slice_margin verdict.source verdict.task verdict.treatment verdict.unit watchdog_s
"""


def test_the_set_of_keys_is_frozen():
    """Terms are left out: test_architecture.py holds them to the registry of divergences."""
    keys = [key for key in flatten(get_config()) if not key.startswith("terms.")]
    assert sorted(keys) == sorted(KEYS.split())


def test_a_near_miss_is_named():
    known = flatten(get_config())
    assert "config.data.batch_size?" in str(unknown_key("data.batchsize", known))
    assert "config.optim.learning_rate?" in str(unknown_key("learning_rate", known))
    assert "--help lists every key" in str(unknown_key("zzz", known))
    assert "cannot be given on the command line" in str(unknown_key("study.ablations.hot", known))


def test_another_type_is_refused_and_an_integer_for_a_float_is_not():
    base, values = get_config(), get_config().to_dict()
    values["optim"]["clip_norm"] = 2
    check_keys(ConfigDict(values), base)
    values["steps"] = "ten"
    with pytest.raises(UserError, match=r"config.steps is 'ten'.*give a whole number"):
        check_keys(ConfigDict(values), base)


def test_a_config_is_whole():
    base, config = get_config(), get_config()
    del config.optim.name
    with pytest.raises(UserError, match=r"config\.optim\.name is missing"):
        check_keys(config, base)


def test_the_diff_names_what_changed_and_nothing_else():
    config, base = get_config(), get_config()
    assert config_diff(config, base) == ""
    config.data.seq_len = 64
    assert config_diff(config, base) == "config.data.seq_len: 64 (base: 512)\n"


def test_a_choice_names_its_neighbor():
    with pytest.raises(UserError, match="did you mean prune"):
        choose("student.init", "prun", ("checkpoint", "prune"))


# A value of each type that base has.
VALUES = {
    str: st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    int: None,
    float: None,
    bool: st.booleans(),
    tuple: st.lists(st.text(max_size=3), max_size=3).map(tuple),
}
KEYS_OF = {
    t: [
        key for key, value in leaves(load_base()).items() if type(value) is t and key not in CHOICES
    ]
    for t in VALUES
}


def number(key, kind):
    """Any number within the limits of a key."""
    _, apart, least, most, _ = key_limits()[key]
    if kind is int:
        return st.integers(int(least), int(most))
    drawn = st.floats(least, most)
    return drawn if apart is None else drawn | st.just(apart)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_flags_give_the_config_back(data):
    config = get_config()
    for kind in data.draw(st.lists(st.sampled_from(list(VALUES)), max_size=6)):
        key = data.draw(st.sampled_from(KEYS_OF[kind]))
        of = number(key, kind) if VALUES[kind] is None else VALUES[kind]
        if key in OF_NUMBERS:
            of = st.lists(st.floats(0.1, 1)).map(tuple)
        config.update_from_flattened_dict({key: data.draw(of)})
    if config.epochs:  # they stand in the place of steps
        config.steps = 0
    text = shlex.join(as_flags(flatten(config), flatten(get_config())))
    words = ["main", "--config=configs/base.py", "--workdir=x", *shlex.split(text)]
    assert flatten(parse(words).config) == flatten(config)


def test_flags_are_of_what_differs_and_what_a_flag_can_say():
    base = flatten(get_config())
    assert as_flags(base, base) == []
    given = {"steps": 5, "teacher.path": "", "optim.clip_norm": 2.0, "study.ablations.a.steps": 3}
    assert as_flags(given, base) == ["--config.steps=5", "--config.optim.clip_norm=2"]
    assert as_flags({"study.arms": ["kd"]}, base) == ['--config.study.arms=("kd",)']
