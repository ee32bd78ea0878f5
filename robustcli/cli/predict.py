"""`robust predict`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli.shared_options import FILE, Assignment, as_json, offline, quiet

if TYPE_CHECKING:
    from robustcli.adapters.segmenter import Segmenter


@click.command("predict")
@click.option("--model", required=True, help="A segmenter, or the folder of a training run.")
@click.option("--weights", type=FILE, help="A weights file or the folder of a training run.")
@click.option(
    "--model-arg",
    "arguments",
    multiple=True,
    type=Assignment(),
    help="KEY=VALUE for the model's builder; repeatable.",
)
@click.option(
    "--data",
    multiple=True,
    type=FILE,
    required=True,
    help="A folder of images or one image; repeatable.",
)
@click.option("--out", type=FILE, required=True, help="Folder for the masks.")
@click.option("--overlays", is_flag=True, help="Also write each image with its mask drawn on it.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the forward pass.",
)
@click.option("--fresh", is_flag=True, help="Compute masks again that are there.")
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, **options: Any) -> None:
    """Write a mask for every image of a folder, of any size; masks that are there are kept.

    \b
    robust predict --model runs/train-ulvm_v5-1a2b3c4d --data DIR --out MASKS --overlays
    robust predict --model ulvm_v5 --weights FILE --data DIR --out MASKS
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.cli.progress import ConsoleListener
    from robustcli.evaluation.prediction import predict_masks

    data, out = options["data"], options["out"]
    with ConsoleListener(quiet=quiet, unit="masks") as listener:
        done = predict_masks(
            _segmenter(options), data, out,
            overlays=options["overlays"], fresh=options["fresh"], listener=listener,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps([str(mask) for mask in done.masks], indent=1))
    elif not quiet:
        click.echo(f"{len(done.masks)} masks in `{out}`, {done.kept} of them from before.")


def _segmenter(options: dict[str, Any]) -> Segmenter:
    from robustcli.adapters.load import ModelRequest, load
    from robustcli.evaluation.device import choose_device

    device = choose_device(options["device"])
    request = ModelRequest(options["model"], options["weights"], dict(options["arguments"]))
    loaded = load(request, "seg", offline=options["offline"]).to(device, options["precision"])
    loaded.try_out()
    return loaded
