"""The one list of transforms, and how what a user types becomes cells of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from robustcli.core.errors import UsageError
from robustcli.core.names import canonical, is_glob, matching
from robustcli.core.seeds import identity_seed
from robustcli.transforms.base import Transform
from robustcli.transforms.identity import IDENTITY
from robustcli.transforms.imagenet_c import IMAGENET_C, PREFIX
from robustcli.transforms.loading import from_entry_points, from_file
from robustcli.transforms.paper21 import PAPER21
from robustcli.transforms.selection import cells_of_group, cells_of_one

PRESETS = ("paper21", "imagenet-c", "all")
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


def resolve(
    patterns: Sequence[str], severities: Sequence[int] | None, plugins: Sequence[Path] = ()
) -> list[TransformCell]:
    """The cells that a command line asks for: `identity` first, then as typed, each once.

    A name, glob or preset takes severity 0 where it exists, else all severities. Given
    `severities` go to every transform: one that is named must have each of them; of a glob or a
    preset each transform takes those that it has, and one without severities stays at 0.

    Args:
        patterns: Names in any spelling, globs, presets (`PRESETS`).
        severities: The wish of `--severity`; None or empty for none.
        plugins: Python files with more transforms.

    Raises:
        UsageError: Nothing is called so (with the nearest name), a severity is not there, or a
            plugin cannot be used.
    """
    known = {one.name: one for one in _registered(tuple(plugins))}
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
    if preset == "all":
        return list(known.values())
    if preset in PRESETS:
        return [one for one in known.values() if one.family == preset]
    spelling = re.sub(r"\s+", "-", canonical(pattern))
    spelling = re.sub(r"^imagenet-?c[-/:]", PREFIX, spelling)
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
