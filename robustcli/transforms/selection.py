"""Which severities a transform takes, of those that the user asked for."""

from __future__ import annotations

from collections.abc import Sequence

from robustcli.core.errors import UsageError
from robustcli.transforms.base import Transform

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
