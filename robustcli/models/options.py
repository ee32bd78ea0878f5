"""A builder's options: changes to a variant's configuration, checked by name."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

from robustcli.core.errors import UsageError
from robustcli.core.names import nearest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
