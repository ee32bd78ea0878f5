"""`robust explain`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import show, show_plan
from robustcli.cli.shared_options import FILE, Numbers, as_json, offline, quiet, together
from robustcli.cli.stored_places import RunPlace
from robustcli.cli.study import StudyCommand, config_option
from robustcli.cli.terminal import ConsoleListener
from robustcli.core.ranks import ranks
from robustcli.explanation.methods import METHODS

if TYPE_CHECKING:
    from robustcli.explanation.config import ExplainConfig


_what = together(
    click.argument("run", required=False, type=RunPlace("read")),
    click.option("--model", "model", shell_complete=options.completing("models"),
                 help="A model, as in `robust eval`; with RUN, one of the run's models."),
    click.option("--transform", "transforms", multiple=True,
                 shell_complete=options.completing("transforms"),
                 help="A transform's name, a glob, or a preset; repeatable. [default: the "
                     "transform of RUN with the lowest score, else none]"),
    click.option("--severity", "severities", type=Numbers(int),
                 help="Severities 1 to 5, such as 1,3,5. [default: strength drawn from the full "
                 "range]"),
    click.option("--plugin", "plugins", multiple=True, type=FILE,
                 help="A Python file that defines transforms; repeatable."),
    click.option("--apply-at", type=click.Choice(["original", "crop"]), default="original",
                 show_default=True,
                 help="Apply transforms to the decoded image, or after the model's resize and "
                     "crop."),
    click.option("--method", "methods", multiple=True,
                 help=f"A method or a glob, '*' for all; repeatable: {', '.join(METHODS)} "
                     "(docs/explain.md). [default: all methods that fit the model]"),
    click.option("--layer", help="The module whose output Grad-CAM uses, by its name in the "
                 "network. [default: the last feature map before pooling]"),
    click.option("--boxes", type=FILE,
                 help="A table (CSV, Parquet) with image_id, left, top, right, bottom in pixels of "
                     "the image, to measure whether maps point at the object."),
    click.option("--sanity", is_flag=True,
                 help="Sanity check: repeat each map with shuffled weights, which must change it."),
)  # fmt: skip
_photos = together(
    click.option("--image", "images", multiple=True,
                 help="Explain the photo with this id (its path inside the data); repeatable."),
    click.option("--worst", type=click.IntRange(1),
                 help="Explain this number of photos with the largest loss under the transforms, "
                     "from the predictions of RUN or a new evaluation. [default: 8]"),
    click.option("--class", "class_name",
                 help="Explain photos of this true class; for a segmenter with several classes, "
                     "the pixels of this class (name or number)."),
    options.limit,
)  # fmt: skip
_data = together(
    click.option("--data", help="A folder, a tar, a manifest (CSV, Parquet) or the name of a data "
                 "set (`robust list datasets`)."),
    click.option("--label-space",
                 help="The classes: imagenet-1k, cifar10, or a file with one class per line."),
    click.option("--labels", type=FILE, help="A file with the class of each image, for a folder "
                 "without subfolders."),
    options.split,
    options.foreground,
    options.ignore,
    options.classes,
)  # fmt: skip
_model = together(
    options.weights,
    options.model_arguments("arguments"),
    click.option("--untrained", is_flag=True,
                 help="Explain a network without trained weights; all outputs are marked."),
    options.preprocessing,
    options.run_code,
)  # fmt: skip
_run = together(
    click.option("--out", type=RunPlace(),
                 help="Folder of the run, or s3:// or gs:// (docs/remote.md). "
                 "[default: runs/explain-MODEL-HASH]"),
    options.seed,
    options.device,
    options.devices,
    click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32",
                 show_default=True, help="Number format of the evaluation that finds the worst "
                 "photos; maps are always computed in fp32."),
    options.scan_backend,
    click.option("--batch-size", type=click.IntRange(1),
                 help="Images per forward pass, which limits the memory. [default: chosen by "
                     "device]"),
    options.workers,
    options.fresh,
    options.dry_run,
)  # fmt: skip


@click.command("explain", cls=StudyCommand)
@_what
@_photos
@_data
@_model
@_run
@config_option
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Show what a model looks at, clean and transformed, for the true and the predicted class.

    RUN is the folder of an evaluation, whose model, images and predictions are used. The same
    command again continues an interrupted run.

    \b
    robust explain --model vmamba-pico --transform perspective
    robust explain runs/eval-vmamba-pico-1a2b3c4d --worst 8 --method '*' --sanity
    robust explain --model vmamba-b --data DIR --transform perspective --class guacamole
    """  # noqa: D301  click reads the backspace: keep these lines apart
    config, first = _config(values), ranks().first
    with ConsoleListener(quiet=quiet or not first, unit="maps") as listener:
        if dry_run and not first:
            return
        if dry_run:
            from robustcli.explanation.explaining import explain_forecast

            show_plan(explain_forecast(config, listener), as_json=as_json)
            return
        from robustcli.explanation.explaining import explain

        run = explain(config, listener)
    if first:
        show(run, as_json=as_json, quiet=quiet)


def _config(values: dict[str, Any]) -> ExplainConfig:
    from robustcli.explanation.config import MODEL_OF_RUN, ExplainConfig, refuse_with_run

    options.set_scan_backend(values)
    source: Path | None = values.pop("run")
    name: str | None = values.pop("model")
    request = options.model_request(name or "", values)
    moved: tuple[Path, ...] = ()
    if source is not None:
        recorded = {
            "--model-arg": request.arguments, "--untrained": request.untrained,
            **{f"--{key}": value for key, value in request.preprocessing.items()},
        }  # fmt: skip
        refuse_with_run(source, recorded, MODEL_OF_RUN)
        moved = () if request.weights is None else (request.weights,)
        request = replace(request, weights=None)
    return ExplainConfig(
        () if name is None else (request,), values.pop("transforms"), source=source, moved=moved,
        command=options.typed_command(), **values,
    )  # fmt: skip
