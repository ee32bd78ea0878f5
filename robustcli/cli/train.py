"""`robust train`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli.options import FILE, Assignment, as_json, offline, quiet, together
from robustcli.cli.results import show

if TYPE_CHECKING:
    from robustcli.finetune.config import TrainConfig

_what = together(
    click.option("--model", required=True, help="A segmenter of `robust list models`."),
    click.option("--data", help="A folder, manifest or data set name [default: nuclei-mini]."),
    click.option("--protocol", type=click.Choice(["patient", "paper"]), default="patient",
                 show_default=True, help="Who is held out and how it is scored."),
    click.option("--limit", type=click.IntRange(1), help="Take so many images in all."),
    click.option("--weights", type=FILE, help="Start from these weights."),
    click.option("--untrained", is_flag=True, help="Start without the recipe's pretraining."),
    click.option("--model-arg", "model_args", multiple=True, type=Assignment(),
                 help="KEY=VALUE for the model's builder; repeatable."),
)  # fmt: skip
_recipe = together(
    click.option("--quick", is_flag=True, help="The shortest recipe that shows something."),
    click.option("--epochs", type=click.IntRange(1), help="Passes over the training images."),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Highest learning rate."),
    click.option("--batch-size", type=click.IntRange(1), help="Images a step."),
    click.option("--accumulate", type=click.IntRange(1), help="Steps whose gradients are added."),
    click.option("--loss", help="A loss of docs/train-seg.md."),
    click.option("--aug", help="An augmentation of docs/train-seg.md."),
    click.option("--window", type=click.IntRange(1), help="Side of what the network sees, pixels."),
    click.option("--clip", type=click.FloatRange(0, min_open=True), help="Gradient norm at most."),
    click.option("--patience", type=click.IntRange(1),
                 help="Stop after so many epochs without a better validation dice."),
)  # fmt: skip
_run = together(
    click.option("--out", type=FILE, help="Folder of the run [default: runs/train-MODEL-HASH]."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."),
    click.option("--devices", type=click.IntRange(1), default=1, show_default=True,
                 help="Processes that share a step (DDP)."),
    click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32",
                 show_default=True, help="Of the forward pass."),
    click.option("--scan-backend", envvar="ROBUST_SCAN_BACKEND",
                 help="Force one of the scan's backends (`robust doctor` lists them)."),
    click.option("--workers", type=click.IntRange(0), help="Loader processes; 0 uses this one."),
    click.option("--fresh", is_flag=True, help="Discard what the run's folder holds."),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and stop."),
)  # fmt: skip


@click.group("train")
def command() -> None:
    """Train one of the zoo."""


@command.command("seg")
@_what
@_recipe
@_run
@offline
@as_json
@quiet
def seg(as_json: bool, quiet: bool, dry_run: bool, **options: Any) -> None:
    """Train a segmenter; the same command again goes on where it stopped.

    \b
    robust train seg --model ulvm_v5
    robust train seg --model unet --data lgg-mri-segmentation/kaggle_3m --protocol paper
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.cli.progress import ConsoleListener

    config = _config(options)
    with ConsoleListener(quiet=quiet, unit="images") as listener:
        if dry_run:
            from robustcli.finetune.dry import forecast_training

            plan = forecast_training(config, listener)
            click.echo(plan.as_json() if as_json else plan.as_text())
            return
        from robustcli.finetune.train import run_training

        try:
            run = run_training(config, listener)
        except MemoryError as error:
            raise click.ClickException("Out of memory. Try a smaller --batch-size.") from error
    show(run, as_json=as_json, quiet=quiet)


def _config(options: dict[str, Any]) -> TrainConfig:
    import os

    from robustcli.finetune.config import TrainConfig

    backend = options.pop("scan_backend")
    if backend is not None:
        os.environ["ROBUST_SCAN_BACKEND"] = backend
    options["model_args"] = dict(options["model_args"])
    return TrainConfig(command=shlex.join(["robust", *sys.argv[1:]]), **options)
