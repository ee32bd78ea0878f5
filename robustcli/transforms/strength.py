"""The one rule by which a parameter's range becomes severities 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Span:
    """The range of a parameter, and the value in it that changes an image least.

    Severity 0 draws from the whole range. Severity s goes s/5 of the way from `mild` to the far
    end; a range that reaches to both sides of `mild` does so on either side, and which one is
    drawn per image with equal chance. So severity 5 is the far end of the range.

    Args:
        low: Lower end.
        high: Upper end.
        mild: Value of least effect: the lower end, or the neutral value between the ends.
        whole: Whether the parameter takes whole numbers only.
    """

    low: float
    high: float
    mild: float
    whole: bool = False

    def at(self, severity: int) -> Any:
        """`{"range": [low, high]}` at severity 0, else a number or `{"one_of": [below, above]}`."""
        if severity == 0:
            return {"range": [self.low, self.high]}
        above = self._part_way(self.high, severity)
        if self.mild == self.low:
            return above
        return {"one_of": [self._part_way(self.low, severity), above]}

    def _part_way(self, end: float, severity: int) -> float:
        value = self.mild + (end - self.mild) * severity / SEVERITIES[-1]
        # Ten digits hide the binary rounding of 0.1 * 3 and are far finer than any pixel.
        return round(value) if self.whole else round(value, 10)


def settings_at(settings: Mapping[str, Any], severity: int) -> dict[str, Any]:
    """`settings` with every `Span` in it replaced by its value at `severity`."""
    return {name: _value_at(value, severity) for name, value in settings.items()}


def has_span(settings: Mapping[str, Any]) -> bool:
    """Whether any parameter in `settings` has a range, and so the transform has severities."""
    return any(
        isinstance(value, Span) or (isinstance(value, Mapping) and has_span(value))
        for value in settings.values()
    )


def _value_at(value: Any, severity: int) -> Any:
    if isinstance(value, Span):
        return value.at(severity)
    return settings_at(value, severity) if isinstance(value, Mapping) else value
