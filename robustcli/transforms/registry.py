"""The one list of transforms, and how what a user types becomes cells of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, is_glob, matching
from robustcli.core.seeds import identity_seed
from robustcli.transforms.base import Image, Transform
from robustcli.transforms.imagenet_c import IMAGENET_C, NAME_PREFIX
from robustcli.transforms.paper21 import PAPER21
from robustcli.transforms.plugins import from_entry_points, from_file

# --- The clean image, evaluated beside every other transform --------------------------------------


@dataclass(frozen=True, kw_only=True)
class Identity(Transform):
    """The same pixels."""

    def _parameters(self, severity: int) -> dict[str, Any]:
        return {}

    def _changed(self, image: Image, *, seed: int, severity: int) -> Image:
        return image.copy()


IDENTITY = Identity(name="identity", family="identity", summary="The image as it is (clean)")


# --- Which severities a transform takes, of those that the user asked for -------------------------


NameAndSeverity = tuple[str, int]


def cells_of_one(transform: Transform, wanted: Sequence[int]) -> list[NameAndSeverity]:
    """The cells of a transform that was named.

    Args:
        transform: The transform.
        wanted: Severities in rising order; empty for severity 0 where it exists, else all.

    Raises:
        UsageError: It lacks a wanted severity.
    """
    for severity in wanted:
        transform.check_severity(severity)
    return [(transform.name, severity) for severity in wanted or _unasked(transform)]


def cells_of_group(
    group: Sequence[Transform], wanted: Sequence[int], pattern: str
) -> list[NameAndSeverity]:
    """The cells of the transforms that a glob or preset stands for (`wanted` as above).

    Raises:
        UsageError: A wanted severity is nowhere in the group, or a transform with severities has
            none of the wanted ones.
    """
    for severity in wanted:
        _check_somewhere(severity, group, pattern)
    return [(one.name, severity) for one in group for severity in _taken(one, wanted)]


def _taken(transform: Transform, wanted: Sequence[int]) -> Sequence[int]:
    if not wanted or not transform.severities:
        return _unasked(transform)
    taken = [severity for severity in wanted if severity in transform.available()]
    if not taken:
        transform.check_severity(wanted[0])
    return taken


def _unasked(transform: Transform) -> Sequence[int]:
    return (0,) if transform.ranged else transform.severities


def _check_somewhere(severity: int, group: Sequence[Transform], pattern: str) -> None:
    have = sorted({one for transform in group for one in transform.available()})
    if severity in have:
        return
    raise UsageError(
        f"No transform of `{pattern}` has severity {severity}.",
        f"They have {', '.join(str(one) for one in have)}.",
        "Choose from these with `--severity`, or leave the option out.",
    )


PRESETS = ("paper21", "imagenet-c", "published", "all")
LISTING = "robust list transforms"

_BUILT_IN: tuple[Transform, ...] = (IDENTITY, *PAPER21, *IMAGENET_C)
# Used only where no registered name is spelled so; `gaussian_blur` stays paper21's.
_ALIASES = {
    "clean": "identity",
    "multiply-0": "multiply_per_channel",
    **{canonical(one.augmenter): one.name for one in PAPER21 if one.augmenter != "Multiply"},
    **{canonical(one.corruption): one.name for one in IMAGENET_C},
}


@dataclass(frozen=True)
class TransformCell:
    """One transform at one severity; severity 0 is its full range or fixed parameters."""

    transform: Transform
    severity: int


def transforms() -> tuple[Transform, ...]:
    """Every registered transform: identity, paper21, imagenet-c, then installed plugins.

    Raises:
        UsageError: An installed plugin cannot be loaded, or two transforms have one name.
    """
    return _registered(())


def resolve_transforms(
    patterns: Sequence[str],
    severities: Sequence[int] | None,
    plugins: Sequence[Path] = (),
    published: Sequence[Transform] = (),
) -> list[TransformCell]:
    """The cells that a command line asks for: `identity` first, then as typed, each once.

    A name, glob or preset takes severity 0 where it exists, else all severities. Given
    `severities` go to every transform: one that is named must have each of them; of a glob or a
    preset each transform takes those that it has, and one without severities stays at 0.

    Args:
        patterns: Names in any spelling, globs, presets (`PRESETS`).
        severities: The wish of `--severity`; None or empty for none.
        plugins: Python files with more transforms.
        published: The corruptions of a benchmark, as published.

    Raises:
        UsageError: Nothing is called so (with the nearest name), a severity is not there, or a
            plugin cannot be used.
    """
    known = {one.name: one for one in (*_registered(tuple(plugins)), *published)}
    wanted = tuple(sorted(set(severities or ())))
    chosen: dict[tuple[str, int], None] = {(IDENTITY.name, 0): None}
    for pattern in patterns:
        group = _named(pattern, known)
        if group == [IDENTITY]:
            continue
        single = canonical(pattern) not in PRESETS and not is_glob(pattern)
        cells = cells_of_one(group[0], wanted) if single else cells_of_group(group, wanted, pattern)
        chosen.update(dict.fromkeys(cells))
    return [TransformCell(known[name], severity) for name, severity in chosen]


def image_seed(run_seed: int, transform: str, severity: int, image_id: str) -> int:
    """The seed in `[0, 2**64)` for one image under one cell; it depends on nothing else."""
    return identity_seed(run_seed, transform, severity, image_id)


def _registered(plugins: tuple[Path, ...]) -> tuple[Transform, ...]:
    files = [one for path in dict.fromkeys(plugins) for one in from_file(path)]
    everything = (*_BUILT_IN, *_installed(), *files)
    _check_distinct(everything)
    return everything


@lru_cache(maxsize=1)
def _installed() -> tuple[Transform, ...]:
    return from_entry_points()


def _named(pattern: str, known: dict[str, Transform]) -> list[Transform]:
    preset = canonical(pattern)
    if preset.startswith("published") and all(t.family != "published" for t in known.values()):
        raise UsageError(
            f"`--transform {pattern}` needs the published pictures.",
            "No folder of a corruption benchmark is named.",
            "Name it with `--published DIR`, the clean images with `--data`.",
        )
    if preset == "all":
        return list(known.values())
    if preset in PRESETS:
        return [one for one in known.values() if one.family == preset]
    spelling = re.sub(r"\s+", "-", canonical(pattern))
    spelling = re.sub(r"^imagenet-?c[-/:]", NAME_PREFIX, spelling)
    spelling = re.sub(r"^published[/:]", "published-", spelling)
    if spelling not in {canonical(name) for name in known}:
        spelling = _ALIASES.get(spelling, spelling)
    return [known[name] for name in matching(spelling, known, kind="transform", listing=LISTING)]


def _check_distinct(everything: Iterable[Transform]) -> None:
    seen: dict[str, Transform] = {}
    for one in everything:
        name = canonical(one.name)
        if name in PRESETS or name in seen:
            taken = f"a transform of {seen[name].family}" if name in seen else "a preset"
            raise UsageError(
                f"The plugin's transform `{one.name}` needs another name.",
                f"That is already {taken}.",
                "Rename the function, or give it a name: `@transform(name=...)`.",
            )
        seen[name] = one
