"""The same models and the same step in plain PyTorch."""

import os
import shutil
import time

import jax
import numpy as np

from distill_jax.models.architecture import ModelConfig
from distill_jax.types import Params
from experiments.benchmarks import programs
from experiments.benchmarks.shapes import Case
from experiments.benchmarks.timing import Outcome, Program

TRIALS = 3
# Paths of a block's parameters in the package, below `blocks`.
MATRICES = {
    "attention": ("query", "key", "value", "output"),
    "feed_forward": ("gate", "up", "down"),
}


class Skipped(Exception):
    """A contender that cannot run here; the message is one line that says why."""


def build(case: Case, *, compiled: bool) -> dict[str, Program]:
    """The step as eager PyTorch, or with its loss through torch.compile, on JAX's platform.

    Raises Skipped where PyTorch, or the C++ compiler that torch.compile calls, is missing.
    """
    try:
        import torch
    except ImportError:
        raise Skipped("torch is not installed") from None
    if compiled and not shutil.which(os.environ.get("CXX", "g++")):
        raise Skipped("torch.compile needs a C++ compiler: install g++, or name one in CXX")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if jax.devices()[0].platform == "gpu" else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Skipped("this torch sees no GPU: install one that is built for the driver's CUDA")
    pair = case.pair
    params = pair.student_params, pair.teacher_params
    student, teacher = (_on(device, _tensors(torch, of)) for of in params)
    tokens, labels = (torch.from_numpy(np.array(x, np.int64)) for x in pair.batch[:2])
    batch = _on(device, [tokens, labels, torch.from_numpy(np.array(pair.batch.weight_BT))])
    leaves = [tensor.requires_grad_() for tensor in _leaves(student)]
    optimizer = adamw(torch, leaves, faster(torch, leaves))
    loss = _loss(torch, case.shape.student, case.shape.teacher)
    if compiled:
        loss = torch.compile(loss)
    half = case.dtype != "float32"
    autocast = torch.autocast(device.type, getattr(torch, case.dtype), enabled=half)

    def run():
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            value = loss(student, teacher, *batch)
        value.backward()
        optimizer.step()
        return Outcome(value.item())

    if not compiled:
        return {"torch_eager": Program(run)}
    first, again = seconds_of(run), seconds_of(run)
    return {"torch_compile": Program(run, compile_seconds=first - again)}


def _loss(torch, student_config: ModelConfig, teacher_config: ModelConfig):
    """Mean over tokens of forward KL and cross-entropy, from the logits of both."""
    F = torch.nn.functional

    def loss(student, teacher, tokens, labels, weight):
        with torch.no_grad():
            log_p = F.log_softmax(_logits(torch, teacher, teacher_config, tokens), -1)
        log_q = F.log_softmax(_logits(torch, student, student_config, tokens), -1)
        divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        nll = -log_q.gather(-1, labels[..., None])[..., 0]
        total = programs.DIVERGENCE_WEIGHT * divergence + programs.LABEL_WEIGHT * nll
        return (total * weight).sum() / weight.sum()

    return loss


def _logits(torch, weights: dict, config: ModelConfig, tokens):
    """Logits [B, T, V] of a llama: pre-norms, rotary positions, causal attention, SwiGLU."""
    F = torch.nn.functional
    norm = lambda x, weight: F.rms_norm(x, (config.width,), weight, config.norm_eps)
    cos, sin = (y.to(tokens.device) for y in _rotary(torch, config, tokens.shape[1]))
    x = F.embedding(tokens, weights["embedding"])
    for block in weights["blocks"]:
        h = norm(x, block["attention/norm"])
        query, key, value = (
            F.linear(h, block[f"attention/{name}"])
            .unflatten(-1, (-1, config.head_width))
            .transpose(1, 2)
            for name in ("query", "key", "value")
        )
        groups = config.heads // config.kv_heads
        key, value = (
            (y.repeat_interleave(groups, 1) for y in (key, value)) if groups > 1 else (key, value)
        )
        query, key = (_turned(torch, y, cos, sin) for y in (query, key))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), block["attention/output"])
        h = norm(x, block["feed_forward/norm"])
        gate = F.silu(F.linear(h, block["feed_forward/gate"]))
        x = x + F.linear(gate * F.linear(h, block["feed_forward/up"]), block["feed_forward/down"])
    head = weights["embedding"] if config.tied else weights["head"]
    return F.linear(norm(x, weights["final_norm"]), head)


def _rotary(torch, config: ModelConfig, length: int):
    exponent = torch.arange(0, config.head_width, 2, dtype=torch.float32) / config.head_width
    angle = torch.arange(length)[:, None] * config.rope_theta**-exponent
    return torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()


def _turned(torch, x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _tensors(torch, params: Params) -> dict:
    """The package's parameters as PyTorch keeps them: matrices [out, in], one dict per block."""
    tensor = lambda x: torch.from_numpy(np.array(x))
    matrix = lambda x: torch.from_numpy(np.array(np.swapaxes(x, -1, -2), order="C"))
    stacked = {}
    for half, names in MATRICES.items():
        own = params["blocks"][half]
        stacked[f"{half}/norm"] = tensor(own["norm"])
        stacked |= {f"{half}/{name}": matrix(own[name]) for name in names}
    count = len(stacked["attention/norm"])
    blocks = [{path: x[i].clone() for path, x in stacked.items()} for i in range(count)]
    ends = {name: tensor(params[name]) for name in ("embedding", "final_norm")}
    if "head" in params:
        ends["head"] = matrix(params["head"])
    return {"blocks": blocks, **ends}


def _on(device, tree):
    """The same tensors on a device."""
    if isinstance(tree, dict):
        return {name: _on(device, part) for name, part in tree.items()}
    return [_on(device, part) for part in tree] if isinstance(tree, list) else tree.to(device)


def _leaves(tree) -> list:
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, list) else [tree]


def adamw(torch, leaves: list, implementation: str):
    return torch.optim.AdamW(
        leaves,
        lr=programs.LEARNING_RATE,
        betas=programs.BETAS,
        eps=programs.EPSILON,
        weight_decay=programs.DECAY,
        **{implementation: True},
    )


def faster(torch, leaves: list) -> str:
    """Which of PyTorch's two forms of AdamW takes less time on these parameters."""
    seconds = {}
    for implementation in ("fused", "foreach"):
        copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        for copy in copies:
            copy.grad = torch.full_like(copy, 1e-3)
        optimizer = adamw(torch, copies, implementation)

        def step(optimizer=optimizer, last=copies[-1]):
            optimizer.step()
            last.flatten()[0].item()  # waits for the device

        step()
        seconds[implementation] = min(seconds_of(step) for _ in range(TRIALS))
    return min(seconds, key=seconds.get)


def seconds_of(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
