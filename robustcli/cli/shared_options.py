"""Options and value types that several commands share."""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem

from robustcli.cli.stored_places import LocalPath, RunPlace

if TYPE_CHECKING:
    from robustcli.adapters.catalogue import ModelRequest

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])

FILE = LocalPath()
quiet = click.option("--quiet", is_flag=True, help="Print only the results.")
as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON document on standard output and nothing else.",
)
offline = click.option(
    "--offline", is_flag=True, envvar="ROBUST_OFFLINE", help="Never use the network."
)
run_code = click.option(
    "--run-code", is_flag=True,
    help="Execute the Python and TorchScript code that RUN names; only if you trust RUN.",
)  # fmt: skip


def completing(kind: Literal["models", "transforms", "recipes"]) -> Callable[..., Any]:
    """Shell completion of a value: names of `robust list KIND`, else files.

    For `robust train seg` and `robust train cls`, only models and recipes of that task.
    """

    def complete(
        ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = _names_of(kind, task=ctx.info_name)
        fitting = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return fitting or [CompletionItem(incomplete, type="file")]

    return complete


def _names_of(kind: Literal["models", "transforms", "recipes"], task: str | None) -> list[str]:
    """The names of KIND; only those of `task` if it is `seg` or `cls`."""
    if kind == "transforms":
        from robustcli.transforms.registry import transforms

        return [transform.name for transform in transforms()]
    if kind == "recipes":
        from robustcli.training.recipes import CLASS_RECIPES, NAMED_RECIPES, OWN_RECIPE

        segmenters, classifiers = [*NAMED_RECIPES, OWN_RECIPE], list(CLASS_RECIPES)
        return {"seg": segmenters, "cls": classifiers}.get(task or "", segmenters + classifiers)
    from robustcli.adapters.catalogue import CATALOGUE

    of_task = [entry.name for entry in CATALOGUE.values() if entry.task == task]
    return of_task or list(CATALOGUE)


class Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """Comma-separated numbers, as a tuple.

    Args:
        kind: `int` or `float`.
        exactly: Required number of values; None for any number.
    """

    name = "numbers"

    def __init__(self, kind: type[int] | type[float], exactly: int | None = None) -> None:
        self.kind, self.exactly = kind, exactly

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Parses the numbers in `value`."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self.kind(part) for part in value.split(","))
        except ValueError:
            self.fail(f"`{value}` is not a comma-separated list of numbers.", param, ctx)
        if self.exactly is not None and len(numbers) != self.exactly:
            self.fail(
                f"`{value}`: expected {self.exactly} numbers, got {len(numbers)}.", param, ctx
            )
        return numbers


class Devices(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Number of processes, at least 1, or `all`."""

    name = "number or all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        """Parses the number, or `all`."""
        if value == "all":
            return "all"
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"`{value}` is neither a number of at least 1 nor `all`.", param, ctx)
        return int(value)


class Assignment(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """`KEY=VALUE` as a pair; the value is parsed as a Python literal if possible, else text."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, object]:
        """Parses the pair in `value`."""
        if isinstance(value, tuple):
            return value
        key, sign, text = value.partition("=")
        if not sign or not key:
            self.fail(f"`{value}` is not KEY=VALUE.", param, ctx)
        try:
            return key, ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            return key, text


class Assignments(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """`KEY=VALUE,KEY=VALUE` as a dictionary of texts; values may contain commas: `a=1,2,b=3`."""

    name = "key=value,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, str]:
        """Parses the dictionary in `value`."""
        if isinstance(value, dict):
            return value
        pairs: dict[str, str] = {}
        key = ""
        for part in value.split(","):
            name, sign, text = part.partition("=")
            if sign:
                key = name.strip()
                if key in pairs:
                    self.fail(f"`{value}` contains `{key}` twice.", param, ctx)
                pairs[key] = text.strip()
            elif key:
                pairs[key] += f",{part}"
            if not key:
                self.fail(f"`{part}` is not KEY=VALUE.", param, ctx)
        return pairs


def together(
    *options: Callable[[CommandFunction], CommandFunction],
) -> Callable[[CommandFunction], CommandFunction]:
    """Combines several options into one decorator; the help shows them in this order."""

    def decorate(function: CommandFunction) -> CommandFunction:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


# Each option is defined once, so that it has the same meaning in all commands.
limit = click.option(
    "--limit", type=click.IntRange(1), help="Use only a random subset of this many images."
)
foreground = click.option(
    "--foreground", metavar="VALUES",
    help="Mask values of the foreground: 128, or 1,2, or '#ff0000', or nonzero; all others are "
        "background. [default: determined from the masks if they contain two values]",
)  # fmt: skip
ignore = click.option(
    "--ignore", metavar="VALUES",
    help="Mask values of pixels to exclude from training and scores, such as 255.",
)  # fmt: skip
classes = click.option(
    "--classes", "mask_classes", metavar="CLASSES",
    help="Classes of masks: 1=liver,2=kidney, or a file (labels.json), or all, to read every value "
        "as a class. [default: labels.json or dataset.json in the data set, else two values]",
)  # fmt: skip
weights = click.option(
    "--weights", type=FILE, help="A weights file, or the folder of a training run."
)
untrained = click.option(
    "--untrained", is_flag=True,
    help="Use a network without trained weights; all outputs are marked.",
)  # fmt: skip
label_space = click.option(
    "--label-space",
    help="The classes: imagenet-1k, cifar10, or a file with one class per line.",
)
seed = click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of all random numbers."
)
device = click.option(
    "--device", default="auto", show_default=True, help="Device: auto, cpu, cuda or mps."
)
devices = click.option(
    "--devices", type=Devices(),
    help="Number of processes that share the work, one per device, or all. [default: 1]",
)  # fmt: skip
precision = click.option(
    "--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True,
    help="Number format of the forward pass.",
)  # fmt: skip
scan_backend = click.option(
    "--scan-backend", envvar="ROBUST_SCAN_BACKEND",
    help="Backend of the selective scan (`robust doctor` lists them). [default: the fastest "
        "available]",
)  # fmt: skip
workers = click.option(
    "--workers", type=click.IntRange(0),
    help="Processes that load images; 0 loads in the main process. [default: chosen by the number "
        "of cores]",
)  # fmt: skip
fresh = click.option(
    "--fresh", is_flag=True, help="Delete the contents of the run's folder and start again."
)
dry_run = click.option("--dry-run", is_flag=True, help="Print the plan without running it.")

split = click.option(
    "--split", type=click.Choice(["auto", "all", "train", "val", "test"]), default="auto",
    show_default=True, help="Split of the data; auto excludes images that a model was trained on.",
)  # fmt: skip
_PREPROCESSING = ("resize", "crop", "interpolation", "mean", "std")
preprocessing = together(
    click.option("--resize", type=click.IntRange(1),
                 help="Resize the shorter side to this many pixels."),
    click.option("--crop", type=click.IntRange(1), help="Side of the centre crop, in pixels."),
    click.option("--interpolation",
                 type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos"]),
                 help="Interpolation of the resize."),
    click.option("--mean", type=Numbers(float),
                 help="Mean per channel for normalisation, of pixel values 0 to 1 or 0 to 255."),
    click.option("--std", type=Numbers(float),
                 help="Standard deviation per channel for normalisation, of pixel values 0 to 1 or "
                     "0 to 255."),
)  # fmt: skip
gates = together(
    click.option("--fail-under", multiple=True, metavar="[MODEL:]TARGET=NUMBER",
                 help="Exit with code 4 if top-1 in percent (dice 0 to 1 for segmenters) is lower; "
                     "a target is a transform, a glob, `clean` or `mean`; repeatable."),
    click.option("--fail-drop", multiple=True, metavar="[[MODEL:]TARGET=]NUMBER",
                 help="Exit with code 4 if the drop from clean images is larger, in percentage "
                     "points (dice for segmenters); repeatable."),
)  # fmt: skip


def model_arguments(name: str) -> Callable[[CommandFunction], CommandFunction]:
    """The option `--model-arg`, whose values are passed as the parameter `name`."""
    return click.option(
        "--model-arg", name, multiple=True, type=Assignment(),
        help="An option of the network's configuration, such as num_classes=4; repeatable.",
    )  # fmt: skip


# Options of the commands that train.
ablate = click.option(
    "--ablate", type=click.Choice(["scan"]),
    help="Train the control of a Mamba network: the same network without its state-space scan "
        "(docs/controls.md).",
)  # fmt: skip
protocol = click.option(
    "--protocol", type=click.Choice(["patient", "paper"]), default="patient", show_default=True,
    help="How test images are held out and scored: by patient, or as in the paper.",
)  # fmt: skip
recipe = together(
    click.option("--recipe", shell_complete=completing("recipes"),
                 help="Name of a recipe (`robust list recipes`)."),
    click.option("--quick", is_flag=True, help="The shortest recipe with a meaningful result."),
    click.option("--epochs", type=click.IntRange(1),
                 help="Number of passes over the training images."),
    click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate."),
    click.option("--batch-size", type=click.IntRange(1), help="Images per training step."),
    click.option("--accumulate", type=click.IntRange(1),
                 help="Accumulate gradients over this many steps."),
    click.option("--loss", help="Name of a loss (docs/train-seg.md, docs/train-cls.md)."),
    click.option("--aug", help="Name of an augmentation (docs/train-seg.md, docs/train-cls.md)."),
    click.option("--window", type=click.IntRange(1),
                 help="Side of the square network input, in pixels."),
    click.option("--clip", type=click.FloatRange(0, min_open=True),
                 help="Clip the norm of the gradient at this value."),
    click.option("--patience", type=click.IntRange(1),
                 help="Stop after this many epochs without a better validation score."),
)  # fmt: skip
run = together(
    click.option("--out", type=RunPlace(),
                 help="Folder of the run, or s3:// or gs:// (docs/remote.md). "
                 "[default: runs/COMMAND-MODEL-HASH]"),
    seed,
    click.option("--seeds", type=click.IntRange(1), metavar="N",
                 help="Train N seeds, starting at --seed, in one run folder, and report their mean "
                     "with its interval (docs/seeds.md)."),
    click.option("--split-seed", type=int,
                 help="Seed that selects the held-out images. [default: the value of --seed]"),
    device,
    click.option("--devices", type=Devices(), default=1, show_default=True,
                 help="Number of processes, or all: one per GPU. With at least as many seeds or "
                 "modes as processes, each trains complete ones; otherwise they share each step "
                 "(DDP)."),
    click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]),
                 help="Number format of the forward pass. [default: that of the recipe, usually "
                     "fp32]"),
    scan_backend,
    workers,
    fresh,
    dry_run,
)  # fmt: skip


