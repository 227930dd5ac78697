"""Pairs of small models as directories that hold a config.json and nothing else."""

import json

from distill_jax.config import load_base
from distill_jax.models.families import FAMILIES
from distill_jax.setup.planning import make_facts, read_plan
from tests import tiny

TEACHER = {"width": 32, "blocks": 4, "vocab": 128}
STUDENT = {"width": 16, "blocks": 2, "vocab": 128}
EXPERTS = {"family": "qwen3_moe", "experts": 8, "experts_per_token": 2, "query_key_norm": "head"}


def write_sizes(path, **shape):
    """A model path of which only the sizes are there."""
    config = tiny.model(**shape).config
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(FAMILIES[config.family].to_hf(config)))
    return path


def config(directory, teacher=(), **more):
    """The config of a run of a small pair."""
    c = load_base()
    c.teacher.path = str(write_sizes(directory / "teacher", **(TEACHER | dict(teacher))))
    c.student.path = str(write_sizes(directory / "student", **STUDENT))
    c.student.init = "random"
    c.plan.topology = "v5e:2x4"
    c.data.seq_len, c.data.batch_size, c.model.block_tokens = 32, 32, 64
    c.mesh.data, c.mesh.fsdp = 1, 8
    for key, value in more.items():
        c.update_from_flattened_dict({key.replace("__", "."): value})
    return c


def planned(directory, **more):
    """The plan of that config and its facts."""
    found = read_plan(config(directory, **more))
    return found, make_facts(found)
