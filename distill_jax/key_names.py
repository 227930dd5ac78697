"""Names of keys: what somebody means who writes one that does not exist."""

import difflib
from collections.abc import Iterable

from distill_jax.types import UserError
from distill_jax.words import cut

OPEN = "study.ablations."  # the one group whose keys are the user's own


def unknown_key(key: str, known: Iterable[str]) -> UserError:
    """The error for a key that base does not have, with those that may be meant."""
    if f"{key}.".startswith(OPEN):
        return UserError(
            f"config.{key} cannot be given on the command line: set"
            f" c.{OPEN}NAME = {{'optim': {{'learning_rate': (1e-4, 1e-3)}}}} in a"
            " config file of your own (README, Did it help?) and pass that file as --config"
        )
    known = list(known)
    within = [name for name in known if name.startswith(f"{key}.")]
    if within:
        first = _first_of(key, known)
        hint = f"did you mean config.{first}?" if first else f"it has {_names(within, key)}"
        return UserError(f"config.{key} is a group of keys: {hint}")
    near = meant(key, known)
    if near:
        names = " or ".join(f"config.{name}" for name in near)
        return UserError(f"config.{key} is not a key: did you mean {names}?")
    group = key.rpartition(".")[0]
    within = [name for name in known if name.startswith(f"{group}.")] if group else []
    hint = f"config.{group} has {_names(within, group)}" if within else "--help lists every key"
    return UserError(f"config.{cut(key)} is not a key: {hint}")


def unknown_flag(name: str, flags: Iterable[str], known: Iterable[str]) -> UserError:
    """The error for a flag that is neither one of `flags` nor a key, with what may be meant."""
    near = [f for f in flags if _plain(name) in OTHER_FLAGS[f].split()]
    near = near or difflib.get_close_matches(name, list(flags), n=1, cutoff=0.75)
    first = _first_of(_plain(name), known := list(known))
    near = near or [f"config.{key}" for key in ([first] if first else meant(name, known))]
    hint = f"did you mean {' or '.join(f'--{n}' for n in near)}?" if near else "see --help"
    return UserError(f"--{cut(name)} is not a flag: {hint}")


def meant(key: str, known: list[str]) -> list[str]:
    """The keys that an unknown one may mean: by another word for it, by place, or by spelling."""
    plain, ends = _plain(key), {name: name.rpartition(".")[2] for name in known}
    group, _, last = plain.rpartition(".")
    if group and (whole := _called(plain, known)):
        return whole
    words = _called(last, known)
    if here := [name for name in words if name.rpartition(".")[0] == group]:
        return here
    named = [name for name, end in ends.items() if end == last]
    if not group and (named or words):
        return words or named
    # Compared without the group, which is alike in any case.
    within = {end: name for name, end in ends.items() if name.rpartition(".")[0] == group}
    near = difflib.get_close_matches(last, within, n=1, cutoff=0.6) if group else []
    spelled = difflib.get_close_matches(plain, known, n=1, cutoff=0.6)
    return [within[n] for n in near] or words or named or spelled


def _first_of(group, known):
    """The key of a group that its name alone stands for."""
    return next((k for k in (f"{group}.{n}" for n in FIRST) if k in known), None)


def _called(word, known):
    return [key for key, words in OTHER_WORDS.items() if word in words.split() and key in known]


def _plain(name):
    return name.lower().replace("-", "_")


def _names(keys, group):
    """The keys of a group without its name, each subgroup once."""
    return ", ".join(dict.fromkeys(key[len(group) + 1 :].split(".")[0] for key in keys))


FIRST = ("path", "source", "name")
# What other programs call a key, and whole keys that are easily taken for another.
OTHER_WORDS = {
    "optim.learning_rate": "lr max_lr peak_lr step_size",
    "optim.final_fraction": "min_lr end_lr",
    "optim.schedule": "lr_scheduler lr_scheduler_type scheduler lr_schedule",
    "optim.warmup_steps": "warmup warmup_ratio num_warmup_steps",
    "optim.name": "optimizer optimiser",
    "optim.weight_decay": "wd decay",
    "optim.beta1": "adam_beta1 b1",
    "optim.beta2": "adam_beta2 b2",
    "optim.epsilon": "eps adam_epsilon",
    "optim.clip_norm": "grad_clip max_grad_norm gradient_clipping clip",
    "optim.muon_momentum": "momentum",
    "optim.frozen": "freeze",
    "data.batch_size": (
        "batch_size bs batch batchsize global_batch_size train_batch_size "
        "per_device_train_batch_size"
    ),
    "eval.batch_size": "eval_batch_size per_device_eval_batch_size",
    "data.microbatches": (
        "gradient_accumulation gradient_accumulation_steps grad_accum accumulation_steps "
        "micro_batches"
    ),
    "data.seq_len": (
        "max_length max_len max_seq_len max_seq_length sequence_length seq_length "
        "context_length block_size"
    ),
    "data.source": (
        "dataset dataset_name train_file train_data train_dataset data.path data.file "
        "data.name data.train text"
    ),
    "data.eval_source": (
        "eval_file validation_file eval_data eval_dataset eval.source eval.data eval.path"
    ),
    "data.held_out_fraction": "val_split validation_split test_size",
    "epochs": "num_epochs n_epochs num_train_epochs epoch",
    "steps": "max_steps num_steps total_steps train_steps iterations iters max_iters",
    "seed": "random_seed",
    "job": "mode task command",
    "teacher.path": (
        "model_name model_name_or_path model_path model.path model.name checkpoint_path "
        "pretrained model teacher_model teacher_path teacher_name teacher_model_name_or_path"
    ),
    "student.path": (
        "model_name model_name_or_path model_path model.path model.name checkpoint_path "
        "pretrained model student_model student_path student_name"
    ),
    "teacher.k": "topk top_k",
    "student.prune.blocks": "num_layers n_layers layers num_hidden_layers",
    "student.prune.neurons": "intermediate_size ffn_size",
    "terms.forward_kl.temperature": (
        "temp temperature kd_temperature distill_temperature terms.temperature"
    ),
    "generate.temperature": "temp temperature",
    "terms.forward_kl.weight": "loss kd_weight kl_weight alpha_kd",
    "terms.cross_entropy.weight": "loss ce_weight sft_weight",
    "model.compute_dtype": "dtype precision mixed_precision bf16 fp16 torch_dtype",
    "teacher.dtype": "dtype torch_dtype",
    "student.dtype": "dtype torch_dtype",
    "model.remat": (
        "gradient_checkpointing activation_checkpointing checkpointing rematerialization"
    ),
    "checkpoint.every": "save_steps save_every save_interval",
    "checkpoint.keep_last": "save_total_limit",
    "eval.every": "eval_steps eval_every eval_interval",
    "log.every": "logging_steps log_every log_interval",
    "log.wandb_project": "wandb project",
    "data.max_tokens": "max_tokens",
    "generate.max_new_tokens": "max_tokens max_new_tokens",
    "generate.prompts": "prompt",
    "mesh.data": "num_devices dp",
    "mesh.tensor": "tp tensor_parallel tensor_parallel_size",
    "study.seeds": "num_seeds",
}
# The same for the flags that are no keys.
OTHER_FLAGS = {
    "config": "cfg conf c config_file",
    "workdir": "out o output output_dir out_dir outdir save_dir log_dir logdir run_dir dir",
    "coordinator": "coordinator_address master_addr",
    "processes": "nproc num_processes world_size nnodes",
    "process": "rank process_id node_rank",
    "distributed": "multihost",
}
