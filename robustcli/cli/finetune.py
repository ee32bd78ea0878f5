"""`robust finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import options
from robustcli.cli.options import FILE, as_json, foreground, ignore, offline, quiet, together
from robustcli.cli.results import show

if TYPE_CHECKING:
    from robustcli.finetuning.config import FinetuneConfig

_what = together(
    click.argument("model", metavar="NAME"),
    click.option("--pretrained", type=FILE, help="Weights, a training run, or a results folder of "
                 "nnU-Net [default: the bundled ones]."),
    click.option("--data", help="A folder, manifest or data set name "
                 "[default: nuclei-mini:stained]."),
    click.option("--mode", type=click.Choice(["scratch", "full", "freeze", "lora", "all"]),
                 default="all", show_default=True, help="What is trained; all: the first three."),
    click.option("--iterations", type=click.IntRange(1), help="Steps of each mode."),
    options.protocol,
    options.limit,
    foreground,
    ignore,
    options.model_arguments,
)  # fmt: skip
_rule = together(
    click.option("--freeze-threshold", "threshold", type=float,
                 help="Freeze what has a smaller gradient [default: 1e-6]."),
    click.option("--freeze-relative", "relative", type=float,
                 help="The same, of gradient by size of the weight."),
    click.option("--freeze-quantile", "quantile", type=float,
                 help="Freeze this share of the tensors, the lowest."),
    click.option("--freeze", "pattern", metavar="PATTERN",
                 help="Freeze by name: `encoder.*`, or several: `a.*,b`."),
    click.option("--freeze-scope", "scope", type=click.Choice(["mamba", "all"]), default="mamba",
                 show_default=True, help="State-space blocks, or every tensor."),
    click.option("--statistic", "kind", default="mean_abs", show_default=True,
                 type=click.Choice(["mean_abs", "rms", "max_abs", "abs_mean"]),
                 help="Of a tensor's gradient."),
    click.option("--profile-iterations", type=click.IntRange(1),
                 help="Steps before the freeze, profiled [default: an epoch's, at least 20; "
                 "none with --freeze]."),
    click.option("--profile", type=FILE, help="Take this profile instead of measuring one."),
    click.option("--profile-only", is_flag=True, help="Stop when the profile is there."),
    click.option("--sweep", is_flag=True,
                 help="Also train by other rules: a curve of time saved against score."),
)  # fmt: skip
_RULE = ("threshold", "relative", "quantile", "pattern", "scope", "kind")
_OWN = (
    "pretrained",
    "mode",
    "iterations",
    "profile_iterations",
    "profile",
    "profile_only",
    "sweep",
)


@click.command("finetune")
@_what
@_rule
@options.recipe
@options.run
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Fine-tune a segmenter or a classifier, and show what freezing costs and saves.

    \b
    robust finetune umamba --freeze-threshold 1e-6
    robust finetune umamba --pretrained FOLDER --data DIR --iterations 6000
    robust finetune vmamba-pico --data DIR
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.cli.progress import ConsoleListener

    config = _config(values)
    with ConsoleListener(quiet=quiet, unit="images") as listener:
        if dry_run:
            from robustcli.finetuning.dry_run import forecast_finetuning

            plan = forecast_finetuning(config, listener)
            click.echo(plan.as_json() if as_json else plan.as_text())
            return
        run = _finetuned(config, listener)
    show(run, as_json=as_json, quiet=quiet)


def _finetuned(config: FinetuneConfig, listener: Any) -> Path:
    from robustcli.finetuning.mode_trainings import run_finetuning

    return run_finetuning(config, listener)


def _config(values: dict[str, Any]) -> FinetuneConfig:
    from robustcli.finetuning.config import FinetuneConfig
    from robustcli.finetuning.rules import make_rule
    from robustcli.training.config import TrainConfig

    rule = make_rule(**{name: values.pop(name) for name in _RULE})
    own = {name: values.pop(name) for name in _OWN}
    return FinetuneConfig(TrainConfig(**options.settings(values)), rule=rule, **own)
