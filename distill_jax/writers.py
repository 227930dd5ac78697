"""Where metrics go besides metrics.jsonl: TensorBoard event files and Weights & Biases."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distill_jax.types import UserError

Writer = Callable[[int, dict[str, float]], None]  # (step, metrics by name)


def tensorboard(workdir: Path) -> Writer:
    """Event files below workdir/tensorboard. Raises UserError without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        raise UserError(
            "log.tensorboard needs tensorboardX: pip install tensorboardX, or leave it false"
        ) from None
    events = SummaryWriter(str(workdir / "tensorboard"))

    def write(step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            events.add_scalar(name, value, step)
        events.flush()

    return write


def wandb(project: str, workdir: Path, config: dict[str, Any]) -> Writer:
    """A run of a W&B project, resumed under the workdir's name. Raises UserError without wandb."""
    try:
        import wandb as client
    except ModuleNotFoundError:
        raise UserError(
            "log.wandb_project needs wandb: pip install wandb, or leave it empty"
        ) from None
    name = workdir.resolve().name
    run = client.init(project=project, id=name, resume="allow", dir=str(workdir), config=config)
    return lambda step, metrics: run.log(metrics, step=step)
