"""User-defined transforms: functions with the decorator `transform`, in files and packages."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import numpy as np

from robustcli.core.errors import RobustError, RunError, UsageError
from robustcli.transforms.base import Image, Mask, Transform

PluginFunction: TypeAlias = Callable[[Image, np.random.Generator, Any], Image]
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

ENTRY_POINTS = "robustcli.transforms"
_MARK = "_robust_transform"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HINT = "`docs/transforms.md` shows a whole plugin."


@dataclass(frozen=True, eq=False)
class Plugin:
    """The declaration of one user-defined function.

    Args:
        name: Name on the command line.
        function: Takes image, generator and value; returns the changed image.
        values: The third argument of the function at severity 1, 2, ...; empty without severities.
        geometric: Whether the function moves pixels; then it is also called with masks (H, W).
    """

    name: str
    function: PluginFunction
    values: tuple[Any, ...]
    geometric: bool

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def call(self, array: Any, seed: int | np.random.Generator, value: Any) -> Any:
        """Calls the function with copies of `array` and `value`, and a generator of `seed`.

        Raises:
            RunError: The function raised, or its result has another dtype or number of axes.
        """
        generator = np.random.default_rng(seed)  # returns a generator unchanged
        try:
            # A function that changes a list or dictionary must not change the next image.
            changed = self.function(array.copy(), generator, deepcopy(value))
        except (Exception, SystemExit) as error:
            raise RunError(
                f"Transform `{self.name}` failed on an image of "
                f"{array.shape[1]}x{array.shape[0]} pixels.",
                f"Its function raised {type(error).__name__}: {error}",
                "Correct the function, then repeat the command.",
            ) from error
        if (
            isinstance(changed, np.ndarray)
            and changed.dtype == array.dtype
            and changed.ndim == array.ndim
            and changed.shape[2:] == array.shape[2:]
            and changed.size
        ):
            return changed
        returned = type(changed).__name__
        if isinstance(changed, np.ndarray):
            returned = f"{changed.dtype} of shape {changed.shape}"
        shape = "(H, W, 3)" if array.ndim == 3 else "(H, W)"
        raise RunError(
            f"Transform `{self.name}` returned no {'image' if array.ndim == 3 else 'mask'}.",
            f"Its function must return {array.dtype} of shape {shape}; it returned {returned}.",
            "Return such an array, for example "
            f"`np.clip(result, 0, 255).astype(np.{array.dtype})`.",
        )


def transform(
    *, severities: Sequence[Any] = (), name: str | None = None, geometric: bool = False
) -> Callable[[FunctionT], FunctionT]:
    """Decorator that declares `function(image, rng, value)` a transform, and returns it unchanged.

    Args:
        severities: The values passed to the function at severity 1, 2, ..., mild to strong, of
            JSON types. Without them, the transform only has severity 0, and the value is None.
        name: Name of the transform: lower case letters, digits and `_`; by default the name of the
            function.
        geometric: Whether it moves pixels. Then it is also called with masks of shape (H, W), with
            a generator of the same seed and the same value, and must not mix neighbouring labels.

    Raises:
        UsageError: The name or the values are not as described.
    """

    def mark(function: FunctionT) -> FunctionT:
        transform_name = name or function.__name__
        _check_declaration(transform_name, severities)
        setattr(function, _MARK, Plugin(transform_name, function, tuple(severities), geometric))
        return function

    return mark


def marked_plugins(objects: Iterable[object]) -> list[Plugin]:
    """The plugins among `objects`, in order and without duplicates."""
    plugins = (vars(o)[_MARK] for o in objects if _MARK in getattr(o, "__dict__", {}))
    return list(dict.fromkeys(plugins))


def _check_declaration(name: str, severities: Sequence[Any]) -> None:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"The name `{name}` is not valid for a transform.",
            "A name starts with a letter and consists of lower case letters, digits and `_`, "
            "because a folder is named after it.",
            "Set another name: `@transform(name=...)`.",
        )
    try:
        json.dumps(severities, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"The `severities` of transform `{name}` cannot be recorded.",
            f"They must be values that JSON can store: {error}.",
            "Use numbers, strings, and lists or dictionaries of them.",
        ) from error


@dataclass(frozen=True, kw_only=True)
class PluginTransform(Transform):
    """A transform that calls the function of a plugin.

    It is pickled by name: a loader worker loads the same file or package again.

    `source` names the file or package with a fingerprint, for the run's record: changed code counts
    as another transform. `origin` is a function that loads the plugin, with its argument; both must
    be picklable.
    """

    plugin: Plugin = field(hash=False, compare=False)
    source: tuple[tuple[str, str], ...]
    origin: Origin = field(hash=False, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the origin, because a function loaded from a file has no import path."""
        return _load_again, (self.origin, self.name, self.source)

    def _parameters(self, severity: int) -> dict[str, Any]:
        return {"value": self._value(severity), **dict(self.source)}

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        changed: Image = self.plugin.call(image, seed, self._value(severity))
        return changed

    def _moved(self, image: Image, mask: Mask, *, seed: int, severity: int) -> tuple[Image, Mask]:
        if not self.geometric:
            return self._changed(image, seed=seed, severity=severity), mask
        value, generators = self._value(severity), [np.random.default_rng(seed) for _ in range(2)]
        changed: Image = self.plugin.call(image, generators[0], value)
        moved: Mask = self.plugin.call(mask, generators[1], value)
        if generators[0].bit_generator.state != generators[1].bit_generator.state:
            # For example `rng.random(image.shape)`: three times as many numbers for an image.
            raise RunError(
                f"Transform `{self.name}` draws other random numbers for the mask than for the "
                "image.",
                "So the mask does not move like the image. The image has the shape "
                f"{image.shape}, the mask {mask.shape}.",
                "Draw as many numbers for both (such as `rng.random(image.shape[:2])`), and "
                "numbers that do not move pixels from `rng.spawn(1)[0]`.",
            )
        new_labels = np.setdiff1d(moved, np.append(mask, 0))
        if moved.shape != changed.shape[:2] or new_labels.size:
            raise RunError(
                f"Transform `{self.name}` does not transform the mask like the image.",
                f"The mask has the shape {moved.shape}, the image {changed.shape[:2]}; "
                f"{new_labels.size} labels of the mask did not exist before.",
                "Use nearest-neighbour interpolation if the array has two dimensions.",
            )
        return changed, moved

    def _value(self, severity: int) -> Any:
        return self.plugin.values[severity - 1] if severity else None


