"""`robust predict`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import print_document
from robustcli.cli.shared_options import FILE, as_json, offline, quiet
from robustcli.cli.stored_places import RunPlace
from robustcli.cli.study import StudyCommand, config_option
from robustcli.cli.terminal import ConsoleListener, say_safely
from robustcli.core.errors import RunError, UsageError
from robustcli.core.io import parse_json
from robustcli.core.listener import Listener
from robustcli.core.names import counted

if TYPE_CHECKING:
    from robustcli.adapters.catalogue import ModelRequest
    from robustcli.adapters.classifier import Classifier
    from robustcli.adapters.segmenter import Segmenter
    from robustcli.evaluation.prediction import Labelling

CSV_FILE, SETTINGS_FILE = "labels.csv", "labels.json"
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
    help="A folder of images, or one image; repeatable. Equivalent to the arguments.",
)
@click.option("--out", type=RunPlace(of_run=False),
              help="Folder for the masks of a segmenter, or for the CSV of a classifier. [default "
                  "for a classifier: runs/predict-MODEL-HASH]")  # fmt: skip
@click.option("--top", type=click.IntRange(1), help="Number of classes per photo. [default: 5]")
@click.option("--csv", "as_csv", is_flag=True, help=f"Write the labels to OUT/{CSV_FILE}.")
@click.option("--overlays", is_flag=True, help="Also write each image with its mask as an overlay.")
@options.label_space
@options.preprocessing
@options.limit
@click.option("--batch-size", type=click.IntRange(1),
              help="Photos per forward pass of a classifier. "
                   "[default: chosen by device]")  # fmt: skip
@click.option(
    "--classes",
    "mask_classes",
    metavar="CLASSES",
    help="Names of the output classes after background, such as 1=liver,2=kidney, or a file "
    "(labels.json), for a model without class names.",
)
@options.device
@options.precision
@click.option(
    "--fresh", is_flag=True, help="Compute existing masks again, or replace an existing CSV."
)
@config_option
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, **values: Any) -> None:
    """Label photos with a classifier, or write a mask for every image with a segmenter.

    \b
    robust predict --model vmamba-pico photos/ --top 5 --csv
    robust predict --model runs/train-ulvm_v5-1a2b3c4d --data DIR --out MASKS --overlays
    robust predict --model ulvm_v5 --weights FILE --data DIR --out MASKS
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.adapters.load import entry_of

    places = (*values["photos"], *values["data"])
    if not places:
        raise UsageError(
            "No images were given.",
            "",
            "Pass folders or files: `robust predict --model M photos/`.",
        )
    request = replace(options.model_request(values["model"], values), number_classes=True)
    is_classifier = entry_of(request, offline=values["offline"]).task == "cls"
    _check_options(values, is_classifier=is_classifier)
    unit = "photos" if is_classifier else "masks"
    with ConsoleListener(quiet=quiet, unit=unit) as listener:
        if not is_classifier:
            _write_masks(request, places, values, listener, as_json=as_json, quiet=quiet)
            return
        model, labelling = _label(request, places, values, listener)
        folder = _csv_folder(model, places, labelling, values)
        if folder is not None:
            _write_csv(folder, model, labelling, fresh=values["fresh"])
    if as_json:
        print_document(str(folder or places[0]), _document(model, labelling))
    else:
        say_safely(_table(labelling))
        if folder is not None and not quiet:
            click.echo(f"\n{counted(len(labelling.photos), 'photo')} in `{folder / CSV_FILE}`.")
    _check_readable(labelling, folder)


def _check_options(values: dict[str, Any], *, is_classifier: bool) -> None:
    """Raises UsageError if options of the other task are used."""
    if is_classifier:
        foreign, what = {"--overlays": values["overlays"]}, "a classifier"
    else:
        numbers = ("top", "limit", "batch_size")
        foreign = {f"--{n.replace('_', '-')}": values[n] is not None for n in numbers}
        foreign["--csv"] = values["as_csv"]
        what = "a segmenter"
    for flag, is_set in foreign.items():
        if is_set:
            raise UsageError(
                f"`{flag}` cannot be used with `{values['model']}`.", f"It is {what}.", "Omit it."
            )
    if not is_classifier and values["out"] is None:
        raise UsageError(
            "`--out` is missing.",
            f"`{values['model']}` is a segmenter, which writes a mask for every image.",
            "Specify the folder for the masks with `--out`.",
        )


# Masks.


