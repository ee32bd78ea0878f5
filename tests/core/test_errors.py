"""Errors in three parts, with the exit code of their kind."""

from __future__ import annotations

import pytest

from robustcli.core.errors import RunError, UsageError, first_line


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
