"""A user's own function as a transform of the registry, and where it was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robustcli.core.errors import RunError
from robustcli.transforms.base import Image, Mask, Transform
from robustcli.transforms.plugins import Plugin


@dataclass(frozen=True, kw_only=True)
class Plugged(Transform):
    """A plugin's function.

    It crosses to another process by name: a loader worker loads the same file or package again.

    Args:
        plugin: The function and its values.
        source: Where it was found, with a fingerprint, for the run's record: other code is another
            transform.
        found: A function that can be pickled and finds it again, with its argument.
    """

    plugin: Plugin = field(hash=False, compare=False)
    source: tuple[tuple[str, str], ...]
    found: tuple[Callable[[Any], tuple[Plugged, ...]], Any] = field(hash=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """How to pickle it: where to find it again, for a function of a file has no import path."""
        return _found_again, (self.found, self.name, self.source)

    def _parameters(self, severity: int) -> dict[str, Any]:
        return {"value": self._value(severity), **dict(self.source)}

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        changed: Image = self.plugin.call(image, seed, self._value(severity))
        return changed

    def _moved(self, image: Image, mask: Mask, *, seed: int, severity: int) -> tuple[Image, Mask]:
        changed = self._changed(image, seed=seed, severity=severity)
        if not self.geometric:
            return changed, mask
        moved = self.plugin.call(mask, seed, self._value(severity))
        self._check_moved(mask, moved, changed)
        return changed, moved

    def _value(self, severity: int) -> Any:
        return self.plugin.values[severity - 1] if severity else None

    def _check_moved(self, mask: Mask, moved: Mask, changed: Image) -> None:
        invented = np.setdiff1d(moved, np.append(mask, 0))
        if moved.shape == changed.shape[:2] and not invented.size:
            return
        raise RunError(
            f"Transform `{self.name}` does not move a mask as it moves its image.",
            f"The mask has shape {moved.shape} for an image of {changed.shape[:2]}, with "
            f"{invented.size} labels that it did not have before.",
            "Use nearest-neighbour sampling where the array has two dimensions.",
        )


def plugged(
    plugin: Plugin,
    source: dict[str, str],
    found: tuple[Callable[[Any], tuple[Plugged, ...]], Any],
) -> Plugged:
    """The transform of `plugin`; see `Plugged` for `source` and `found`."""
    return Plugged(
        name=plugin.name,
        family="plugin",
        geometric=plugin.geometric,
        severities=tuple(range(1, len(plugin.values) + 1)),
        ranged=not plugin.values,
        summary=plugin.summary,
        plugin=plugin,
        source=tuple(source.items()),
        found=found,
    )


def _found_again(
    found: tuple[Callable[[Any], tuple[Plugged, ...]], Any],
    name: str,
    source: tuple[tuple[str, str], ...],
) -> Plugged:
    load, argument = found
    for one in load(argument):
        if (one.name, one.source) == (name, source):
            return one
    raise RunError(
        f"Transform `{name}` is not what it was when the run began.",
        f"Its code was changed meanwhile: expected {dict(source)}.",
        "Leave the plugin as it is during a run; repeat the command with `--fresh`.",
    )
