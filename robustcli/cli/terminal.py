"""Text on the terminal, in which names of files and classes cannot act as its commands."""

from __future__ import annotations

import click

from robustcli.core.names import printable


def say_safely(text: str, *, err: bool = False) -> None:
    """Prints `text`, which may hold names from files, with a line break (see `printable`)."""
    click.echo(printable(text), err=err)
