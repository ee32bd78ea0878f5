"""Look-up of names as users type them: tolerant spelling, globs and suggestions."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from robustcli.core.errors import UsageError

TaskName = Literal["cls", "seg"]
"""Classifying images, or separating foreground from background in them."""


def canonical(name: str) -> str:
    """`name` in the spelling of look-ups: lower case, `_` as `-`."""
    return name.strip().lower().replace("_", "-")


def file_name(name: str) -> str:
    """`name` as part of a file name: characters reserved by Windows or Unix become `-`.

    Names of models can be paths or hub names, such as `hf-hub:timm/resnet18`.
    """
    return _RESERVED.sub("-", name).rstrip(". ") or "-"


_RESERVED = re.compile(r'[\x00-\x1f/\\:*?"<>|]')


def is_glob(name: str) -> bool:
    """Whether `name` contains a wildcard (`*`, `?` or `[`)."""
    return any(character in name for character in "*?[")


def nearest(name: str, candidates: Iterable[str], most: int = 3) -> list[str]:
    """The `candidates` most similar to `name`, best first; empty if none is similar."""
    spelling = {canonical(candidate): candidate for candidate in candidates}
    close = difflib.get_close_matches(canonical(name), spelling, n=most, cutoff=0.6)
    return [spelling[candidate] for candidate in close]


FEW_NAMES = 4
"""Number of names to show if none is similar to the typed one."""


def find(name: str, candidates: Iterable[str], *, kind: str, listing: str) -> str:
    """The registered spelling of `name`.

    Args:
        name: What the user typed.
        candidates: The registered names.
        kind: Kind of the named thing for the message, such as `model`.
        listing: Command that lists all names, for the message.

    Raises:
        UsageError: There is no such name; the message has the nearest ones.
    """
    candidates = list(candidates)
    if name in candidates:  # names of models can differ only in `-` and `_`
        return name
    spelling = {canonical(candidate): candidate for candidate in candidates}
    if canonical(name) in spelling:
        return spelling[canonical(name)]
    close = nearest(name, spelling.values())
    offered = did_you_mean(close)
    if not close and len(spelling) <= FEW_NAMES:
        offered = f"Expected {_either(list(spelling.values()))}."
    raise UsageError(
        f"No {kind} is called `{name}`.",
        offered,
        f"`{listing}` lists the valid names.",
    )


def did_you_mean(names: Sequence[object]) -> str:
    """The question for a message about an unknown name; empty without similar `names`."""
    return f"Did you mean {_either(names)}?" if names else ""


def _either(names: Iterable[object]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def check_options(given: Iterable[str], known: Sequence[str], *, owner: str) -> None:
    """Raises UsageError for the first option in `given` that is not in `known`.

    Args:
        given: Names of options, as the user typed them.
        known: Names of all options.
        owner: Name of the model that has them, for the message.
    """
    for option in given:
        if option not in known:
            close = nearest(option, known, most=1)
            raise UsageError(
                f"`{owner}` has no option `{option}=...`.",
                did_you_mean(close),
                f"Its options are {', '.join(known)}.",
            )


def fits(pattern: str, name: str) -> bool:
    """Whether `name` matches `pattern` (a name or a glob) in any spelling of look-ups."""
    return fnmatch.fnmatchcase(canonical(name), canonical(pattern))


def matching(pattern: str, candidates: Iterable[str], *, kind: str, listing: str) -> list[str]:
    """The registered names that match `pattern` (a name or a glob), in the order of `candidates`.

    Raises:
        UsageError: No name matches.
    """
    candidates = list(candidates)
    if not is_glob(pattern):
        return [find(pattern, candidates, kind=kind, listing=listing)]
    hits = [candidate for candidate in candidates if fits(pattern, candidate)]
    if not hits:
        raise UsageError(
            f"No {kind} matches `{pattern}`.", "", f"`{listing}` lists the valid names."
        )
    return hits


def model_folder(above: Path, prefix: str, model: str) -> Path:
    """The folder of `model` in `above`, also with the name that earlier versions gave it.

    Earlier versions replaced only slashes, so that hub names kept their colon.
    """
    folder, earlier = above / f"{prefix}{file_name(model)}", f"{prefix}{model.replace('/', '-')}"
    with suppress(OSError):  # this system does not allow the name
        if earlier != folder.name and (above / earlier).is_dir():
            return above / earlier
    return folder


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""First characters of cells that spreadsheets evaluate. Source: OWASP, CSV Injection."""


def marked_cell(cell: str) -> str:
    """The cell, with an apostrophe prepended if a spreadsheet would read it as a formula.

    Also if it would after apostrophes of its own, so that `unmarked_cell` can tell them apart.
    """
    return f"'{cell}" if cell.lstrip("'").startswith(FORMULA_SIGNS) else cell


def unmarked_cell(cell: str) -> str:
    """The inverse of `marked_cell`."""
    is_marked = cell.startswith("'") and cell.lstrip("'").startswith(FORMULA_SIGNS)
    return cell[1:] if is_marked else cell


# Escape sequences of terminals start with a control character; others reorder or hide letters.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    """`text` with control, direction and surrogate characters as Python escapes.

    A file or class name must not colour, overwrite or reorder the text around it.
    """
    return _ACTIVE.sub(lambda match: ascii(match[0])[1:-1], text)


ABLATE = "ablate"
"""The builder argument that names the ablated part of a network."""


def network_words(model: str, arguments: Mapping[str, Any]) -> str:
    """Name of the network `model` in reports, with the part that its `arguments` ablate."""
    ablation = arguments.get(ABLATE)
    return model if ablation is None else f"{model} without {ablation}"


def unknown_spread(groups: int, group: str) -> str:
    """Says that so few groups (patients, images) are not enough for an interval, without a stop."""
    units = f"A single {group} does" if groups == 1 else f"{counted(groups, group)} do"
    return f"{units} not show the variation between {group}s"


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: `1 image`, `1,000 images`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
