import pytest

from robustcli.reports.numbers import (
    as_printed,
    cell_label,
    decimal,
    duration,
    fraction,
    fraction_range,
    is_missing,
    mebibytes,
    megabytes,
    p_value,
    percent,
    percent_range,
    seconds,
    signed,
    statistic,
    with_range,
)

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [(0.83904, 2000, "83.9"), (0.83904, 2001, "83.90"), (1.0, 10, "100.0"), (None, 10, DASH)],
)
def test_percent_has_the_digits_that_n_supports(share: float | None, n: int, expected: str) -> None:
    assert percent(share, n) == expected


@pytest.mark.parametrize(
    ("share", "expected"), [(-0.0001, "0.0"), (-0.05, "-5.0"), (float("nan"), DASH)]
)
def test_percent_of_a_drop_may_be_negative_but_never_minus_zero(
    share: float, expected: str
) -> None:
    assert percent(share, 100) == expected


def test_a_range_is_joined_and_missing_when_an_end_is() -> None:
    assert percent_range(0.5, 0.625, 8) == f"50.0{DASH}62.5"
    assert percent_range(-0.5, 0.625, 8, " to ") == "-50.0 to 62.5"
    assert percent_range(None, 0.6, 8) == percent_range(0.6, float("nan"), 8) == DASH


def test_decimals_have_thousands_separators() -> None:
    assert decimal(12345.678) == "12,345.7"
    assert decimal(-0.001, 2) == "0.00"
    assert decimal(float("inf")) == DASH


def test_missing_is_none_nan_and_infinite() -> None:
    assert [is_missing(v) for v in (None, float("nan"), float("inf"), 0.0)] == [True] * 3 + [False]


def test_a_cell_without_severity_is_called_by_its_transform() -> None:
    assert [cell_label("crop", 0), cell_label("crop", 3)] == ["crop", "crop, severity 3"]


def test_a_dice_has_three_decimals_and_its_range_too() -> None:
    assert fraction(0.86329) == "0.863"
    assert fraction_range(0.8, 0.9) == f"0.800{DASH}0.900"
    assert with_range(0.85, 0.8, 0.9) == f"0.850 (0.800{DASH}0.900)"
    assert with_range(0.85, None, None) == "0.850"
    assert fraction(None) == fraction_range(None, 0.9) == with_range(None, None, None) == DASH


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0123, "+0.012"), (-0.0123, "-0.012"), (-0.0001, "0.000"), (None, DASH)],
)
def test_a_difference_has_its_sign(value: float | None, expected: str) -> None:
    assert signed(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0.71, "0.7100"), (0.79955, "0.79955"), (None, DASH)]
)
def test_published_numbers_keep_their_digits(value: float | None, expected: str) -> None:
    assert as_printed(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        *((7.24, "7.2 s"), (60, "1 min 0 s"), (2907.6, "48 min 28 s"), (18281.9, "5 h 4 min")),
        *((3599.9, "1 h 0 min"), (None, DASH)),
    ],
)
def test_times_are_told_in_the_units_that_matter(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("share", "n", "expected"),
    [(0.9995, 2000, "99.95"), (0.99998, 50_000, "99.998"), (1.0, 2000, "100.0"), (1.2, 5, "120.0")],
)
def test_a_share_below_one_is_not_rounded_to_100_percent(
    share: float, n: int, expected: str
) -> None:
    assert percent(share, n) == expected
    assert percent_range(0.9, 0.9999, 2000) == f"90.0{DASH}100.0"


def test_a_p_value_above_the_limit_is_not_printed_as_the_limit() -> None:
    assert [p_value(p) for p in (0.05, 0.0500001, 0.0504, 0.0512)] == [
        *("0.050", "0.051", "0.051", "0.051"),
    ]


def test_sizes_have_the_digits_that_a_few_tensors_need() -> None:
    assert (megabytes(795_648), megabytes(123_456_789)) == ("0.796 MB", "123.5 MB")
    assert mebibytes(3 * 2**29) == "1,536 MiB"
    assert (seconds(0.0123), seconds(0.2312), seconds(1.25)) == ("12.3 ms", "0.231 s", "1.2 s")
    assert (p_value(0.0004), p_value(0.0156), p_value(0.25)) == ("< 0.001", "0.016", "0.25")
    values = (1.26e-8, 0.0, None, float("nan"))
    assert [statistic(value) for value in values] == ["1.3e-08", "0", DASH, DASH]
