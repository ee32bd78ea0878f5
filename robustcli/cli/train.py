"""`robust train`."""

from __future__ import annotations

from typing import Any

import click

from robustcli.cli import train_options
from robustcli.cli.options import FILE, as_json, offline, quiet, together
from robustcli.cli.results import show

_what = together(
    click.option("--model", required=True, help="A segmenter of `robust list models`."),
    click.option("--data", help="A folder, manifest or data set name [default: nuclei-mini]."),
    train_options.protocol,
    train_options.limit,
    click.option("--weights", type=FILE, help="Start from these weights."),
    click.option("--untrained", is_flag=True, help="Start without the recipe's pretraining."),
    train_options.model_arguments,
)


@click.group("train")
def command() -> None:
    """Train one of the zoo."""


@command.command("seg")
@_what
@train_options.recipe
@train_options.run
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
    from robustcli.training.config import TrainConfig

    config = TrainConfig(task="seg", **train_options.settings(options))
    with ConsoleListener(quiet=quiet, unit="images") as listener:
        if dry_run:
            from robustcli.training.dry import forecast_training

            plan = forecast_training(config, listener)
            click.echo(plan.as_json() if as_json else plan.as_text())
            return
        from robustcli.training.train import run_training

        try:
            run = run_training(config, listener)
        except MemoryError as error:
            raise click.ClickException("Out of memory. Try a smaller --batch-size.") from error
    show(run, as_json=as_json, quiet=quiet)
