"""What loading and writing a large model takes of a host's memory: see README.md.

    python -m experiments.weights.run make --path=/tmp/w/model --blocks=25
    python -m experiments.weights.run load --path=/tmp/w/model --devices=8 --forget
    python -m experiments.weights.run load --path=/tmp/w/model --devices=2 --processes=4
    python -m experiments.weights.run load --path=/tmp/w/model --devices=8 --export=/tmp/w/student

Each prints lines of JSON.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

# Of Llama-3-8B, with its head tied to the embedding.
SHAPE = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192, "hidden_act": "silu", "rope_theta": 5e5,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("make", "load"))
    parser.add_argument("--path", type=Path, required=True, help="the model's directory")
    parser.add_argument("--blocks", type=int, default=25, help="of make: 0.44 GB each, + 1.05 GB")
    parser.add_argument("--dtype", default="bfloat16", help="that it is loaded in")
    parser.add_argument("--devices", type=int, default=8, help="simulated, of each process")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--export", type=Path, help="write it there again, once it is loaded")
    parser.add_argument("--forget", action="store_true", help="what lies on devices, at once")
    parser.add_argument("--of", help=argparse.SUPPRESS)  # port/number of a process
    options = parser.parse_args()
    if options.what == "make":
        make(options.path, options.blocks)
    elif options.processes == 1 or options.of:
        load(options)
    else:
        together(options)


def make(directory: Path, blocks: int) -> None:
    """Random bfloat16 weights, a block to a shard, with one block in memory at a time."""
    from distill_jax.data.tokenizer import save_tokenizer
    from tests.cli import make_tiny_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": blocks}))
    tokenizer = make_tiny_tokenizer()
    save_tokenizer(tokenizer, directory, positions=SHAPE["max_position_embeddings"])
    width, neurons = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    keys = SHAPE["num_key_value_heads"] * SHAPE["head_dim"]
    of_block = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width), "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (neurons, width), "mlp.up_proj": (neurons, width),
        "mlp.down_proj": (width, neurons), "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }  # fmt: skip
    shards = [
        {f"model.layers.{i}.{name}.weight": shape for name, shape in of_block.items()}
        for i in range(blocks)
    ]
    ends = {
        "model.embed_tokens.weight": (SHAPE["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    weight_map = {}
    for number, shapes in enumerate([ends, *shards], 1):
        name = f"model-{number:05}-of-{blocks + 1:05}.safetensors"
        write_shard(directory / name, shapes, seed=number)
        weight_map |= dict.fromkeys(shapes, name)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(index)


def write_shard(path: Path, shapes: dict, seed: int) -> None:
    import ml_dtypes
    from safetensors.numpy import save_file

    r = np.random.default_rng(seed)
    # Drawing 12 GB takes long: each array begins anywhere in the same numbers, again and again.
    drawn = (r.standard_normal(2**22 + 1, np.float32) * 0.02).astype(ml_dtypes.bfloat16)
    draw = lambda shape: np.resize(np.roll(drawn, r.integers(drawn.size)), shape)
    save_file({name: draw(shape) for name, shape in shapes.items()}, path)


def together(options: argparse.Namespace) -> None:
    """The same in several processes of one run, each with its own memory."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "experiments.weights.run", *sys.argv[1:]]
    numbers = range(options.processes)
    running = [subprocess.Popen([*words, f"--of={port}/{number}"]) for number in numbers]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit(f"a process failed: {codes}")


def load(options: argparse.Namespace) -> None:
    """Loads the model as a run does; peak memory is that of the process above what it had before,
    less what its devices hold, which is memory of the host here and of no TPU's or GPU's.

    With --forget each array is deleted once it is placed: devices hold the largest one at most.
    """
    flags = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ |= {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    import jax

    if options.of:
        port, number = options.of.split("/")
        jax.distributed.initialize(f"localhost:{port}", options.processes, int(number))
    from distill_jax.config import load_base
    from distill_jax.setup import placing
    from distill_jax.setup.models import load_model, mesh_of

    kept = []  # of every array, what it takes of this process's devices and of all
    placed = placing._placed

    def noted(*of):
        array = jax.block_until_ready(placed(*of))
        kept.append((sum(shard.data.nbytes for shard in array.addressable_shards), array.nbytes))
        if not options.forget:
            return array
        array.delete()
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    placing._placed = noted
    c = load_base()
    c.mesh.data, c.mesh.fsdp = 1, -1
    mesh = mesh_of(c)
    jax.block_until_ready(jax.device_put(np.zeros(8)))  # the runtime's own
    before, begun, read_before = start_of_peak(), time.monotonic(), read_bytes()
    loaded = load_model(c, str(options.path), options.dtype, mesh)
    largest = max(here for here, _ in kept)
    on_devices = largest if options.forget else sum(here for here, _ in kept)
    report = {
        "process": jax.process_index(),
        "model_mb": mb(sum(whole for _, whole in kept)),
        "devices_hold_mb": mb(sum(here for here, _ in kept)),
        "largest_part_mb": mb(largest),
        "host_peak_mb": mb(peak() - before - on_devices),
        "read_mb": mb(read_bytes() - read_before),
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(report), flush=True)
    if options.export:
        export(options, loaded)


def export(options, loaded):
    import jax

    from distill_jax.export import export_student

    before, begun = start_of_peak(), time.monotonic()
    of = (options.export, loaded.model.config, loaded.params, loaded.tokenizer)
    export_student(*of, dtype=options.dtype)
    report = {
        "process": jax.process_index(),
        "export_peak_mb": mb(peak() - before),
        "shards_mb": [mb(f.stat().st_size) for f in sorted(options.export.glob("*.safetensors"))],
        "seconds": round(time.monotonic() - begun, 1),
    }
    print(json.dumps(report), flush=True)


def start_of_peak() -> int:
    """Forgets the peak of memory so far; gives the memory of now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return of_status("VmRSS")


def peak() -> int:
    return of_status("VmHWM")


def of_status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def read_bytes() -> int:
    """What the process has read of files, the page cache included."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


def mb(size: float) -> int:
    return round(size / 1e6)


if __name__ == "__main__":
    main()