def _write_masks(
    request: ModelRequest, places: Sequence[Path], values: dict[str, Any], listener: Listener, *,
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    from robustcli.evaluation.prediction import predict_masks

    out = values["out"]
    result = predict_masks(
        _segmenter(request, values, listener), places, out,
        overlays=values["overlays"], fresh=values["fresh"], listener=listener,
    )  # fmt: skip
    if as_json:
        print_document(str(out), [str(mask) for mask in result.masks])
    elif not quiet:
        click.echo(
            f"{counted(len(result.masks), 'mask')} in `{out}`, {result.existing} of which already "
            "existed."
        )
        if result.labels is not None:
            click.echo(f"Their values are the classes of `{result.labels}`; 0 is the background.")


def _segmenter(request: ModelRequest, values: dict[str, Any], listener: Listener) -> Segmenter:
    from robustcli.adapters.load import load
    from robustcli.data.mask_classes import network_class_names
    from robustcli.evaluation.device import choose_device, unused_gpu

    device = choose_device(values["device"])
    if note := unused_gpu(values["device"], device):
        listener.say(note)
    loaded = load(request, "seg", offline=values["offline"]).to(device, values["precision"])
    classes = network_class_names(values["mask_classes"])
    if classes:
        loaded.for_classes(classes)
    loaded.try_out()
    _announce(loaded, listener, "masks")
    return loaded


def _announce(model: Classifier | Segmenter, listener: Listener, results: str) -> None:
    for note in model.notes:
        listener.say(note)
    if model.facts.untrained:
        listener.say(f"`{model.facts.name}` is not trained: its {results} are meaningless.")


# Labels.


def _label(
    request: ModelRequest, places: Sequence[Path], values: dict[str, Any], listener: Listener
) -> tuple[Classifier, Labelling]:
    from robustcli.adapters.load import load
    from robustcli.evaluation.device import choose_device, unused_gpu
    from robustcli.evaluation.prediction import classes_of, label_photos, list_photos

    photos = list_photos(places, listener.say)[: values["limit"]]
    device = choose_device(values["device"])
    if note := unused_gpu(values["device"], device):
        listener.say(note)
    model = load(request, "cls", offline=values["offline"]).to(device, values["precision"])
    model.try_out()
    _announce(model, listener, "labels")
    space = classes_of(model, request, listener.say)
    labelling = label_photos(
        model, space, photos, top=values["top"] or 5, batch_size=values["batch_size"],
        listener=listener,
    )  # fmt: skip
    return model, labelling


def _settings(model: Classifier, labelling: Labelling) -> dict[str, Any]:
    """Settings that determine the labels of given photos."""
    facts = model.facts
    settings = {
        "model": facts.name,
        "arguments": facts.arguments,
        "weights": facts.weights,
        "weights_sha256": facts.weights_sha256,
        "untrained": facts.untrained,
        "precision": model.precision,
        "preprocessing": asdict(model.preprocessing),
        "top": labelling.top,
        "label_space": labelling.space.name,
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return plain


def _document(model: Classifier, labelling: Labelling) -> dict[str, Any]:
    from robustcli.core.machine import versions

    return {
        **_settings(model, labelling), **labelling.document(), "device": str(model.device),
        "versions": versions(),
    }  # fmt: skip


def _csv_folder(
    model: Classifier, places: Sequence[Path], labelling: Labelling, values: dict[str, Any]
) -> Path | None:
    """Folder of the CSV file; None if it was not requested."""
    from robustcli.core.names import file_name

    out: Path | None = values["out"]
    if out is not None or not values["as_csv"]:
        return out
    settings = [_settings(model, labelling), list(map(str, places)), values["limit"]]
    short = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return Path("runs") / f"predict-{file_name(model.facts.name)}-{short}"


def _write_csv(folder: Path, model: Classifier, labelling: Labelling, *, fresh: bool) -> None:
    """Writes the CSV file and a file with its settings.

    Raises:
        UsageError: A CSV file with other settings exists, and `fresh` is not set.
    """
    import pandas as pd

    from robustcli.core.io import write_text
    from robustcli.reports.pages import to_csv

    path, settings = folder / CSV_FILE, folder / SETTINGS_FILE
    document = _document(model, labelling)
    if path.exists() and not fresh:
        _check_same(path, settings, _settings(model, labelling), document)
    write_text(settings, json.dumps(document, indent=1) + "\n")
    rows = labelling.rows()
    columns = None if rows else ["image", "class", "name", "probability"]
    write_text(path, to_csv(pd.DataFrame(rows, columns=columns)))


def _check_same(
    path: Path, settings_file: Path, settings: dict[str, Any], document: dict[str, Any]
) -> None:
    """Raises UsageError if the file has other settings, or labels that `document` lacks."""
    try:
        before = parse_json(settings_file.read_text(encoding="utf-8"))
        differences = [key for key, value in settings.items() if before.get(key) != value]
        lost = _images_in(before) - _images_in(document)
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        raise UsageError(
            f"`{path}` already exists.",
            f"Its folder has no `{SETTINGS_FILE}`, so that it may not be an output of this "
            "command.",
            "Choose another folder with `--out`, or replace it with `--fresh`.",
        ) from None
    if differences:
        raise UsageError(
            f"`{path}` was made with other settings ({', '.join(differences)}).",
            "Labels with different settings are only replaced on request.",
            "Choose another folder with `--out`, or replace it with `--fresh`.",
        )
    if lost:
        raise UsageError(
            f"`{path}` contains the labels of {len(lost)} other photos, such as `{min(lost)}`.",
            "They would be lost, because this command does not label these photos.",
            "Choose another folder with `--out`, or replace it with `--fresh`.",
        )


def _images_in(document: dict[str, Any]) -> set[str]:
    """The ids of all photos in `labels.json`, also of those that cannot be read."""
    return {photo["image"] for photo in (*document["predictions"], *document["unreadable"])}


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


def _check_readable(labelling: Labelling, folder: Path | None) -> None:
    """Raises RunError if photos could not be read; `folder` has the files with all of them."""
    from robustcli.data.dataset import reasons_in_lines

    unreadable = dict(labelling.unreadable)
    if not unreadable:
        return
    hint = "`--json` shows all" if folder is None else f"all are in `{folder / SETTINGS_FILE}`"
    total = len(unreadable) + len(labelling.photos)
    raise RunError(
        f"{len(unreadable)} of {total} photos cannot be read; all others are labelled.",
        reasons_in_lines(unreadable, f"; {hint}"),
        "Repair or remove them, and repeat the command.",
    )
