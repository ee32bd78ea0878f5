"""Output on the terminal with escaped control characters."""

from __future__ import annotations

import click

from robustcli.core.names import printable


def say_safely(text: str, *, err: bool = False) -> None:
    """Prints `text`, which may contain names from files, and a line break (see `printable`)."""
    click.echo(printable(text), err=err)