Origin: TypeAlias = tuple[Callable[[Any], tuple[PluginTransform, ...]], Any]


def plugin_transform(plugin: Plugin, source: dict[str, str], origin: Origin) -> PluginTransform:
    """The transform of `plugin`; see `PluginTransform` for `source` and `origin`."""
    return PluginTransform(
        name=plugin.name,
        family="plugin",
        geometric=plugin.geometric,
        severities=tuple(range(1, len(plugin.values) + 1)),
        ranged=not plugin.values,
        summary=plugin.summary,
        plugin=plugin,
        source=tuple(source.items()),
        origin=origin,
    )


def _load_again(origin: Origin, name: str, source: tuple[tuple[str, str], ...]) -> PluginTransform:
    load, argument = origin
    for loaded in load(argument):
        if (loaded.name, loaded.source) == (name, source):
            return loaded
    raise RunError(
        f"Transform `{name}` has changed since the run started.",
        f"The run started with {dict(source)}.",
        "Do not change a plugin during a run. Repeat the command with `--fresh`.",
    )


def from_file(path: Path) -> tuple[PluginTransform, ...]:
    """The transforms that the Python file at `path` defines, in the order of the file.

    Raises:
        UsageError: The file is missing, cannot be run, or defines no transform.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"The plugin `{path}` cannot be read.",
            f"The error of the file system is: {error.strerror or error}.",
            "Set `--plugin` to the path of a Python file.",
        ) from error
    return _from_content(path.resolve(), content)


@cache
def _from_content(path: Path, content: bytes) -> tuple[PluginTransform, ...]:
    digest = hashlib.sha256(content).hexdigest()
    module = ModuleType(f"robust_plugin_{digest[:16]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and pickle look up modules by name
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except RobustError:
        raise
    except (Exception, SystemExit) as error:
        raise _cannot_run(path, error) from error
    plugins = marked_plugins(vars(module).values())
    if not plugins:
        raise UsageError(
            f"The plugin `{path}` defines no transform.",
            "Expected a function marked with `@transform(...)` from `robustcli.transforms`.",
            _HINT,
        )
    source = {"file": path.name, "sha256": digest}
    return tuple(plugin_transform(plugin, source, (from_file, path)) for plugin in plugins)


def from_entry_points(group: str = ENTRY_POINTS) -> tuple[PluginTransform, ...]:
    """The transforms of installed packages; an entry point names a module or a function.

    Raises:
        UsageError: An entry point cannot be loaded, or contains no transform.
    """
    points = sorted(entry_points(group=group), key=lambda point: (point.value, point.name))
    return tuple(loaded for point in points for loaded in from_entry_point(point))


def from_entry_point(point: EntryPoint) -> tuple[PluginTransform, ...]:
    """The transforms of one entry point (see `from_entry_points`)."""
    package = point.dist.name if point.dist else point.value
    try:
        target: Any = point.load()
    except Exception as error:
        raise _bad_package(package, point, f"{type(error).__name__}: {error}") from error
    objects = vars(target).values() if isinstance(target, ModuleType) else [target]
    plugins = marked_plugins(objects)
    if not plugins:
        raise _bad_package(package, point, "it defines no function marked with `@transform(...)`")
    source = {"package": package, "version": point.dist.version if point.dist else ""}
    return tuple(plugin_transform(plugin, source, (from_entry_point, point)) for plugin in plugins)


def _cannot_run(path: Path, error: BaseException) -> UsageError:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    origin = f"Line {line} raised" if line else "It raised"
    return UsageError(
        f"The plugin `{path}` cannot be run.",
        f"{origin} {type(error).__name__}: {error}",
        f"Correct the file. {_HINT}",
    )


def _bad_package(package: str, point: EntryPoint, why: str) -> UsageError:
    return UsageError(
        f"The transforms of the installed package `{package}` cannot be loaded.",
        f"Its entry point `{point.name} = {point.value}`: {why}.",
        f"Update or uninstall `{package}`. {_HINT}",
    )
