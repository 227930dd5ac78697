"""Where a run's numbers and texts go besides its own files: TensorBoard and Weights & Biases."""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax.files import write_text
from distill_jax.types import UserError

WANDB_ID = "wandb_id"  # of a workdir's run, so that a rerun goes on in the same one
Row = dict[str, Any]  # a line of samples.jsonl, or a model of the closing table


class Writer(NamedTuple):
    """One such place, for one run; used by process 0 alone.

    start(step)                first: the run goes on from `step`; what came after is repeated
    metrics(step, numbers)     numbers by name
    samples(step, lines)       what models write, as in samples.jsonl
    finish(step, table, files) at a run's end: the models of its closing table, and files to keep
    close(failed)              last, whether the run has ended or not
    """

    start: Callable[[int], None]
    metrics: Callable[[int, dict[str, float]], None]
    samples: Callable[[int, Sequence[Row]], None]
    finish: Callable[[int, Sequence[Row], Sequence[Path]], None]
    close: Callable[[bool], None]


def check(*, tensorboard: bool, wandb_project: str) -> None:
    """Raises UserError where a writer that is asked for cannot be used: not installed, no login."""
    if tensorboard:
        _tensorboard_client()
    if wandb_project:
        _check_login(_wandb_client())


def tensorboard(workdir: Path, config: dict[str, Any]) -> Writer:
    """Event files below workdir/tensorboard. Raises UserError without tensorboardX."""
    client = _tensorboard_client()
    events: Any = None  # opened by start, which alone knows what to hide

    def start(step: int) -> None:
        nonlocal events
        hide = {"purge_step": step + 1} if step else {}
        events = client.SummaryWriter(str(workdir / "tensorboard"), **hide)
        if not step:
            text(0, "config", _code(json.dumps(config, indent=2, ensure_ascii=False)))

    def text(step: int, tag: str, markdown: str) -> None:
        events.add_text(tag.replace(" ", "_"), markdown, step)
        events.flush()

    def metrics(step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            events.add_scalar(name, value, step)
        events.flush()

    def samples(step: int, lines: Sequence[Row]) -> None:
        for model in dict.fromkeys(line["model"] for line in lines if line["step"] == step):
            mine = [line for line in lines if line["model"] == model]
            parts = [f"{_code(x['prompt'])}\n\ngoes on\n\n{_code(x['text'])}" for x in mine]
            text(step, f"samples/{model}", "\n\n---\n\n".join(parts))

    def finish(step: int, table: Sequence[Row], files: Sequence[Path]) -> None:
        text(step, "final", _markdown_table(table))

    def close(failed: bool) -> None:
        if events is not None:
            events.close()

    return Writer(start, metrics, samples, finish, close)


def wandb(project: str, workdir: Path, config: dict[str, Any], *, name: str, group: str) -> Writer:
    """A run of a W&B project; a rerun in the same workdir goes on in it.

    group: puts the runs of one study together; empty for none. Raises UserError without wandb.
    """
    client = _wandb_client()
    run = client.init(
        project=project,
        id=_run_id(workdir),
        resume="allow",
        name=name,
        group=group or None,
        dir=str(workdir),
        config=config,
    )

    def metrics(step: int, numbers: dict[str, float]) -> None:
        # W&B only appends: the steps that a rerun repeats, bit for bit, are there already.
        if step >= run.starting_step:
            run.log(numbers, step=step)

    def samples(step: int, lines: Sequence[Row]) -> None:
        run.log({"samples": _table(client, lines)}, step=max(step, run.starting_step))

    def finish(step: int, table: Sequence[Row], files: Sequence[Path]) -> None:
        run.log({"final": _table(client, table)}, step=max(step, run.starting_step))
        for row in table:
            of = {f"final/{row['name']}/{k}": v for k, v in row.items() if k != "name"}
            run.summary.update({k: v for k, v in of.items() if v is not None})
        for path in files:
            run.save(str(path), base_path=str(workdir), policy="now")

    close = lambda failed: run.finish(exit_code=int(failed))
    return Writer(lambda step: None, metrics, samples, finish, close)


def _tensorboard_client() -> Any:
    try:
        import tensorboardX
    except ModuleNotFoundError:
        raise UserError(
            "log.tensorboard needs tensorboardX: pip install tensorboardX, or leave it false"
        ) from None
    return tensorboardX


def _wandb_client() -> Any:
    try:
        import wandb as client
    except ModuleNotFoundError:
        raise UserError(
            "log.wandb_project needs wandb: pip install wandb, or leave it empty"
        ) from None
    return client


def _check_login(client: Any) -> None:
    """Asks W&B whether it knows the user; a run that is offline or switched off needs no login."""
    if client.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    remedy = "run `wandb login`, set WANDB_MODE=offline, or leave log.wandb_project empty"
    try:
        known = client.login(prompt=False)
    except client.errors.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"log.wandb_project: W&B gives no access ({reason}): {remedy}") from None
    if not known:
        raise UserError(f"log.wandb_project is set and nobody is logged in to W&B: {remedy}")


def _run_id(workdir: Path) -> str:
    """The id of a workdir's run. Not its name: two directories of one project may share that."""
    path = workdir / WANDB_ID
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ValueError):
        found = ""
    if not re.fullmatch(r"[\w-]+", found):  # there is none, or it was damaged
        found = secrets.token_hex(8)
        write_text(path, found + "\n")
    return found


def _table(client: Any, rows: Sequence[Row]) -> Any:
    columns = list(rows[0]) if rows else []
    return client.Table(columns=columns, data=[[row[name] for name in columns] for row in rows])


def _code(text: str) -> str:
    """A text unchanged in Markdown: as a block of code."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _markdown_table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    shown = lambda x: "-" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(map(shown, row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
