"""The registry of transforms, and the selection of cells by command-line patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustcli.core.errors import UsageError, UsageErrors
from robustcli.core.names import canonical, is_glob, matching
from robustcli.core.seeds import identity_seed
from robustcli.transforms.base import Image, Transform
from robustcli.transforms.imagenet_c import IMAGENET_C, NAME_PREFIX
from robustcli.transforms.paper21 import PAPER21
from robustcli.transforms.plugins import from_entry_points, from_file


@dataclass(frozen=True, kw_only=True)
class Identity(Transform):
    """Returns the clean image; evaluated in addition to every other transform."""

    def _parameters(self, severity: int) -> dict[str, Any]:
        return {}

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        return image.copy()


IDENTITY = Identity(name="identity", family="identity", summary="The image as it is (clean)")

PRESETS = ("paper21", "imagenet-c", "published", "all")
_LISTING = "robust list transforms"

_BUILT_IN: tuple[Transform, ...] = (IDENTITY, *PAPER21, *IMAGENET_C)
# Only used if no registered name has this spelling; `gaussian_blur` refers to paper21.
_ALIASES = {
    "clean": "identity",
    "multiply-0": "multiply_per_channel",
    **{canonical(t.augmenter): t.name for t in PAPER21 if t.augmenter != "Multiply"},
    **{canonical(t.corruption): t.name for t in IMAGENET_C},
}


@dataclass(frozen=True)
class TransformCell:
    """One transform at one severity; severity 0 is its full range or fixed parameters."""

    transform: Transform
    severity: int


def transforms() -> tuple[Transform, ...]:
    """Every registered transform: identity, paper21, imagenet-c, then installed plugins.

    Raises:
        UsageError: An installed plugin cannot be loaded, or two transforms have the same name.
    """
    return _registered(())


def resolve_transforms(
    patterns: Sequence[str],
    severities: Sequence[int] | None,
    plugins: Sequence[Path] = (),
    published: Sequence[Transform] = (),
) -> list[TransformCell]:
    """The cells of a command line: `identity`, then by `patterns`, without duplicates.

    Without `severities`, a transform gets severity 0 if it exists, else all severities. A transform
    selected by name must have each of the `severities`. A transform selected by a glob or a preset
    gets those of the `severities` that it has, or severity 0 if it has no severities.

    `patterns` are names in any spelling, globs, or presets (`PRESETS`); `plugins` are Python files.

    Raises:
        UsageError: Names are unknown (with the nearest names), a severity does not exist, or a
            plugin cannot be used; the message shows all of these.
    """
    known = {t.name: t for t in (*_registered(tuple(plugins)), *published)}
    requested = tuple(sorted(set(severities or ())))
    cells: dict[tuple[str, int], None] = {(IDENTITY.name, 0): None}
    errors = UsageErrors()
    for pattern in patterns:
        with errors:
            group = _matching_transforms(pattern, known)
            if group == [IDENTITY]:
                continue
            is_name = canonical(pattern) not in PRESETS and not is_glob(pattern)
            if not is_name:
                _check_in_group(requested, group, pattern)
            for transform in group:
                for severity in _severities_of(transform, requested, is_name=is_name):
                    cells[transform.name, severity] = None
    errors.check()
    return [TransformCell(known[name], severity) for name, severity in cells]


def _severities_of(
    transform: Transform, requested: Sequence[int], *, is_name: bool
) -> Sequence[int]:
    """The severities at which to evaluate `transform`, out of the requested ones.

    Raises:
        UsageError: The transform is selected by name and lacks a requested severity, or it has
            severities, but none of the requested ones.
    """
    if not requested or not (is_name or transform.severities):
        return (0,) if transform.ranged else transform.severities
    available = [severity for severity in requested if severity in transform.available()]
    if is_name or not available:
        for severity in requested:
            transform.check_severity(severity)
    return available


def _check_in_group(requested: Sequence[int], group: Sequence[Transform], pattern: str) -> None:
    available = sorted({severity for transform in group for severity in transform.available()})
    for severity in requested:
        if severity not in available:
            raise UsageError(
                f"No transform of `{pattern}` has severity {severity}.",
                f"Their severities are {', '.join(map(str, available))}.",
                "Choose among these with `--severity`, or omit the option.",
            )


def image_seed(run_seed: int, transform: str, severity: int, image_id: str) -> int:
    """The seed, in `[0, 2**64)`, for one image under one transform and severity."""
    return identity_seed(run_seed, transform, severity, image_id)


def _registered(plugins: tuple[Path, ...]) -> tuple[Transform, ...]:
    files = {path.expanduser().resolve(): path for path in reversed(plugins)}
    from_files = [t for path in reversed(files.values()) for t in from_file(path)]
    transforms = (*_BUILT_IN, *_installed(), *from_files)
    _check_distinct(transforms)
    return transforms


@lru_cache(maxsize=1)
def _installed() -> tuple[Transform, ...]:
    return from_entry_points()


def _matching_transforms(pattern: str, known: dict[str, Transform]) -> list[Transform]:
    preset = canonical(pattern)
    if preset.startswith("published") and all(t.family != "published" for t in known.values()):
        raise UsageError(
            f"`--transform {pattern}` needs the published images of a corruption benchmark.",
            "`--published` is not set.",
            "Set `--published` to the folder of the benchmark, and `--data` to the clean images.",
        )
    if preset == "all":
        return list(known.values())
    if preset in PRESETS:
        return [t for t in known.values() if t.family == preset]
    spelling = re.sub(r"\s+", "-", canonical(pattern))
    spelling = re.sub(r"^imagenet-?c[-/:]", NAME_PREFIX, spelling)
    spelling = re.sub(r"^published[/:]", "published-", spelling)
    if spelling not in {canonical(name) for name in known}:
        spelling = _ALIASES.get(spelling, spelling)
    try:
        names = matching(spelling, known, kind="transform", listing=_LISTING)
    except UsageError:
        _refuse_severity(pattern, known)
        # For the error with the name as typed.
        names = matching(pattern, known, kind="transform", listing=_LISTING)
    return [known[name] for name in names]


def _refuse_severity(pattern: str, known: dict[str, Transform]) -> None:
    """Raises UsageError for `NAME:3`, in which only NAME is a transform."""
    name, colon, severity = pattern.rpartition(":")
    if colon and severity.isdigit() and canonical(name) in map(canonical, known):
        raise UsageError(
            f"No transform is called `{pattern}`.",
            f"`{name}` is one, and severities are a separate option.",
            f"Use `--transform {name} --severity {severity}`.",
        )


def _check_distinct(transforms: Iterable[Transform]) -> None:
    by_name: dict[str, Transform] = {}
    for transform in transforms:
        name = canonical(transform.name)
        if name in PRESETS or name in by_name:
            owner = f"a transform of {by_name[name].family}" if name in by_name else "a preset"
            raise UsageError(
                f"The transform `{transform.name}` of a plugin needs another name.",
                f"This name is already {owner}.",
                "Rename the function, or set a name: `@transform(name=...)`.",
            )
        by_name[name] = transform
