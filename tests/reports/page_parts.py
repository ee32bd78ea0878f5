"""Reads parts of a Markdown page: sections, and lines of tables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import unified_diff
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"


def section(page: str, title: str) -> str:
    """Returns the text under the heading `title`, to the next heading of its level or higher."""
    lines = page.splitlines()
    marks = ("# ", "## ", "### ")
    start = next(i for i, line in enumerate(lines) if line.startswith(marks) and title in line)
    level = len(lines[start].split()[0])
    ends = (i for i in range(start + 1, len(lines)) if lines[i].startswith(marks[:level]))
    return "\n".join(lines[start + 1 : next(ends, None)]) + "\n"


def titles(page: str) -> list[str]:
    """Returns the headings of the second level."""
    return [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]


def line_of(page: str, start: str) -> list[str]:
    """Returns the cells of the first table line whose first cell starts with `start`."""
    lines = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def introduction(page: str) -> str:
    """Returns the text before the first section."""
    return page.split("\n## ")[0]


def assert_golden(page: str, name: str) -> None:
    """Compares a page with `golden/NAME.md`.

    With ROBUST_WRITE_GOLDEN=1 in the environment the file is written instead; review the changes.
    """
    _assert_file(page, f"{name}.md")


def assert_states(complete: str, states: Mapping[str, str], name: str) -> None:
    """Compares the pages of runs in other states with `golden/NAME.diff`.

    Per state, the file contains the beginnings of the lines that its page lacks (-), and the lines
    that it adds (+), compared with the page `complete`; widths of table columns are ignored.
    """
    file_lines = []
    for state, page in states.items():
        lines = list(unified_diff(_plain(complete), _plain(page), n=0, lineterm=""))[2:]
        file_lines += [f"=== {state}", *(_short(line) for line in lines if line.strip("+-@ "))]
    _assert_file("\n".join(line for line in file_lines if line) + "\n", f"{name}.diff")


def _plain(page: str) -> list[str]:
    return [re.sub("-{2,}", "--", re.sub(" {2,}", " ", line)) for line in page.splitlines()]


def _short(line: str) -> str:
    return "" if line.startswith("@@") else line[:60] if line.startswith("-") else line


def _assert_file(content: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("ROBUST_WRITE_GOLDEN"):
        path.write_text(content, encoding="utf-8")
    assert content == path.read_text(encoding="utf-8")
