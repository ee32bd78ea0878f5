"""A builder's options checked by name, and the input sizes that a network can take."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor

from robustcli.core.errors import UsageError
from robustcli.core.names import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


if TYPE_CHECKING:
    Config = TypeVar("Config", bound=DataclassInstance)


def changed(config: Config, changes: dict[str, object], *, model: str) -> Config:
    """`config` with `changes`; lists become tuples, because configurations are immutable.

    Args:
        config: The variant's own configuration.
        changes: Field name to new value.
        model: The variant's name, for the message.

    Raises:
        UsageError: A name in `changes` is no field of the configuration.
    """
    known = [field.name for field in fields(config)]
    for option in changes:
        if option not in known:
            close = nearest(option, known, most=1)
            raise UsageError(
                f"`{model}` has no option `{option}`.",
                f"Did you mean `{close[0]}`?" if close else "",
                f"Its options: {', '.join(known)}.",
            )
    return replace(config, **{option: _frozen(value) for option, value in changes.items()})


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# --- Input sizes that a network can take ----------------------------------------------------------


def check_multiple(x: Tensor, step: tuple[int, int], *, model: str) -> None:
    """Raises UsageError unless height and width of `x` (B, C, H, W) are multiples of `step`."""
    height, width = x.shape[-2:]
    if height % step[0] or width % step[1]:
        needed = f"{step[0]}" if step[0] == step[1] else f"{step[0]} and {step[1]}"
        raise UsageError(
            f"The input is {height} x {width} pixels; `{model}` cannot take that.",
            f"Height and width must be multiples of {needed}: the halvings are undone exactly.",
            "Resize or pad the images.",
        )
