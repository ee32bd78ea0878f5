"""Checks the arguments of the Python API, as the command line checks its options."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_origin

from pydantic import (
    ConfigDict,
    Field,
    InstanceOf,
    PydanticUndefinedAnnotation,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
)

from robustcli.core.errors import UsageError, shortened_text
from robustcli.core.names import nearest

Positive: TypeAlias = Annotated[int, Field(ge=1)]
NotNegative: TypeAlias = Annotated[int, Field(ge=0)]
PositiveNumber: TypeAlias = Annotated[float, Field(gt=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


def checked_arguments(
    settings: type[Any], function: str, arguments: Mapping[str, Any], taken: Collection[str] = ()
) -> dict[str, Any]:
    """`arguments` with the types of the fields of the dataclass `settings`.

    A text that is a number becomes one, a list a tuple, and a single path, text or number of a
    field with several a tuple of one.

    Args:
        settings: The dataclass that gets the arguments.
        function: The name of the function of the API.
        arguments: The arguments, by name.
        taken: Fields of `settings` that are no arguments.

    Raises:
        UsageError: There is no such field, or a value does not have its type or range; the message
            lists all of them.
    """
    names = [field.name for field in fields(settings) if field.name not in taken]
    values, problems = dict[str, Any](), list[str]()
    for name, value in arguments.items():
        if name not in names:
            close = nearest(name, names, most=1)
            problems.append(
                f"There is no argument `{name}`."
                + (f" Did you mean `{close[0]}`?" if close else "")
            )
            continue
        try:
            values[name] = _converted(_type_of(settings, name), value)
        except ValidationError as error:
            expected = dict.fromkeys(_expected(details["msg"]) for details in error.errors())
            shown = shortened_text(repr(value), _LONGEST_VALUE)
            problems.append(f"`{name}={shown}` should be {' or '.join(expected)}.")
    if problems:
        count = "One argument" if len(problems) == 1 else f"{len(problems)} arguments"
        raise UsageError(
            f"{count} of `robustcli.{function}` cannot be used.",
            "\n".join(problems),
            f"`robust {_COMMANDS.get(function, function)} --help` describes the values of each.",
        )
    return values


_COMMANDS = {"evaluate": "eval", "train": "train seg"}
_LONGEST_VALUE = 80


def _type_of(settings: type[Any], name: str) -> Any:
    owner = next(base for base in settings.__mro__ if name in get_annotations(base))
    return eval(get_annotations(owner)[name], vars(sys.modules[owner.__module__]))


def _converted(kind: Any, value: Any) -> Any:
    if isinstance(kind, str):  # values of masks, which have their own checks
        return value
    several = any(get_origin(option) is tuple for option in (kind, *get_args(kind)))
    if several and isinstance(value, str | Path | int | float):
        value = (value,)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if is_dataclass(kind):
        return TypeAdapter(InstanceOf[kind]).validate_python(value)
    config = ConfigDict(arbitrary_types_allowed=True, coerce_numbers_to_str=True)
    try:
        return TypeAdapter(kind, config=config).validate_python(value)
    except (PydanticUserError, PydanticUndefinedAnnotation):
        return value  # an object of this package, such as an opened data set


def _expected(message: str) -> str:
    """What pydantic expects, as part of a sentence: "a valid integer"."""
    return message.removeprefix("Input should be ").replace("a valid tuple", "a list").rstrip(".")
