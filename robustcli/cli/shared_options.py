"""Options and value types that several commands share."""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

# Options and value types that several commands share.


Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)
quiet = click.option("--quiet", is_flag=True, help="Print results only.")
as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on standard output, nothing else."
)
offline = click.option(
    "--offline", is_flag=True, envvar="ROBUST_OFFLINE", help="Never use the network."
)


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """Comma-separated numbers, as a tuple.

    Args:
        kind: `int` or `float`.
        exactly: How many there must be; None for any count.
    """

    name = "numbers"

    def __init__(self, kind: type[int] | type[float], exactly: int | None = None) -> None:
        self.kind, self.exactly = kind, exactly

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers in `value`."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"`{value}` is not numbers with commas between them.", param, ctx)
        if self.exactly is not None and len(numbers) != self.exactly:
            self.fail(
                f"`{value}`: expected {self.exactly} numbers, got {len(numbers)}.", param, ctx
            )
        return numbers


class Devices(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """How many processes, from 1 on, or `all`."""

    name = "number or all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """The number, or `all`."""
        if value == "all":
            return "all"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"`{value}` is neither a number from 1 on nor `all`.", param, ctx)
        return int(value)


class Assignment(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """`KEY=VALUE` as a pair; the value is a Python literal where it reads as one, else text."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, object]:
        """The pair in `value`."""
        if isinstance(value, tuple):
            return value
        key, sign, text = value.partition("=")
        if not sign or not key:
            self.fail(f"`{value}` is not KEY=VALUE.", param, ctx)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            return key, text


foreground = click.option(
    "--foreground", metavar="VALUES",
    help="Masks: the values to be found (128; 1,2; '#ff0000'; nonzero), all else is background "
    "[default: by the masks, where they have two values].",
)  # fmt: skip
ignore = click.option(
    "--ignore", metavar="VALUES",
    help="Masks: values of pixels that count neither in training nor in scores (255).",
)  # fmt: skip


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """One decorator for several options, shown in the help in this order."""

    def decorate(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# Options that the commands which train share.


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
