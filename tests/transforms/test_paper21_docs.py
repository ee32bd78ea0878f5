"""`docs/transforms.md` states the parameters that the code uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from robustcli.transforms.augmented import Augmented
from robustcli.transforms.paper21 import PAPER21

DOCS = Path(__file__).parents[2] / "docs" / "transforms.md"


@pytest.mark.parametrize("one", PAPER21, ids=lambda one: str(one.name))
def test_the_documentation_states_the_parameters(one: Augmented) -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    head = f"| `{one.name}` | `{one.augmenter}` | {_in_words(one.parameters(0))} |"
    assert any(line.startswith(head) for line in lines), head
    for parameter in _varying(one):
        values = [_in_words(one.parameters(s)[parameter]) for s in one.severities]
        row = f"| `{one.name}` | {parameter} | {' | '.join(values)} |"
        assert row in lines, row


def _varying(one: Augmented) -> list[str]:
    if not one.severities:
        return []
    weak, strong = one.parameters(1), one.parameters(5)
    return [parameter for parameter in weak if weak[parameter] != strong[parameter]]


def _in_words(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if "range" in value:
        return " to ".join(_in_words(bound) for bound in value["range"])
    if "one_of" in value:
        return " or ".join(_in_words(bound) for bound in value["one_of"])
    if value.keys() == {"x", "y"}:
        return f"x and y: {_in_words(value['x'])}"
    return ", ".join(f"{name} {_in_words(part)}" for name, part in value.items())
