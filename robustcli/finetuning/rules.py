"""Rules of what to freeze, as the user gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from robustcli.core.errors import UsageError
from robustcli.finetuning.gradients import StatisticKind

Scope = Literal["mamba", "all"]
DOCUMENTED = 1e-6
"""Source: "Exploring SSMs for Vision Tasks" (Team 23): the threshold of its command."""


@dataclass(frozen=True)
class FreezeRule:
    """What to freeze; exactly one of `threshold`, `quantile` and `pattern` is given.

    Args:
        threshold: Freeze tensors whose statistic is below it, at least 0.
        quantile: Freeze this share of the tensors in scope, the lowest ones, in (0, 1).
        pattern: Freeze the tensors whose name fits this glob or begins with it, or one of several,
            separated by commas; scope `all`.
        kind: The statistic.
        relative: Divide the statistic by the weight's root mean square.
        scope: Parameters of state-space blocks, or all.
    """

    threshold: float | None = None
    quantile: float | None = None
    pattern: str | None = None
    kind: StatisticKind = "mean_abs"
    relative: bool = False
    scope: Scope = "mamba"

    def __post_init__(self) -> None:
        given = [self.threshold, self.quantile, self.pattern]
        if sum(value is not None for value in given) != 1:
            raise _several()
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            flag = "--freeze-relative" if self.relative else "--freeze-threshold"
            raise UsageError(
                f"`{flag} {self.threshold:g}` is not a size of a gradient.",
                "Expected a number from 0.",
                "Try 1e-3, a thousandth of the weights' size."
                if self.relative
                else "The documented one is 1e-6.",
            )
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise UsageError(
                f"`--freeze-quantile {self.quantile:g}` is not a share.",
                "Expected a number between 0 and 1.",
                "0.3 freezes the 30 % of the tensors with the smallest gradients.",
            )


def make_rule(
    threshold: float | None = None, relative: float | None = None, quantile: float | None = None,
    pattern: str | None = None, scope: Scope = "mamba", kind: StatisticKind = "mean_abs",
) -> FreezeRule:  # fmt: skip
    """The rule of the command line's options; without any, the documented threshold.

    Args:
        threshold: `--freeze-threshold`.
        relative: `--freeze-relative`, a threshold of the statistic by the weight's size.
        quantile: `--freeze-quantile`.
        pattern: `--freeze`.
        scope: `--freeze-scope`.
        kind: `--statistic`.

    Raises:
        UsageError: More than one is given, or one is out of range.
    """
    given = [threshold, relative, quantile, pattern]
    if not any(value is not None for value in given):
        threshold = DOCUMENTED
    if threshold is not None and relative is not None:
        raise _several()
    limit = threshold if relative is None else relative
    return FreezeRule(limit, quantile, pattern, kind, relative is not None, scope)


def _several() -> UsageError:
    return UsageError(
        "`--freeze-threshold`, `--freeze-relative`, `--freeze-quantile` and `--freeze` exclude "
        "each other.",
        "Exactly one says what is frozen.",
        "Leave the others out.",
    )


SHARES = (
    FreezeRule(threshold=DOCUMENTED),
    FreezeRule(quantile=0.5),
    FreezeRule(quantile=0.3, scope="all"),
    FreezeRule(quantile=0.6, scope="all"),
    FreezeRule(quantile=0.9, scope="all"),
)
"""Rules that make sense for any network: the documented one, and shares of the state-space blocks
and of all tensors."""
