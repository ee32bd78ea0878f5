"""Names as users type them: spelling-tolerant look-up, globs and the nearest name."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from robustcli.core.errors import UsageError

TaskName = Literal["cls", "seg"]
"""Classifying images, or separating foreground from background in them."""


def canonical(name: str) -> str:
    """`name` in the one spelling that look-ups use: lower case, `_` as `-`."""
    return name.strip().lower().replace("_", "-")


def file_name(name: str) -> str:
    """`name` as part of a file name on every system: what Windows or Unix reserve becomes `-`.

    Models can be called by a path or by a name of a hub, such as `hf-hub:timm/resnet18`.
    """
    return _RESERVED.sub("-", name).rstrip(". ") or "-"


_RESERVED = re.compile(r'[\x00-\x1f/\\:*?"<>|]')


def is_glob(name: str) -> bool:
    """Whether `name` holds a wildcard (`*`, `?` or `[`)."""
    return any(character in name for character in "*?[")


def nearest(name: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """The `candidates` that look most like `name`, best first; empty when none does."""
    spelling = {canonical(candidate): candidate for candidate in candidates}
    close = difflib.get_close_matches(canonical(name), spelling, n=most, cutoff=0.6)
    return [spelling[candidate] for candidate in close]


FEW_NAMES = 4
"""So many names are shown where none is near to what was typed."""


def find(name: str, candidates: Iterable[str], *, kind: str, listing: str) -> str:
    """The registered spelling of `name`.

    Args:
        name: What the user typed.
        candidates: The registered names.
        kind: What is being named, for the message (`model`, `transform`).
        listing: The command that lists them all, for the message.

    Raises:
        UsageError: No registered name is spelled so; the message offers the nearest ones.
    """
    spelling = {canonical(candidate): candidate for candidate in candidates}
    if canonical(name) in spelling:
        return spelling[canonical(name)]
    close = nearest(name, spelling.values())
    offered = f"Did you mean {_either(close)}?" if close else ""
    if not close and len(spelling) <= FEW_NAMES:
        offered = f"Expected {_either(list(spelling.values()))}."
    raise UsageError(
        f"No {kind} is called `{name}`.",
        offered,
        f"`{listing}` shows every {kind}.",
    )


def _either(names: list[str]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def matching(pattern: str, candidates: Iterable[str], *, kind: str, listing: str) -> list[str]:
    """The registered names that `pattern` (a name or a glob) stands for, in their own order.

    Raises:
        UsageError: Nothing matches.
    """
    candidates = list(candidates)
    if not is_glob(pattern):
        return [find(pattern, candidates, kind=kind, listing=listing)]
    hits = [c for c in candidates if fnmatch.fnmatchcase(canonical(c), canonical(pattern))]
    if not hits:
        raise UsageError(f"No {kind} matches `{pattern}`.", "", f"`{listing}` shows every {kind}.")
    return hits


def model_folder(above: Path, prefix: str, model: str) -> Path:
    """The folder of `model` in `above`; what earlier versions called otherwise stays as it is.

    They replaced slashes alone, so that a name from a hub kept its colon.
    """
    folder, earlier = above / f"{prefix}{file_name(model)}", f"{prefix}{model.replace('/', '-')}"
    with suppress(OSError):  # a name that this system does not allow
        if earlier != folder.name and (above / earlier).is_dir():
            return above / earlier
    return folder


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that spreadsheets compute. Source: OWASP, CSV Injection."""

# Escape sequences of terminals start with a control character; others reorder or hide letters.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """`text` with control, direction and surrogate characters written as Python's escapes.

    A name of a file or a class must not colour, overwrite or reorder what is shown around it.
    """
    return _ACTIVE.sub(lambda match: ascii(match[0])[1:-1], text)


ABLATE = "ablate"
"""The option of a network's configuration that names what is taken out of it."""


def network_words(model: str, arguments: Mapping[str, Any]) -> str:
    """The network `model` as reports name it: with what its `arguments` take out of it."""
    ablation = arguments.get(ABLATE)
    return model if ablation is None else f"{model} without {ablation}"
