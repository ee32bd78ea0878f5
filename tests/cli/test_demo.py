"""What `make demo` runs after the installation, on a few images and transforms."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from tests.cli.conftest import Robust

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def commands() -> list[list[str]]:
    """The arguments of `robust` in the rule `demo`."""
    rule = re.search(r"^demo:.*\n((?:\t.*\n)+)", MAKEFILE.read_text("utf-8"), re.MULTILINE)
    assert rule is not None
    lines = [shlex.split(line.replace("$(DEMO)", "demo")) for line in rule[1].splitlines()]
    assert {line[0] for line in lines} == {"$(BIN)/robust"}
    return [line[1:] for line in lines]


def test_it_ends_with_a_verdict_and_its_p_value(robust: Robust) -> None:
    first, *others = commands()
    assert first[first.index("--transform") + 1] == "paper21"
    first[first.index("--transform") + 1] = "gaussian_*"
    assert robust(*first, "--limit", "40", "--workers", "0").code == 0
    last = [robust(*command) for command in others][-1]
    assert last.code == 0
    untouched, verdict = last.out.splitlines()[-2:]
    assert re.search(r"adjusted p (=|<) [\d.]+, n = 40\.$", untouched)
    assert re.search(r"vmamba-pico .* resnet-pico .* of 1 transform", verdict)
    page = Path("demo", "report.md").read_text("utf-8")
    assert "adjusted p" in page
