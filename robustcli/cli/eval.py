"""`robust eval`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import show, show_plan
from robustcli.cli.shared_options import (
    FILE,
    Assignments,
    Numbers,
    as_json,
    offline,
    quiet,
    together,
)
from robustcli.cli.stored_places import RunPlace
from robustcli.cli.study import StudyCommand, config_option
from robustcli.cli.terminal import ConsoleListener
from robustcli.core.errors import GateError, UsageError
from robustcli.core.ranks import ranks

if TYPE_CHECKING:
    from robustcli.evaluation.config import EvalConfig


_subject_options = together(
    click.option("--model", "models", multiple=True, required=True,
                 shell_complete=options.completing("models"),
                 help="A model of `robust list models`, any timm name, the folder of a training "
                     "run, or your own network (docs/own-models.md); repeatable."),
    click.option("--transform", "transforms", multiple=True,
                 shell_complete=options.completing("transforms"), required=True,
                 help="A transform's name, a glob, or a preset (paper21, imagenet-c, published, "
                 "all); "
                 "repeatable."),
    click.option("--severity", "severities", type=Numbers(int),
                 help="Severities 1 to 5, such as 1,3,5. [default: strength drawn from the full "
                 "range]"),
    click.option("--plugin", "plugins", multiple=True, type=FILE,
                 help="A Python file that defines transforms; repeatable."),
    click.option("--published", "published", multiple=True, type=FILE,
                 help="The folder of a published corruption benchmark (ImageNet-C, CIFAR-10-C), "
                     "whose images become the transforms published/NAME; repeatable."),
    click.option("--apply-at", type=click.Choice(["original", "crop"]), default="original",
                 show_default=True,
                 help="Apply transforms to the decoded image, or after the model's resize and "
                     "crop."),
)  # fmt: skip
_data = together(
    click.option("--data", help="A folder, a tar, a manifest (CSV, Parquet), the name of a data "
                 "set (`robust list datasets`), hf:ORG/NAME@REVISION:SPLIT, or a folder or archive "
                 "in s3://, gs:// or hf:// (docs/remote.md)."),
    options.label_space,
    click.option("--labels", type=FILE,
                 help="A file with the class of each image, for a folder without subfolders; or "
                 "ReaL's real.json."),
    click.option("--answers", type=click.Choice(["auto", "all", "present"]), default="auto",
                 show_default=True,
                 help="Classes that models may predict: all, or only those present in the data; "
                     "auto follows the published protocol of the data set (ImageNet-A, -R, "
                     "ObjectNet: present)."),
    click.option("--per-class", type=click.IntRange(1),
                 help="Use only this many images of each class."),
    options.limit,
    click.option("--quick", is_flag=True,
                 help="Use a subset that is large enough for an error of about 5 points; the "
                     "expected error and time are printed first."),
    options.split,
    click.option("--allow-unreadable", type=click.FloatRange(0, 1), default=0.01, show_default=True,
                 help="Fraction of the images that may be unreadable."),
    options.foreground,
    options.ignore,
    options.classes,
)  # fmt: skip
_model = together(
    options.weights,
    options.model_arguments("arguments"),
    options.untrained,
    options.preprocessing,
)  # fmt: skip
_run = together(
    click.option("--out", type=RunPlace(machines=True),
                 help="Folder of the run, or s3:// or gs:// (docs/remote.md). "
                 "[default: runs/eval-MODEL-HASH]"),
    options.seed,
    options.device,
    options.precision,
    options.devices,
    click.option("--engine", type=click.Choice(["ray", "slurm"]),
                 help="Compute on a Ray cluster or in a SLURM job array (docs/engines.md). "
                 "[default: this machine]"),
    click.option("--slurm", type=Assignments(), metavar="KEY=VALUE,...",
                 help="The job array of `--engine slurm`, such as partition=gpu,time=60,array=16."),
    click.option("--address", metavar="HOST:PORT",
                 help="The Ray cluster of `--engine ray`. [default: the cluster that this machine "
                     "belongs to, else a new local one]"),
    options.scan_backend,
    click.option("--batch-size", type=click.IntRange(1),
                 help="Images per forward pass. [default: chosen by device]"),
    options.workers,
    options.fresh,
    options.dry_run,
    options.gates,
)  # fmt: skip


@click.command("eval", cls=StudyCommand)
@_subject_options
@_data
@_model
@_run
@config_option
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Measure models on transformed images. The same command again continues an interrupted run.

    \b
    robust eval --model vmamba-pico --transform paper21
    robust eval --model vmamba-b --model swin-b --transform 'affine*' --data DIR --per-class 15
    """  # noqa: D301  click reads the backspace: keep these lines apart
    config, first = _config(values), ranks().first
    with ConsoleListener(quiet=quiet or not first) as listener:
        if dry_run and not first:
            return
        if dry_run:
            from robustcli.evaluation.forecast import forecast

            plan = forecast(config, listener)
            show_plan(plan, as_json=as_json)
            return
        from robustcli.evaluation.evaluate import IncompleteRun, evaluate

        try:
            run = evaluate(config, listener)
        except (IncompleteRun, GateError) as error:
            gated = isinstance(error, GateError)
            show(error.run, as_json=as_json, quiet=quiet, gates=gated)
            raise
    if first:
        gated = bool(config.fail_under or config.fail_drop)
        show(run, as_json=as_json, quiet=quiet, gates=gated)


def _config(values: dict[str, Any]) -> EvalConfig:
    from robustcli.evaluation.config import EvalConfig

    options.set_scan_backend(values)
    first, *others = names = values.pop("models")
    request = options.model_request(first, values)
    if others and (request.weights is not None or request.arguments):
        raise UsageError(
            "`--weights` and `--model-arg` can only be used with one `--model`.",
            f"Got {len(names)} models.",
            "Run the command once for each model with the same `--out`: the results are added to "
            "one run.",
        )
    requests = tuple(replace(request, name=name) for name in names)
    values["slurm"] = values["slurm"] or {}
    return EvalConfig(models=requests, command=options.typed_command(), **values)
