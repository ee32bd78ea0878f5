"""Freezing rules: pure functions from gradient statistics to the parameters to freeze."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from robustcli.core.errors import UsageError
from robustcli.finetuning.gradients import Statistic, StatisticKind

Scope = Literal["mamba", "all"]
LEAST_FOR_CHANGE = 3
"""Shortest profile, in iterations, with an early and a late change of gradients."""
DOCUMENTED = 1e-6
"""Source: "Exploring SSMs for Vision Tasks" (Team 23): the threshold of its command."""


@dataclass(frozen=True)
class FreezeRule:
    """A freezing rule; exactly one of `threshold`, `quantile`, `change` and `pattern` is set.

    Args:
        threshold: Freeze tensors whose statistic is below it, at least 0.
        quantile: Freeze this share of the tensors in scope, those with the smallest statistics, in
            (0, 1).
        change: Freeze tensors whose `Statistic.change_ratio` is below this share, in (0, 1): the
            late change of gradients between iterations over the early one. GradES (arXiv
            2509.01842) instead compares the change with one threshold for all tensors in every
            iteration; this rule decides once, after the profile.
        pattern: Freeze tensors whose name, or the name of a module that contains them, matches one
            of these globs, separated by commas; scope `all`.
        kind: The statistic to compare; `change` for a `change` rule.
        relative: Divide the statistic by the weight's root mean square.
        scope: `mamba` (parameters of state-space blocks) or `all`.
    """

    threshold: float | None = None
    quantile: float | None = None
    pattern: str | None = None
    kind: StatisticKind = "mean_abs"
    relative: bool = False
    scope: Scope = "mamba"
    change: float | None = None

    def __post_init__(self) -> None:
        values = [self.threshold, self.quantile, self.pattern, self.change]
        if sum(value is not None for value in values) != 1:
            raise _several()
        if self.threshold is not None and not 0 <= self.threshold < math.inf:
            flag = "--freeze-relative" if self.relative else "--freeze-threshold"
            raise UsageError(
                f"`{flag} {self.threshold:g}` is not a valid gradient threshold.",
                "Expected a number of at least 0.",
                "Try 1e-3, a thousandth of the size of the weights."
                if self.relative
                else "The documented value is 1e-6.",
            )
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise UsageError(
                f"`--freeze-quantile {self.quantile:g}` is not a fraction.",
                "Expected a number between 0 and 1.",
                "0.3 freezes the 30 % of the tensors with the smallest gradients.",
            )
        if self.change is not None and not 0 < self.change < 1:
            raise UsageError(
                f"`--freeze-change {self.change:g}` is not a fraction of the early change.",
                "Expected a number between 0 and 1.",
                "0.5 freezes the tensors whose gradient changes less than half as much as early "
                "in the profile.",
            )


def make_rule(
    threshold: float | None = None, relative: float | None = None, quantile: float | None = None,
    pattern: str | None = None, scope: Scope = "mamba", kind: StatisticKind = "mean_abs",
    change: float | None = None,
) -> FreezeRule:  # fmt: skip
    """The rule for the command-line options; by default the documented threshold.

    Raises:
        UsageError: More than one rule is given, or a value is out of range.
    """
    values = [threshold, relative, quantile, pattern, change]
    if not any(value is not None for value in values):
        threshold = DOCUMENTED
    if threshold is not None and relative is not None:
        raise _several()
    limit = threshold if relative is None else relative
    if change is not None:
        if kind not in ("mean_abs", "change"):
            raise UsageError(
                f"`--statistic {kind}` cannot be used with `--freeze-change`.",
                "This rule compares the changes of gradients late and early in the profile.",
                "Omit `--statistic`.",
            )
        kind = "change"
    return FreezeRule(limit, quantile, pattern, kind, relative is not None, scope, change)


def _several() -> UsageError:
    return UsageError(
        "`--freeze-threshold`, `--freeze-relative`, `--freeze-quantile`, `--freeze-change` and "
        "`--freeze` exclude each other.",
        "Only one rule can select the frozen tensors.",
        "Omit the others.",
    )


COMMON_RULES = (
    FreezeRule(threshold=DOCUMENTED),
    FreezeRule(quantile=0.5),
    FreezeRule(quantile=0.3, scope="all"),
    FreezeRule(quantile=0.6, scope="all"),
    FreezeRule(quantile=0.9, scope="all"),
    FreezeRule(change=0.5, scope="all", kind="change"),
)
"""Rules of a sweep for any network: the documented threshold, shares of the state-space blocks and
of all tensors, and gradients whose change fell to half of the early one."""


@dataclass(frozen=True)
class Decision:
    """Whether one tensor is frozen, its statistic (None if the rule needs none), and the reason."""

    name: str
    count: int
    mamba: bool
    statistic: float | None
    frozen: bool
    why: str


def freeze_decisions(
    statistics: Mapping[str, Statistic], rule: FreezeRule, heads: Sequence[str] = ()
) -> list[Decision]:
    """One decision per tensor of `statistics`, in the same order.

    Args:
        statistics: Gradient statistics of all parameters of a network, by name.
        rule: The freezing rule.
        heads: Name prefixes of layers that are new in the target task and never frozen.

    Raises:
        UsageError: Only heads would be left to train, or a glob of a pattern matches no parameter
            that can be frozen.
    """
    prefixes, decisions = tuple(heads), []
    limit = _quantile_limit(statistics, rule, prefixes) if rule.quantile is not None else None
    for name, statistic in statistics.items():
        value = measure_of(statistic, rule)
        frozen, why = _verdict(name, statistic, rule, limit, prefixes, value)
        shown = None if math.isnan(value) else value
        decisions.append(Decision(name, statistic.count, statistic.mamba, shown, frozen, why))
    _check(decisions, statistics, rule, prefixes)
    return decisions


def measure_of(statistic: Statistic, rule: FreezeRule) -> float:
    """The number that `rule` compares; NaN if the tensor never had a gradient."""
    if rule.change is not None:
        return statistic.change_ratio
    value = statistic.by_kind[rule.kind]
    return value / max(statistic.weight_rms, 1e-30) if rule.relative else value


def _verdict(
    name: str, statistic: Statistic, rule: FreezeRule, limit: float | None,
    heads: tuple[str, ...], value: float,
) -> tuple[bool, str]:  # fmt: skip
    if name.startswith(heads):
        return False, "a head of the new task"
    if rule.pattern is not None:
        fits = fits_pattern(name, rule.pattern)
        return fits, f"{'matches' if fits else 'does not match'} `{rule.pattern}`"
    if rule.scope == "mamba" and not statistic.mamba:
        return False, "not in a state-space block"
    if math.isnan(value):
        why = "has no change to compare" if rule.change is not None else "never had a gradient"
        return False, why
    if limit is not None:
        return (
            value <= limit,
            f"{'among' if value <= limit else 'above'} the lowest {rule.quantile:g}",
        )
    threshold = rule.threshold if rule.change is None else rule.change
    assert threshold is not None
    below = value < threshold
    return below, f"{'below' if below else 'not below'} {threshold:g}"


def fits_pattern(name: str, pattern: str) -> bool:
    """Whether `name`, or a module that contains it, matches a glob of `pattern`.

    Args:
        name: Name of a parameter tensor.
        pattern: Globs separated by commas; names contain no comma.
    """
    parts = name.split(".")
    names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]  # modules and tensor
    return any(fnmatch.fnmatchcase(part, glob) for glob in _globs(pattern) for part in names)


def _globs(pattern: str) -> list[str]:
    """The globs of a pattern."""
    return [glob.strip() for glob in pattern.split(",") if glob.strip()]


def _in_scope(
    statistics: Mapping[str, Statistic], rule: FreezeRule, heads: tuple[str, ...]
) -> list[float]:
    values = [
        measure_of(statistic, rule)
        for name, statistic in statistics.items()
        if (statistic.mamba or rule.scope == "all") and not name.startswith(heads)
    ]
    return sorted(value for value in values if not math.isnan(value))


def _quantile_limit(
    statistics: Mapping[str, Statistic], rule: FreezeRule, heads: tuple[str, ...]
) -> float:
    """The largest statistic within the quantile; -inf if the quantile contains no tensor."""
    assert rule.quantile is not None
    values = _in_scope(statistics, rule, heads)
    count = math.floor(rule.quantile * len(values) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return values[count - 1] if count else -math.inf


def _check(
    decisions: Sequence[Decision], statistics: Mapping[str, Statistic], rule: FreezeRule,
    heads: tuple[str, ...],
) -> None:  # fmt: skip
    if rule.pattern is not None:
        _check_pattern(decisions, rule.pattern)
        return
    if rule.change is not None and all(d.statistic is None for d in decisions):
        raise UsageError(
            f"`--freeze-change {rule.change:g}` needs the changes of gradients, which the profile "
            "does not contain.",
            f"The profile has fewer than {LEAST_FOR_CHANGE} steps, or was measured by a version "
            "of robust that did not store the changes.",
            "Create a profile with `--profile-only --profile-iterations 40`.",
        )
    body = [d for d in decisions if not d.name.startswith(heads)]
    if all(
        d.frozen for d in body if d.statistic is not None
    ):  # a tensor without a gradient is not trained
        highest = _in_scope(statistics, rule, heads)[-1:] or [0.0]
        raise UsageError(
            "No tensor would be trained" + (" except the heads." if heads else "."),
            f"All {len(body)} tensors below them would be frozen."
            if heads
            else f"All {len(body)} tensors would be frozen.",
            f"The highest useful threshold is {_rounded_down(highest[0]):g}, which leaves one "
            f'tensor; to train only the heads, use `--freeze "*"`.',
        )


def _check_pattern(decisions: Sequence[Decision], pattern: str) -> None:
    for glob in _globs(pattern) or [pattern]:
        matches = [d for d in decisions if fits_pattern(d.name, glob)]
        if any(d.frozen for d in matches):
            continue
        part = "" if glob == pattern else f": `{glob}`"
        if matches:
            raise UsageError(
                f"`--freeze {pattern}`{part} matches only layers that are new in this task.",
                f"`{matches[0].name}`, for example, has no pretrained weights, so it is never "
                "frozen.",
                "Omit it; `--dry-run` prints all names.",
            )
        raise UsageError(
            f"`--freeze {pattern}`{part} matches no parameter.",
            f"Names of parameters are, for example, `{decisions[0].name}` and "
            f"`{decisions[-1].name}`.",
            "Put the pattern in quotes; `--dry-run` prints all names.",
        )
    if all(d.frozen for d in decisions):
        raise UsageError(
            "No tensor would be trained.",
            f"All {len(decisions)} tensors match `{pattern}`.",
            "Choose a narrower pattern.",
        )


def _rounded_down(value: float, digits: int = 3) -> float:
    """`value` rounded down to `digits` digits; rounded up, it would freeze every tensor."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.floor(value / unit) * unit:.{digits}g}")
