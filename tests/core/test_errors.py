"""Errors in three parts, with the exit code of their kind."""

from __future__ import annotations

import pytest

from robustcli.core.errors import RunError, UsageError, UsageErrors, first_line


def test_the_three_parts_are_three_lines() -> None:
    error = UsageError("`--x` is wrong.", "Expected 1, got 2.", "Use `--x 1`.")
    assert str(error) == "`--x` is wrong.\nExpected 1, got 2.\nUse `--x 1`."
    assert (error.what, error.why, error.todo) == tuple(str(error).split("\n"))


def test_a_part_that_is_not_said_leaves_no_line() -> None:
    assert str(RunError("It broke.")) == "It broke."
    assert str(RunError("It broke.", "", "Repeat.")) == "It broke.\nRepeat."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("\n  late  \n"), "late"),
        (ValueError(), "ValueError"),
        (ConnectionError("   "), "ConnectionError"),
        (ValueError("x" * 300), "x" * 200),
    ],
)
def test_first_line_of_a_foreign_error(error: Exception, line: str) -> None:
    assert first_line(error) == line


class TestUsageErrors:
    def test_one_error_is_raised_as_it_is(self) -> None:
        errors, error = UsageErrors(), UsageError("`--x` is wrong.")
        errors.check()
        with errors:
            raise error
        with pytest.raises(UsageError) as raised:
            errors.check()
        assert raised.value is error

    def test_several_are_numbered_without_levels_and_repetitions(self) -> None:
        inner, outer = UsageErrors(), UsageErrors()
        for what in ("a", "b"):
            with inner:
                raise UsageError(f"`{what}` is wrong.", "Why.", "What to do.")
        for what in ("b", "c"):
            with outer:
                raise UsageError(f"`{what}` is wrong.", "Why.", "What to do.")
        with outer:
            inner.check()
        with pytest.raises(UsageError) as raised:
            outer.check()
        assert str(raised.value) == (
            "3 settings are wrong.\n"
            "1. `b` is wrong.\n   Why.\n   What to do.\n"
            "2. `c` is wrong.\n   Why.\n   What to do.\n"
            "3. `a` is wrong.\n   Why.\n   What to do."
        )

    def test_other_errors_leave_at_once(self) -> None:
        errors = UsageErrors()
        with pytest.raises(RunError), errors:
            raise RunError("It broke.")
