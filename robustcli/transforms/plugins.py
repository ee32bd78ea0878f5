"""A user's own transform: one function, marked by the decorator `transform`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np

from robustcli.core.errors import RunError, UsageError
from robustcli.transforms.base import Image

Function: TypeAlias = Callable[[Image, np.random.Generator, Any], Image]
F = TypeVar("F", bound=Callable[..., Any])

_MARK = "_robust_transform"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, eq=False)
class Plugin:
    """What a user said of one function.

    Args:
        name: Name on the command line.
        function: Takes image, generator and value; gives the changed image.
        values: Its third argument at severity 1, 2, ...; empty if it has no severities.
        geometric: Whether it moves pixels; then it is also called with masks (H, W).
    """

    name: str
    function: Function
    values: tuple[Any, ...]
    geometric: bool

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def call(self, array: Any, seed: int, value: Any) -> Any:
        """What the function makes of a copy of `array`, with a generator seeded by `seed`.

        Raises:
            RunError: The function raised, or did not give a uint8 image or labels as it got.
        """
        try:
            changed = self.function(array.copy(), np.random.default_rng(seed), value)
        except Exception as error:
            raise RunError(
                f"Transform `{self.name}` failed on an image of {_size(array)} pixels.",
                f"Its function raised {type(error).__name__}: {error}",
                "Correct the function, then repeat the command.",
            ) from error
        self._check(changed, array)
        return changed

    def _check(self, changed: Any, array: Any) -> None:
        if (
            isinstance(changed, np.ndarray)
            and changed.dtype == array.dtype
            and changed.ndim == array.ndim
            and changed.shape[2:] == array.shape[2:]
            and changed.size
        ):
            return
        came = type(changed).__name__
        if isinstance(changed, np.ndarray):
            came = f"{changed.dtype} of shape {changed.shape}"
        shape = "(H, W, 3)" if array.ndim == 3 else "(H, W)"
        raise RunError(
            f"Transform `{self.name}` gave no {'image' if array.ndim == 3 else 'mask'}.",
            f"Expected {array.dtype} of shape {shape}, came {came}.",
            "Let its function return such an array, for example "
            f"`np.clip(result, 0, 255).astype(np.{array.dtype})`.",
        )


def transform(
    *, severities: Sequence[Any] = (), name: str | None = None, geometric: bool = False
) -> Callable[[F], F]:
    """A decorator that makes `function(image, rng, value)` a transform; the function stays as is.

    Args:
        severities: The values handed to the function at severity 1, 2, ..., mild to strong, of
            types that JSON has. Without them it has severity 0 only and gets None.
        name: Its name: lower case letters, digits and `_`; otherwise the function's own.
        geometric: Whether it moves pixels. Then it is also called with masks of shape (H, W), with
            the same generator and value, and must not mix neighbouring labels.

    Raises:
        UsageError: The name or the values are not as described.
    """

    def mark(function: F) -> F:
        chosen = name or function.__name__
        _check_declaration(chosen, severities)
        setattr(function, _MARK, Plugin(chosen, function, tuple(severities), geometric))
        return function

    return mark


def marked(objects: Iterable[object]) -> list[Plugin]:
    """The plugins among `objects`, each once, in their order."""
    found = [vars(one)[_MARK] for one in objects if _MARK in getattr(one, "__dict__", {})]
    return list(dict.fromkeys(found))


def _check_declaration(name: str, severities: Sequence[Any]) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"A transform cannot be called `{name}`.",
            "A name starts with a letter and holds lower case letters, digits and `_`, "
            "because it becomes the name of a folder.",
            "Give another one: `@transform(name=...)`.",
        )
    try:
        json.dumps(severities, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The `severities` of transform `{name}` cannot be recorded.",
            f"They must be a list of types that JSON has: {error}.",
            "Use numbers, texts, lists or dictionaries of them.",
        ) from error


def _size(array: Any) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
