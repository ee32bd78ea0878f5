"""`robust export`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.results import print_document
from robustcli.cli.shared_options import FILE, as_json, offline, quiet
from robustcli.cli.study import StudyCommand, config_option
from robustcli.cli.terminal import ConsoleListener, say_safely

if TYPE_CHECKING:
    from robustcli.evaluation.exporting import Exported


@click.command("export", cls=StudyCommand)
@click.argument("model", metavar="RUN_OR_NAME", shell_complete=options.completing("models"))
@click.option(
    "--format",
    "formats",
    type=click.Choice(["onnx", "torchscript"]),
    multiple=True,
    default=("onnx",),
    show_default=True,
    help="Format of the file; repeatable.",
)
@click.option(
    "--out",
    type=FILE,
    help="The file (.onnx, .pt), or a folder for it. [default: runs/export-MODEL-HASH]",
)
@click.option("--image-size", type=click.IntRange(1),
              help="Side of the input in pixels. [default: the model's own]")  # fmt: skip
@click.option("--dynamic-batch/--fixed-batch", default=True, show_default=True,
              help="Whether the exported network takes any number of images per call, or exactly "
                  "one.")  # fmt: skip
@click.option("--opset", type=click.IntRange(1), default=18, show_default=True,
              help="ONNX operator set version.")  # fmt: skip
@options.weights
@options.model_arguments("arguments")
@options.untrained
@options.label_space
@options.preprocessing
@click.option("--fresh", is_flag=True, help="Replace existing files.")
@config_option
@offline
@as_json
@quiet
def command(as_json: bool, quiet: bool, **values: Any) -> None:
    """Export a network to a file that can be used without this program and its kernels.

    The file is only created if its outputs match those of torch. It is accompanied by a
    description (FILE.json) with preprocessing, classes, differences from torch and speed.

    \b
    robust export vmamba-pico
    robust export runs/train-ulvm_v5-1a2b3c4d --format onnx --format torchscript --out EXPORTS
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.evaluation.exporting import ExportConfig, export

    request = options.model_request(values.pop("model"), values)
    del values["label_space"]
    config = ExportConfig(request, command=options.typed_command(), **values)
    with ConsoleListener(quiet=quiet) as listener:
        files = export(config, listener)
    if as_json:
        documents = [{"path": str(f.path), **f.sidecar.model_dump(mode="json")} for f in files]
        print_document(str(files[0].path), documents)
    else:
        say_safely(_tables(files))


def _tables(files: Sequence[Exported]) -> str:
    from tabulate import tabulate

    lines = []
    for file in files:
        sidecar = file.sidecar
        note = ", which already existed" if file.existed else ""
        opset = f", operator set {sidecar.opset}" if sidecar.opset else ""
        lines += [f"`{file.path}` ({sidecar.format}{opset}){note}, described in `{file.path}.json`"]
    parity = [
        [f.sidecar.format, row.inputs, row.images, f"{row.difference:.1e}",
         f"{row.allowed:.1e}", f"{row.largest:.3g}",
         f"{row.agreeing:,} of {row.decided:,}"]
        for f in files for row in f.sidecar.parity
    ]  # fmt: skip
    headers = ["file", "inputs", "images", "difference", "allowed", "largest output", "decisions"]
    lines += [
        "",
        "Largest difference from torch:",
        tabulate(parity, headers, disable_numparse=True),
    ]
    speed = dict.fromkeys(
        (row.engine, row.batch, f"{row.milliseconds:.2f}", row.passes)
        for f in files for row in f.sidecar.speed
    )  # fmt: skip
    threads = files[0].sidecar.threads
    lines += [
        "",
        f"Median time of a forward pass on the CPU, {threads} thread{'s' if threads > 1 else ''}, "
        "engines measured alternately:",
        tabulate(list(speed), ["engine", "batch", "ms", "passes"], disable_numparse=True,
                 colalign=("left", "right", "right", "right")),
    ]  # fmt: skip
    return "\n".join(lines)