def settings(options: dict[str, Any]) -> dict[str, Any]:
    """Converts the options of a training to fields of its configuration; sets the scan backend."""
    fields = dict(options)
    set_scan_backend(fields)
    fields["model_args"] = dict(fields["model_args"])
    fields["command"] = typed_command()
    return fields


# Values of several options.


def set_scan_backend(values: dict[str, Any]) -> None:
    """Removes `--scan-backend` from `values`, and sets it for this process and its children.

    Raises:
        UsageError: There is no such backend, also if no network of the command has a scan.
    """
    backend = values.pop("scan_backend")
    if backend is not None:
        from robustcli.core.names import find
        from robustcli.models.scan.dispatch import BACKENDS

        find(backend, BACKENDS, kind="scan backend", listing="robust doctor")
        os.environ["ROBUST_SCAN_BACKEND"] = backend


def model_request(name: str, values: dict[str, Any]) -> ModelRequest:
    """The model `name`; removes its options from `values`, except `--label-space`."""
    from robustcli.adapters.catalogue import ModelRequest

    overridden = {option: values.pop(option) for option in _PREPROCESSING}
    return ModelRequest(
        name,
        values.pop("weights"),
        dict(values.pop("arguments")),
        {option: value for option, value in overridden.items() if value is not None},
        values["label_space"],
        values.pop("untrained"),
    )


def typed_command() -> str:
    """The command line of this process, for records."""
    return shlex.join(["robust", *sys.argv[1:]])
