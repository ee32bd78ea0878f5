"""Where users' own transforms are found: a file named by `--plugin`, or an entry point."""

from __future__ import annotations

import hashlib
import sys
import traceback
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from robustcli.core.errors import RobustError, UsageError
from robustcli.transforms.plugged import Plugged, plugged
from robustcli.transforms.plugins import marked

GROUP = "robustcli.transforms"
_HINT = "`docs/transforms.md` shows a whole plugin."


def from_file(path: Path) -> tuple[Plugged, ...]:
    """The transforms that the Python file at `path` defines, in its order.

    Raises:
        UsageError: The file is missing, cannot be run, or defines no transform.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"The plugin `{path}` cannot be read.",
            f"The file system says: {error.strerror or error}.",
            "Give `--plugin` the path of a Python file.",
        ) from error
    return _from_content(path.resolve(), content)


@cache
def _from_content(path: Path, content: bytes) -> tuple[Plugged, ...]:
    digest = hashlib.sha256(content).hexdigest()
    module = _executed(path, content, f"robust_plugin_{digest[:16]}")
    found = marked(vars(module).values())
    if not found:
        raise UsageError(
            f"The plugin `{path}` defines no transform.",
            "Expected a function marked with `@transform(...)` from `robustcli.transforms`.",
            _HINT,
        )
    source = {"file": path.name, "sha256": digest}
    return tuple(plugged(plugin, source, (from_file, path)) for plugin in found)


def _executed(path: Path, content: bytes, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look a module up by its name
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except RobustError:
        raise
    except (Exception, SystemExit) as error:
        raise _cannot_run(path, error) from error
    return module


def from_entry_points(group: str = GROUP) -> tuple[Plugged, ...]:
    """The transforms of installed packages; each entry point names a module or one function.

    Raises:
        UsageError: An entry point cannot be loaded or names no transform.
    """
    points = sorted(entry_points(group=group), key=lambda point: (point.value, point.name))
    return tuple(one for point in points for one in from_entry_point(point))


def from_entry_point(point: EntryPoint) -> tuple[Plugged, ...]:
    """The transforms of one entry point (see `from_entry_points`)."""
    package = point.dist.name if point.dist else point.value
    try:
        target: Any = point.load()
    except Exception as error:
        raise _bad_package(package, point, f"{type(error).__name__}: {error}") from error
    found = marked(vars(target).values() if isinstance(target, ModuleType) else [target])
    if not found:
        raise _bad_package(package, point, "it defines no function marked with `@transform(...)`")
    source = {"package": package, "version": point.dist.version if point.dist else ""}
    return tuple(plugged(plugin, source, (from_entry_point, point)) for plugin in found)


def _cannot_run(path: Path, error: BaseException) -> UsageError:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    where = f"Line {line} raised" if line else "It raised"
    return UsageError(
        f"The plugin `{path}` cannot be run.",
        f"{where} {type(error).__name__}: {error}",
        f"Correct the file. {_HINT}",
    )


def _bad_package(package: str, point: EntryPoint, why: str) -> UsageError:
    return UsageError(
        f"The transforms of the installed package `{package}` cannot be loaded.",
        f"Its entry point `{point.name} = {point.value}`: {why}.",
        f"Update or uninstall `{package}`. {_HINT}",
    )
