"""Options that the commands which train share."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

import click

from robustcli.cli.options import FILE, Assignment, Devices, together

model_arguments = click.option(
    "--model-arg", "model_args", multiple=True, type=Assignment(),
    help="KEY=VALUE for the model's builder; repeatable.",
)  # fmt: skip
limit = click.option("--limit", type=click.IntRange(1), help="Take so many images in all.")
protocol = click.option(
    "--protocol", type=click.Choice(["patient", "paper"]), default="patient", show_default=True,
    help="Who is held out and how it is scored.",
)  # fmt: skip
recipe = together(
    click.option("--recipe", help="A recipe by name (`robust list recipes`)."),
    click.option("--quick", is_flag=True, help="The shortest recipe that shows something."),
    click.option("--epochs", type=click.IntRange(1), help="Passes over the training images."),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Highest learning rate."),
    click.option("--batch-size", type=click.IntRange(1), help="Images a step."),
    click.option("--accumulate", type=click.IntRange(1), help="Steps whose gradients are added."),
    click.option("--loss", help="A loss of docs/train-seg.md or train-cls.md."),
    click.option("--aug", help="An augmentation of the same."),
    click.option("--window", type=click.IntRange(1), help="Side of what the network sees, pixels."),
    click.option("--clip", type=click.FloatRange(0, min_open=True), help="Gradient norm at most."),
    click.option("--patience", type=click.IntRange(1),
                 help="Stop after so many epochs without a better validation score."),
)  # fmt: skip
run = together(
    click.option("--out", type=FILE, help="Folder of the run [default: runs/COMMAND-MODEL-HASH]."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, mps."),
    click.option("--devices", type=Devices(), default=1, show_default=True,
                 help="Processes that share a step (DDP); all: one per GPU."),
    click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32",
                 show_default=True, help="Of the forward pass."),
    click.option("--scan-backend", envvar="ROBUST_SCAN_BACKEND",
                 help="Force one of the scan's backends (`robust doctor` lists them)."),
    click.option("--workers", type=click.IntRange(0), help="Loader processes; 0 uses this one."),
    click.option("--fresh", is_flag=True, help="Discard what the run's folder holds."),
    click.option("--dry-run", is_flag=True, help="Say what would be done, and stop."),
)  # fmt: skip


def settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a training as fields of its configuration; the scan's backend is forced."""
    fields = dict(options)
    backend = fields.pop("scan_backend")
    if backend is not None:
        os.environ["ROBUST_SCAN_BACKEND"] = backend
    fields["model_args"] = dict(fields["model_args"])
    fields["command"] = shlex.join(["robust", *sys.argv[1:]])
    return fields
