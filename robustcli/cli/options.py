"""Options and value types that several commands share."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

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
