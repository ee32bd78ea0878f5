"""Numbers as text, rounded to their significant digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

EN_DASH = "\N{EN DASH}"
MISSING = EN_DASH
ONE_DECIMAL_UP_TO = 2000


def decimals(n: int) -> int:
    """Decimals of a percentage of `n` images: one up to 2000 (an image is 0.05 %), else two."""
    return 1 if n <= ONE_DECIMAL_UP_TO else 2


def percent(share: float | None, n: int) -> str:
    """`share` (a fraction of `n` images) in percent without the sign, or a dash if missing.

    A share below 1 has more decimals instead of being rounded to 100: not all images are correct.
    """
    if share is None or is_missing(share):
        return MISSING
    text = _percent(share, decimals(n))
    for digits in range(decimals(n) + 1, 7):
        if share >= 1 or float(text) < 100:
            break
        text = _percent(share, digits)
    return text


def _percent(share: float, digits: int) -> str:
    return _without_minus_zero(f"{100 * float(share):.{digits}f}")


def percent_range(low: float | None, high: float | None, n: int, to: str = EN_DASH) -> str:
    """The interval `low` to `high` in percent, joined by `to`."""
    if low is None or high is None or is_missing(low) or is_missing(high):
        return MISSING
    return f"{_percent(low, decimals(n))}{to}{_percent(high, decimals(n))}"


def fraction(value: float | None) -> str:
    """`value`, a dice or IoU in [0, 1], with three decimals as is usual."""
    return decimal(value, 3)


def fraction_range(low: float | None, high: float | None, to: str = EN_DASH) -> str:
    """The interval `low` to `high` of a dice or IoU, joined by `to`."""
    if is_missing(low) or is_missing(high):
        return MISSING
    return f"{fraction(low)}{to}{fraction(high)}"


def with_range(value: float | None, low: float | None, high: float | None) -> str:
    """A dice or IoU with its interval, if it has one."""
    ends = "" if is_missing(low) or is_missing(high) else f" ({fraction_range(low, high)})"
    return f"{fraction(value)}{ends}"


def signed(value: float | None) -> str:
    """A difference of dice, with its sign."""
    if is_missing(value):
        return MISSING
    text = f"{float(value or 0):+.3f}"
    return "0.000" if text in ("+0.000", "-0.000") else text


def as_printed(value: float | None) -> str:
    """A published dice or IoU with its published digits, at least four."""
    if is_missing(value):
        return MISSING
    number = float(value or 0)
    return f"{number:.4f}" if abs(round(number, 4) - number) < 1e-9 else f"{number:g}"


def duration(seconds: float | None) -> str:
    """A duration in its two largest units: `48 min 28 s`, `3 h 5 min`, `7.2 s`."""
    if is_missing(seconds):
        return MISSING
    value = float(seconds or 0)
    if value < 60:
        return f"{value:.1f} s"
    rounded = round(value)
    hours, minutes = rounded // 3600, rounded % 3600 // 60
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rounded % 60} s"


def p_value(p: float | None) -> str:
    """A p-value rounded to its significant digits, or a dash if missing.

    A value above 0.05 is not rounded to 0.050, which would be significant.
    """
    if p is None:
        return MISSING
    if 0.05 < p < 0.051:
        return "0.051"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_equals(p: float | None) -> str:
    """A p-value after its name: `= 0.012`, `< 0.001`."""
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


def probability(value: float) -> str:
    """A probability from resamples, in percent with the sign."""
    if 0 < value < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if 0.999 < value < 1 else f"{100 * value:.1f} %"


def confidence(value: float) -> str:
    """The probability that a model gives a class of one image, in percent with the sign."""
    return f"{percent(value, 1)}\N{NO-BREAK SPACE}%"


def statistic(value: float | None) -> str:
    """A statistic with two significant digits."""
    if value is None or is_missing(value):
        return MISSING
    return "0" if value == 0 else f"{value:.1e}"


def seconds(value: float) -> str:
    """A short duration: `0.231 s`, `12 ms`, `1.2 s`."""
    if value < 0.1:
        return f"{decimal(1000 * value)} ms"
    return f"{value:.3f} s" if value < 1 else duration(value)


def gibibytes(count: int | None) -> str:
    """`count` bytes in GiB (2³⁰ bytes)."""
    return MISSING if count is None else f"{decimal(count / 2**30, 2)} GiB"


def mebibytes(count: int | None) -> str:
    """`count` bytes in MiB (2²⁰ bytes)."""
    return MISSING if count is None else f"{decimal(count / 2**20, 0)} MiB"


def megabytes(count: int | None, digits: int | None = None) -> str:
    """`count` bytes in MB (10⁶ bytes), with `digits` decimals.

    By default three decimals below 10 MB, else one, so that a few frozen tensors make a difference.
    """
    if count is None:
        return MISSING
    exact = 3 if count < 1e7 else 1
    return f"{decimal(count / 1e6, exact if digits is None else digits)} MB"


def watt_hours(joules: float | None, digits: int = 1) -> str:
    """An energy in watt-hours."""
    return MISSING if joules is None else f"{decimal(joules / 3600, digits)} Wh"


def decimal(value: float | None, digits: int = 1) -> str:
    """`value` with `digits` decimals and thousands separators, or a dash if missing."""
    if is_missing(value):
        return MISSING
    return _without_minus_zero(f"{float(value or 0):,.{digits}f}")


def short_count(value: float | None) -> str:
    """A large number with three digits: `842`, `18.3 k`, `18.3 M`, `1.81 G`, or a dash."""
    if value is None or is_missing(value):
        return MISSING
    if value < 1000:
        return f"{value:.0f}"
    power = min(4, int(math.log10(float(f"{value:.3g}"))) // 3)
    scaled = value / 1000**power
    digits = max(0, 2 - int(math.log10(float(f"{scaled:.3g}"))))
    return f"{scaled:.{digits}f} {'kMGT'[power - 1]}"


def thousands(value: int) -> str:
    """`value` with thousands separators: `3,929`."""
    return f"{value:,}"


def general(value: float) -> str:
    """`value` with at most six significant digits: `0.001`, `1e-06`."""
    return f"{value:g}"


def is_missing(value: float | None) -> bool:
    """Whether the number is unknown (None, NaN or infinite)."""
    return value is None or not math.isfinite(value)


def cell_label(transform: str, severity: int) -> str:
    """The name of a cell: the transform's name, and its severity if it has one."""
    return f"{transform}, severity {severity}" if severity else transform


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The names in a sentence: `a`, `a and b`, `a, b and c`, `a, b, c and 4 others`."""
    listed = list(names)
    if len(listed) > most + 1:
        listed = [*listed[:most], f"{len(listed) - most} others"]
    return " and ".join([part for part in (", ".join(listed[:-1]), *listed[-1:]) if part])


def _without_minus_zero(text: str) -> str:
    return text.removeprefix("-") if not text.strip("-0.,") else text
