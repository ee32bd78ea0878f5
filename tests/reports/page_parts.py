"""Parts of a Markdown page: its sections, and the lines of its tables."""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def section(page: str, title: str) -> str:
    """What stands under the heading `title`, to the next heading of its level or a higher one."""
    lines = page.splitlines()
    marks = ("# ", "## ", "### ")
    start = next(i for i, line in enumerate(lines) if line.startswith(marks) and title in line)
    level = len(lines[start].split()[0])
    ends = (i for i in range(start + 1, len(lines)) if lines[i].startswith(marks[:level]))
    return "\n".join(lines[start + 1 : next(ends, None)]) + "\n"


def titles(page: str) -> list[str]:
    """The headings of the second level."""
    return [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]


def line_of(page: str, start: str) -> list[str]:
    """The cells of the first table line whose first cell starts with `start`."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def assert_golden(page: str, name: str) -> None:
    """Compares a page with `golden/NAME.md`.

    With ROBUST_WRITE_GOLDEN=1 in the environment the file is written instead: read what changed.
    """
    path = GOLDEN / f"{name}.md"
    if os.environ.get("ROBUST_WRITE_GOLDEN"):
        path.write_text(page, encoding="utf-8")
    assert page == path.read_text(encoding="utf-8")
