"""`robust predict`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import print_document
from robustcli.cli.shared_options import FILE, as_json, offline, quiet
from robustcli.cli.study import StudyCommand, config_option

if TYPE_CHECKING:
    from robustcli.adapters.segmenter import Segmenter


@click.command("predict", cls=StudyCommand)
@click.option("--model", required=True, help="A segmenter, or the folder of a training run.")
@options.weights
@options.model_arguments("arguments")
@click.option(
    "--data",
    multiple=True,
    type=FILE,
    required=True,
    help="A folder of images, or one image; repeatable.",
)
@click.option("--out", type=FILE, required=True, help="Folder for the masks.")
@click.option("--overlays", is_flag=True, help="Also write each image with its mask drawn on it.")
@click.option(
    "--classes",
    "mask_classes",
    metavar="CLASSES",
    help="What the outputs after background are, 1=liver,2=kidney or a file (labels.json), of a "
    "model that does not say so itself.",
)
@options.device
@options.precision
@click.option("--fresh", is_flag=True, help="Compute masks that exist again.")
@config_option
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, **values: Any) -> None:
    """Write a mask for every image of a folder. Masks that exist are kept.

    \b
    robust predict --model runs/train-ulvm_v5-1a2b3c4d --data DIR --out MASKS --overlays
    robust predict --model ulvm_v5 --weights FILE --data DIR --out MASKS
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.cli.progress import ConsoleListener
    from robustcli.evaluation.prediction import predict_masks

    data, out = values["data"], values["out"]
    with ConsoleListener(quiet=quiet, unit="masks") as listener:
        done = predict_masks(
            _segmenter(values), data, out,
            overlays=values["overlays"], fresh=values["fresh"], listener=listener,
        )  # fmt: skip
    if as_json:
        print_document(str(out), [str(mask) for mask in done.masks])
    elif not quiet:
        click.echo(f"{len(done.masks)} masks in `{out}`, {done.existing} of them from before.")
        if done.labels is not None:
            click.echo(f"Their values are the classes of `{done.labels}`, 0 is the background.")


def _segmenter(values: dict[str, Any]) -> Segmenter:
    from robustcli.adapters.catalogue import ModelRequest
    from robustcli.adapters.load import load
    from robustcli.data.mask_classes import names_of
    from robustcli.evaluation.device import choose_device

    device = choose_device(values["device"])
    request = ModelRequest(values["model"], values["weights"], dict(values["arguments"]))
    loaded = load(request, "seg", offline=values["offline"]).to(device, values["precision"])
    classes = names_of(values["mask_classes"])
    if classes:
        loaded.telling_apart(classes)
    loaded.try_out()
    return loaded
