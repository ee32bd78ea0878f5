"""`robust train`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import (
    PrintablePlan,
    finished_seeds_on_error,
    seed_error_printer,
    show,
    show_plan,
)
from robustcli.cli.shared_options import as_json, offline, quiet, together
from robustcli.cli.study import StudyCommand, config_option
from robustcli.cli.terminal import ConsoleListener

if TYPE_CHECKING:
    from robustcli.core.listener import Listener
    from robustcli.training.config import TrainConfig

_start = together(
    options.weights,
    click.option("--untrained", is_flag=True,
                 help="Start from random weights instead of the pretrained weights of the recipe."),
    options.model_arguments("model_args"),
    options.ablate,
)  # fmt: skip
_masks = together(
    click.option(
        "--model",
        required=True,
        shell_complete=options.completing("models"),
        help="A segmenter of `robust list models`.",
    ),
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
    click.option("--model", required=True, shell_complete=options.completing("models"),
                 help="A classifier of `robust list models`."),
    click.option(
        "--data",
        help="A folder with one folder per class, a tar, a manifest, a data set (cifar10, "
            "cifar100, ...), or hf:ORG/NAME@REVISION. [default: cifar10-mini for CIFAR networks]",
    ),
    options.limit,
    _start,
    click.option("--target", type=click.FloatRange(0, 1, min_open=True),
                 help="Target top-1 accuracy on the validation images, a fraction; recipe "
                     "`speedrun` measures the time to reach it. [default: that of the recipe, "
                     "0.94]"),
)  # fmt: skip


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
    robust train cls --model vim
    robust train cls --model resnet18 --data cifar10
    robust train cls --model timm:resnet18 --data DIR
    """  # noqa: D301  click reads the backspace: keep these lines apart
    _train({"task": "cls", **options.settings(values)}, as_json, quiet, dry_run)


def _train(settings: dict[str, Any], as_json: bool, quiet: bool, dry_run: bool) -> None:
    from robustcli.training.config import TrainConfig

    config = TrainConfig(**settings)
    with ConsoleListener(quiet=quiet, unit="images") as listener:
        if dry_run:
            show_plan(_forecast(config, listener), as_json=as_json)
            return
        if config.seeds is None:
            from robustcli.training.engine import run_training

            run = run_training(config, listener)
        else:
            from robustcli.training.seed_runs import train_seeds

            with finished_seeds_on_error(as_json=as_json, quiet=quiet):
                run = train_seeds(config, listener, seed_error_printer(listener))
    show(run, as_json=as_json, quiet=quiet)


def _forecast(config: TrainConfig, listener: Listener) -> PrintablePlan:
    if config.seeds is None:
        from robustcli.training.train_plan import forecast_training

        return forecast_training(config, listener)
    from robustcli.training.seed_runs import forecast_train_seeds

    return forecast_train_seeds(config, listener)
