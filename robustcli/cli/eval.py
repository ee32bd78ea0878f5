"""`robust eval`."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli.results import show
from robustcli.cli.shared_options import (
    FILE,
    Assignment,
    Devices,
    Numbers,
    as_json,
    foreground,
    ignore,
    offline,
    quiet,
    together,
)

if TYPE_CHECKING:
    from robustcli.evaluation.config import EvalConfig


_what = together(
    click.option("--model", "models", multiple=True, required=True,
                 help="A name of `robust list models` or any timm name; repeat for several."),
    click.option("--transform", "transforms", multiple=True, required=True,
                 help="A name, a glob, or a preset (paper21, imagenet-c, all); repeatable."),
    click.option("--severity", "severities", type=Numbers(int),
                 help="Fixed strengths, such as 1,3,5, instead of the full range."),
    click.option("--plugin", "plugins", multiple=True, type=FILE,
                 help="A Python file with transforms of your own."),
    click.option("--apply-at", type=click.Choice(["original", "crop"]), default="original",
                 show_default=True, help="Transform the decoded photo, or the model's crop of it."),
)  # fmt: skip
_data = together(
    click.option("--data", help="A folder, tar, manifest (CSV, Parquet) or data set name."),
    click.option("--label-space", help="imagenet-1k, cifar10, or a file with one class a line."),
    click.option("--labels", type=FILE, help="Labels of a flat folder."),
    click.option("--per-class", type=click.IntRange(1), help="Take so many images of each class."),
    click.option("--limit", type=click.IntRange(1), help="Take so many images in all."),
    click.option("--split", type=click.Choice(["auto", "all", "train", "val", "test"]),
                 default="auto", show_default=True,
                 help="Segmentation: which part; auto leaves out what the model was trained on."),
    click.option("--allow-unreadable", type=click.FloatRange(0, 1), default=0.01, show_default=True,
                 help="Fraction of images that may be unreadable."),
    foreground,
    ignore,
)  # fmt: skip
_model = together(
    click.option("--weights", type=FILE,
                 help="A weights file or the folder of a training (one model only)."),
    click.option("--model-arg", "arguments", multiple=True, type=Assignment(),
                 help="KEY=VALUE for the model's builder; repeatable."),
    click.option("--untrained", is_flag=True, help="Evaluate without weights; marked everywhere."),
    click.option("--resize", type=click.IntRange(1), help="Shorter side after resizing, pixels."),
    click.option("--crop", type=click.IntRange(1), help="Side of the centre crop, pixels."),
    click.option("--interpolation", help="Of the resize: nearest, bilinear, bicubic or lanczos.",
                 type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"])),
    click.option("--mean", type=Numbers(float), help="Per channel, of values 0 to 1, or 0 to 255."),
    click.option("--std", type=Numbers(float), help="Per channel, of values 0 to 1, or 0 to 255."),
)  # fmt: skip
_run = together(
    click.option("--out", type=FILE, help="Folder of the run [default: runs/eval-MODEL-HASH]."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."),
    click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32",
                 show_default=True, help="Of the forward pass."),
    click.option("--devices", type=Devices(),
                 help="Processes that share the run, one per device: a number, or all."),
    click.option("--scan-backend", envvar="ROBUST_SCAN_BACKEND",
                 help="Force one of the scan's backends (`robust doctor` lists them)."),
    click.option("--batch-size", type=click.IntRange(1), help="Images a forward pass."),
    click.option("--workers", type=click.IntRange(0), help="Loader processes; 0 uses this one."),
    click.option("--fresh", is_flag=True, help="Discard what the run's folder holds."),
    click.option("--dry-run", is_flag=True, help="Say what would be computed, and stop."),
)  # fmt: skip


@click.command("eval")
@_what
@_data
@_model
@_run
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, dry_run: bool, **options: Any) -> None:
    """Measure models on transformed images; the same command again goes on where it stopped.

    \b
    robust eval --model vmamba-pico --transform paper21
    robust eval --model vmamba-b --model swin-b --transform 'affine*' --data DIR --per-class 15
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.cli.progress import ConsoleListener
    from robustcli.core.ranks import ranks

    config, first = _config(options), ranks().first
    with ConsoleListener(quiet=quiet or not first) as listener:
        if dry_run and not first:
            return
        if dry_run:
            from robustcli.evaluation.forecast import forecast

            plan = forecast(config, listener)
            click.echo(plan.as_json() if as_json else plan.as_text())
            return
        from robustcli.evaluation.evaluate import IncompleteRun, evaluate

        try:
            run = evaluate(config, listener)
        except IncompleteRun as error:
            show(error.run, as_json=as_json, quiet=quiet)
            raise
    if first:
        show(run, as_json=as_json, quiet=quiet)


def _config(options: dict[str, Any]) -> EvalConfig:
    import os

    from robustcli.adapters.load import ModelRequest
    from robustcli.core.errors import UsageError
    from robustcli.evaluation.config import EvalConfig

    backend = options.pop("scan_backend")
    if backend is not None:
        os.environ["ROBUST_SCAN_BACKEND"] = backend
    names = options.pop("models")
    weights, untrained = options.pop("weights"), options.pop("untrained")
    arguments = dict(options.pop("arguments"))
    if len(names) > 1 and (weights is not None or arguments):
        raise UsageError(
            "`--weights` and `--model-arg` go with one `--model`.",
            f"Got {len(names)} models.",
            "Run the command once for each model with the same `--out`: the results join.",
        )
    overrides = ("resize", "crop", "interpolation", "mean", "std")
    given = {name: options.pop(name) for name in overrides}
    preprocessing = {name: value for name, value in given.items() if value is not None}
    requests = tuple(
        ModelRequest(name, weights, arguments, preprocessing, options["label_space"], untrained)
        for name in names
    )
    typed = shlex.join(["robust", *sys.argv[1:]])
    return EvalConfig(models=requests, command=typed, **options)
