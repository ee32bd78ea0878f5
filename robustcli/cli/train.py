"""`robust train`."""

from __future__ import annotations

from typing import Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import show, show_plan
from robustcli.cli.shared_options import as_json, offline, quiet, together
from robustcli.cli.study import StudyCommand, config_option

_start = together(
    options.weights,
    click.option("--untrained", is_flag=True,
                 help="Start from random weights instead of the recipe's pretrained ones."),
    options.model_arguments("model_args"),
)  # fmt: skip
_masks = together(
    click.option("--model", required=True, help="A segmenter of `robust list models`."),
    click.option(
        "--data", help="A folder, a manifest or the name of a data set. [default: nuclei-mini]"
    ),
    options.protocol,
    options.limit,
    options.foreground,
    options.ignore,
    options.classes,
    _start,
)
_classes = together(
    click.option("--model", required=True, help="A classifier of `robust list models`."),
    click.option(
        "--data",
        help="A folder with one folder per class, a tar, a manifest, a data set, "
        "or hf:ORG/NAME@REVISION.",
    ),
    options.limit,
    _start,
)


@click.group("train")
def command() -> None:
    """Train a segmenter (seg) or a classifier (cls)."""


@command.command("seg", cls=StudyCommand)
@_masks
@options.recipe
@options.run
@config_option
@offline
@as_json
@quiet
def seg(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Train a segmenter. The same command again continues an interrupted training.

    \b
    robust train seg --model ulvm_v5
    robust train seg --model unet --data lgg-mri-segmentation/kaggle_3m --protocol paper
    """  # noqa: D301  click reads the backspace: keep these lines apart
    _train({"task": "seg", **options.settings(values)}, as_json, quiet, dry_run)


@command.command("cls", cls=StudyCommand)
@_classes
@options.recipe
@options.run
@config_option
@offline
@as_json
@quiet
def cls(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Train a classifier. The same command again continues an interrupted training.

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
            from robustcli.training.train_forecast import forecast_training

            plan = forecast_training(config, listener)
            show_plan(plan, as_json=as_json)
            return
        from robustcli.training.engine import run_training

        run = run_training(config, listener)
    show(run, as_json=as_json, quiet=quiet)
