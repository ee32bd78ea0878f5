"""`robust finetune`."""

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
from robustcli.cli.shared_options import FILE, as_json, offline, quiet, together
from robustcli.cli.study import StudyCommand, config_option
from robustcli.cli.terminal import ConsoleListener

if TYPE_CHECKING:
    from robustcli.core.listener import Listener
    from robustcli.finetuning.config import FinetuneConfig

_subject_options = together(
    click.argument("model", metavar="NAME", shell_complete=options.completing("models")),
    click.option("--pretrained", type=FILE,
                 help="A weights file, the folder of a training run, or a "
                 "results folder of nnU-Net. [default: the model's own weights]"),
    click.option("--data", help="A folder, a manifest or the name of a data set. [default: "
                 "nuclei-mini:stained; cifar10-mini for CIFAR networks]"),
    click.option("--mode", type=click.Choice(["scratch", "full", "freeze", "lora", "all"]),
                 default="all", show_default=True,
                 help="Training modes; all selects the first three."),
    click.option("--lora-layers", default="in_proj,x_proj,out_proj", show_default=True,
                 help="Projections of state-space blocks that get adapters in mode lora."),
    click.option("--iterations", type=click.IntRange(1), help="Training steps of each mode."),
    options.protocol,
    options.limit,
    options.foreground,
    options.ignore,
    options.classes,
    options.model_arguments("model_args"),
    options.ablate,
)  # fmt: skip
_rule = together(
    click.option("--freeze-threshold", "threshold", type=float,
                 help="Freeze tensors whose gradient is smaller than this value. [default: 1e-6]"),
    click.option("--freeze-relative", "relative", type=float,
                 help="Freeze tensors whose gradient, divided by the rms of the weight, is smaller "
                     "than this value."),
    click.option("--freeze-quantile", "quantile", type=float,
                 help="Freeze this fraction of the tensors, those with the smallest gradients."),
    click.option("--freeze-change", "change", type=float,
                 help="Freeze tensors whose gradient changes between steps by less than this "
                     "fraction of its change early in the profile, as in GradES."),
    click.option("--freeze", "pattern", metavar="PATTERN",
                 help="Freeze tensors by name, such as `encoder.*`, or several: `a.*,b`."),
    click.option("--freeze-scope", "scope", type=click.Choice(["mamba", "all"]), default="mamba",
                 show_default=True,
                 help="Choose among the tensors of state-space blocks, or among all tensors."),
    click.option("--statistic", "kind", default="mean_abs", show_default=True,
                 type=click.Choice(["mean_abs", "rms", "max_abs", "abs_mean", "change"]),
                 help="Statistic of a tensor's gradient that is compared with the threshold."),
    click.option("--profile-iterations", type=click.IntRange(1),
                 help="Steps that are profiled before freezing. [default: one epoch, at least 20; "
                     "half of all steps with --freeze-change; none with --freeze]"),
    click.option("--profile", type=FILE,
                 help="A gradient profile to use instead of measuring one."),
    click.option("--profile-only", is_flag=True, help="Only measure the gradient profile."),
    click.option("--sweep", is_flag=True,
                 help="Also train with other freezing rules, for a curve of score against time "
                     "saved."),
)  # fmt: skip
_RULE = ("threshold", "relative", "quantile", "change", "pattern", "scope", "kind")
_FINETUNING = (
    "pretrained",
    "mode",
    "iterations",
    "profile_iterations",
    "profile",
    "profile_only",
    "sweep",
    "lora_layers",
)


@click.command("finetune", cls=StudyCommand)
@_subject_options
@_rule
@options.recipe
@options.run
@config_option
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Fine-tune a segmenter or a classifier, and show the effect of freezing on score and time.

    \b
    robust finetune umamba --freeze-threshold 1e-6
    robust finetune umamba --pretrained FOLDER --data DIR --iterations 6000
    robust finetune vmamba-pico
    """  # noqa: D301  click reads the backspace: keep these lines apart
    config = _config(values)
    with ConsoleListener(quiet=quiet, unit="images") as listener:
        if dry_run:
            show_plan(_forecast(config, listener), as_json=as_json)
            return
        if config.training.seeds is None:
            from robustcli.finetuning.mode_trainings import run_finetuning

            run = run_finetuning(config, listener)
        else:
            from robustcli.finetuning.mode_trainings import finetune_seeds

            with finished_seeds_on_error(as_json=as_json, quiet=quiet):
                run = finetune_seeds(config, listener, seed_error_printer(listener))
    show(run, as_json=as_json, quiet=quiet)


def _forecast(config: FinetuneConfig, listener: Listener) -> PrintablePlan:
    if config.training.seeds is None:
        from robustcli.finetuning.dry_run import forecast_finetuning

        return forecast_finetuning(config, listener)
    from robustcli.finetuning.dry_run import forecast_finetune_seeds

    return forecast_finetune_seeds(config, listener)


def _config(values: dict[str, Any]) -> FinetuneConfig:
    from robustcli.finetuning.config import FinetuneConfig
    from robustcli.finetuning.selection import make_rule
    from robustcli.training.config import TrainConfig

    rule = make_rule(**{name: values.pop(name) for name in _RULE})
    layers = values.pop("lora_layers")
    values["lora_layers"] = tuple(layer.strip() for layer in layers.split(",") if layer.strip())
    settings = {name: values.pop(name) for name in _FINETUNING}
    return FinetuneConfig(TrainConfig(**options.settings(values)), rule=rule, **settings)
