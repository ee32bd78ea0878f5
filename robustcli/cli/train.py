"""`robust train`."""

from __future__ import annotations

from typing import Any

import click

from robustcli.cli import options
from robustcli.cli.options import FILE, as_json, foreground, ignore, offline, quiet, together
from robustcli.cli.results import show

_start = together(
    click.option("--weights", type=FILE, help="Start from these weights."),
    click.option("--untrained", is_flag=True, help="Start without the recipe's pretraining."),
    options.model_arguments,
)
_masks = together(
    click.option("--model", required=True, help="A segmenter of `robust list models`."),
    click.option("--data", help="A folder, manifest or data set name [default: nuclei-mini]."),
    options.protocol,
    options.limit,
    foreground,
    ignore,
    _start,
)
_classes = together(
    click.option("--model", required=True, help="A classifier of `robust list models`."),
    click.option("--data", help="A folder with one per class, a manifest, tar or data set name."),
    options.limit,
    _start,
)


@click.group("train")
def command() -> None:
    """Train one of the zoo."""


@command.command("seg")
@_masks
@options.recipe
@options.run
@offline
@as_json
@quiet
def seg(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Train a segmenter; the same command again goes on where it stopped.

    \b
    robust train seg --model ulvm_v5
    robust train seg --model unet --data lgg-mri-segmentation/kaggle_3m --protocol paper
    """  # noqa: D301  click reads the backspace: keep these lines apart
    _train({"task": "seg", **options.settings(values)}, as_json, quiet, dry_run)


@command.command("cls")
@_classes
@options.recipe
@options.run
@offline
@as_json
@quiet
def cls(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Train a classifier for the classes of the data; again, it goes on where it stopped.

    \b
    robust train cls --model vmamba-pico --data DIR
    robust train cls --model resnet18 --data cifar10-mini --window 32 --epochs 10
    """  # noqa: D301  click reads the backspace: keep these lines apart
    _train({"task": "cls", **options.settings(values)}, as_json, quiet, dry_run)


def _train(settings: dict[str, Any], as_json: bool, quiet: bool, dry_run: bool) -> None:
    from robustcli.cli.progress import ConsoleListener
    from robustcli.training.config import TrainConfig

    config = TrainConfig(**settings)
    with ConsoleListener(quiet=quiet, unit="images") as listener:
        if dry_run:
            from robustcli.training.train_plan import forecast_training

            plan = forecast_training(config, listener)
            click.echo(plan.as_json() if as_json else plan.as_text())
            return
        from robustcli.training.engine import run_training

        run = run_training(config, listener)
    show(run, as_json=as_json, quiet=quiet)
