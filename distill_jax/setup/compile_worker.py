"""A process of its own in which the steps of a plan are compiled for chips that are not here.

The number of simulated devices is fixed when JAX starts, and a compiler that fails may end its
process. Each line of its standard input is a config, flat, in JSON; each line of the answer has the
fields of compiling.Compiled.
"""

import json
import sys
from typing import Any

import jax
from flax import traverse_util
from ml_collections import ConfigDict

from distill_jax.config import load_base
from distill_jax.setup.compiling import compile_step
from distill_jax.setup.planning import read_plan
from distill_jax.setup.tpu_compiler import devices_of


def main(tpu: bool) -> None:
    """Answers each request until there are no more. tpu: for the chips named, by their compiler."""
    for line in sys.stdin:
        planned = read_plan(_config(json.loads(line)))
        devices = devices_of(planned.topology.name) if tpu else jax.devices()
        answer = compile_step(planned, devices)
        sys.stdout.write(json.dumps(answer._asdict()) + "\n")
        sys.stdout.flush()


def _config(flat: dict[str, Any]) -> ConfigDict:
    values = {key: tuple(x) if isinstance(x, list) else x for key, x in flat.items()}
    config = load_base()
    config.update(traverse_util.unflatten_dict(values, sep="."))
    return config


if __name__ == "__main__":
    main("--tpu" in sys.argv)
