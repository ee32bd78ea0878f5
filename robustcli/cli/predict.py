"""`robust predict`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import print_document, show_plan
from robustcli.cli.shared_options import FILE, as_json, offline, quiet
from robustcli.cli.stored_places import RunPlace
from robustcli.cli.study import StudyCommand, config_option
from robustcli.cli.terminal import ConsoleListener, say_safely
from robustcli.core.errors import RunError
from robustcli.core.names import counted
from robustcli.core.ranks import ranks

if TYPE_CHECKING:
    from robustcli.evaluation.mask_files import PredictedMasks
    from robustcli.evaluation.photo_labels import Labelling
    from robustcli.evaluation.prediction import PredictConfig, PredictedLabels

_SHOWN = 50  # rows of the table on the terminal


@click.command("predict", cls=StudyCommand)
@click.argument("photos", nargs=-1, type=FILE)
@click.option("--model", required=True, shell_complete=options.completing("models"),
              help="A classifier or a segmenter: a name, the folder of a training run, or your own "
                  "network (docs/own-models.md).")  # fmt: skip
@options.weights
@options.model_arguments("arguments")
@options.untrained
@click.option(
    "--data",
    multiple=True,
    type=FILE,
    help="A folder or an archive of images, an image, or the name of a data set; repeatable. "
    "Equivalent to the arguments.",
)
@click.option("--out", type=RunPlace(of_run=False),
              help="Folder for the masks of a segmenter, or for the CSV of a classifier. [default "
                  "for a classifier: runs/predict-MODEL-HASH]")  # fmt: skip
@click.option("--top", type=click.IntRange(1), help="Number of classes per photo. [default: 5]")
@click.option("--csv", is_flag=True, help="Write the labels to OUT/labels.csv.")
@click.option("--overlays", is_flag=True, help="Also write each image with its mask as an overlay.")
@options.label_space
@options.preprocessing
@options.limit
@options.seed
@click.option("--batch-size", type=click.IntRange(1),
              help="Images per forward pass. [default: chosen by device, and by the size of the "
                  "images of a segmenter]")  # fmt: skip
@click.option(
    "--classes",
    "mask_classes",
    metavar="CLASSES",
    help="Names of the output classes after background, such as 1=liver,2=kidney, or a file "
    "(labels.json), for a model without class names.",
)
@options.device
@options.devices
@options.precision
@click.option(
    "--fresh", is_flag=True, help="Compute existing masks again, or replace an existing CSV."
)
@options.dry_run
@config_option
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, dry_run: bool, **values: Any) -> None:
    """Label photos with a classifier, or write a mask for every image with a segmenter.

    \b
    robust predict --model vmamba-pico photos/ --top 5 --csv
    robust predict --model runs/train-ulvm_v5-1a2b3c4d --data DIR --out MASKS --overlays
    robust predict --model ulvm_v5 --weights FILE --data DIR --out MASKS
    """  # noqa: D301  click reads the backspace: keep these lines apart
    config, first = _config(values), ranks().first
    with ConsoleListener(quiet=quiet or not first, unit="photos") as listener:
        if dry_run and not first:
            return
        from robustcli.evaluation.prediction import PredictedLabels, predict, predict_forecast

        if dry_run:
            show_plan(predict_forecast(config, listener), as_json=as_json)
            return
        result = predict(config, listener)
    if not first:
        return
    if isinstance(result, PredictedLabels):
        _show_labels(result, config, as_json=as_json, quiet=quiet)
    else:
        _show_masks(result, config, as_json=as_json, quiet=quiet)


def _config(values: dict[str, Any]) -> PredictConfig:
    from robustcli.evaluation.prediction import PredictConfig

    request = options.model_request(values.pop("model"), values)
    values.pop("label_space")  # part of the request
    data = (*values.pop("photos"), *values.pop("data"))
    return PredictConfig(replace(request, number_classes=True), data, **values)


def _show_masks(
    result: PredictedMasks, config: PredictConfig, *, as_json: bool, quiet: bool
) -> None:
    if as_json:
        print_document(str(config.out), [str(mask) for mask in result.masks])
    elif not quiet:
        say_safely(
            f"{counted(len(result.masks), 'mask')} in `{config.out}`, {result.existing} of which "
            "already existed."
        )
        if result.labels is not None:
            say_safely(f"Their values are the classes of `{result.labels}`; 0 is the background.")


def _show_labels(
    result: PredictedLabels, config: PredictConfig, *, as_json: bool, quiet: bool
) -> None:
    """Prints the labels.

    Raises:
        RunError: Some photos could not be read.
    """
    labelling = result.labelling
    if as_json:
        name = config.data[0] if result.csv is None else result.csv.parent
        print_document(str(name), result.document)
    else:
        say_safely(_table(labelling))
        if result.csv is not None and not quiet:
            say_safely(f"\n{counted(len(labelling.photos), 'photo')} in `{result.csv}`.")
    _check_readable(result)


def _table(labelling: Labelling) -> str:
    """Table of the labels of the first photos."""
    from tabulate import tabulate

    ranks = range(1, max((len(p.ranking.classes) for p in labelling.photos), default=0) + 1)
    rows = []
    for photo in labelling.photos[:_SHOWN]:
        best, *runners_up = labelling.labels(photo)
        cells = [_printable(f"{label['name']} {label['probability']:.3f}") for label in runners_up]
        first = [_printable(photo.image_id), _printable(best["name"]), f"{best['probability']:.3f}"]
        rows.append([*first, *cells])
    headers = ["image", "class", "probability", *(f"rank {k}" for k in ranks if k > 1)]
    aligned = ("left", "left", "right", *("left" for k in ranks if k > 1))
    table = tabulate(rows, headers, disable_numparse=True, colalign=aligned) if rows else ""
    remaining = len(labelling.photos) - _SHOWN
    if remaining > 0:
        table += f"\n... and {remaining:,} more photos: `--csv` and `--json` write all of them."
    return table


def _printable(text: str) -> str:
    """`text` with control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _check_readable(result: PredictedLabels) -> None:
    """Raises RunError if photos could not be read."""
    from robustcli.data.dataset import reasons_in_lines
    from robustcli.evaluation.photo_labels import SETTINGS_FILE

    unreadable = dict(result.labelling.unreadable)
    if not unreadable:
        return
    hint = "`--json` shows all"
    if result.csv is not None:
        hint = f"all are in `{result.csv.with_name(SETTINGS_FILE)}`"
    labelled = len(result.labelling.photos)
    total, others = len(unreadable) + labelled, "; all others are labelled" if labelled else ""
    raise RunError(
        f"{len(unreadable)} of {total} photos cannot be read{others}.",
        reasons_in_lines(unreadable, f"; {hint}"),
        "Repair or remove them, and repeat the command.",
    )
