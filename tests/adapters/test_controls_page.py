"""`docs/controls.md`: the parameters in its tables are those of the networks."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from robustcli.adapters.catalogue import CATALOGUE, CONTROLS
from robustcli.models.architectures import architecture
from tests.models import golden

PAGE = (Path(__file__).parents[2] / "docs" / "controls.md").read_text(encoding="utf-8")


def rows(columns: int) -> list[list[str]]:
    cells = [re.split(r" *\| *", line.strip("| ")) for line in PAGE.splitlines()]
    return [row for row in cells if len(row) == columns and row[0].startswith("`")]


def count(text: str) -> int:
    return int(text.replace(",", ""))


def test_parameters_with_and_without_scan() -> None:
    table = rows(4)
    assert len(table) == 16
    for name, full, left, share in table:
        name = name.strip("`")
        with torch.device("meta"):
            parameters = golden.parameters(architecture(name).build(ablate="scan"))
        assert [count(full), count(left)] == [CATALOGUE[name].parameters, parameters]
        assert share == f"{100 * (1 - count(left) / count(full)):.1f} %"


def test_networks_without_mamba_are_all_named() -> None:
    table = {name.strip("`"): count(parameters) for name, _, parameters in rows(3)}
    assert set(table) == {name for controls in CONTROLS.values() for name in controls}
    assert all(CATALOGUE[name].parameters == parameters for name, parameters in table.items())
