"""`robust verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from robustcli.cli import shared_options as options
from robustcli.cli.shared_options import FILE, as_json, offline, quiet
from robustcli.cli.stored_places import PlacesCommand, RunPlace
from robustcli.cli.terminal import ConsoleListener, only_documents

NOT_REPRODUCED = 1


class BlockCount(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since 8.4
    """Number of blocks, at least 1, or `all`."""

    name = "number or all"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """Parses the number; 0 means all."""
        if value == "all":
            return 0
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"`{value}` is neither a number of at least 1 nor `all`.", param, ctx)
        return int(value)


@click.command("verify", cls=PlacesCommand)
@click.argument("run", type=RunPlace("read"))
@click.option(
    "--sample", type=BlockCount(), default="8", show_default=True,
    help="Number of blocks of up to 128 images to recompute per evaluation, or all.",
)  # fmt: skip
@options.seed
@click.option("--data", metavar="DIR", help="New location of the images, if they were moved.")
@click.option(
    "--weights", type=FILE, multiple=True,
    help="A weights file or training run, if it was moved; repeatable, chosen by digest.",
)  # fmt: skip
@click.option("--label-space", help="The file with the classes, if it was moved.")
@click.option("--labels", type=FILE, help="The file with the class of each image, if it was moved.")
@click.option(
    "--plugin", "plugins", multiple=True, type=FILE,
    help="A Python file that defines transforms, if it was moved; repeatable.",
)  # fmt: skip
@options.run_code
@options.device
@options.scan_backend
@offline
@as_json
@quiet
def command(run: Path, as_json: bool, quiet: bool, **values: Any) -> None:
    """Check whether this machine reproduces RUN. The folder is not changed.

    \b
    robust verify runs/eval-vmamba-pico-1a2b3c4d
    robust verify runs/train-ulvm_v5-1a2b3c4d --sample all --json

    Exit code 0: reproduced. 1: not reproduced; the image, transform and model are named. 3: the
    data or weights are missing.
    """  # noqa: D301  click reads the backspace: keep these lines apart
    from robustcli.verification.recorded_run import VerifyConfig
    from robustcli.verification.verification import verify

    options.set_scan_backend(values)
    values["sample"] = values["sample"] or None
    with ConsoleListener(quiet=quiet) as listener, only_documents():
        result = verify(VerifyConfig(run, **values), listener)
    click.echo(result.as_json() if as_json else result.as_text())
    if not result.reproduced:
        sys.exit(NOT_REPRODUCED)
