"""`docs/models.md` and `docs/controls.md`: names, numbers and snippets are the networks' own."""

from __future__ import annotations

import json
import math
import re
from importlib.resources import files
from pathlib import Path

import pytest
from scipy.stats import binomtest

from robustcli.adapters.catalogue import CATALOGUE, CONTROLS
from robustcli.core.names import canonical
from robustcli.models.ablation import scan_parameters
from robustcli.models.architectures import ARCHITECTURES
from tests.models import golden

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
ROWS = [row.split("|") for row in PAGE.splitlines() if row.startswith("| `")]


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 4


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"snippet {number}", "exec"), {})


def test_every_network_is_named() -> None:
    text = canonical(PAGE)
    ranged = {f"ulvm_v{number}" for number in range(2, 6)}  # "`ulvm_v1` ... `ulvm_v6`"
    assert [n for n in ARCHITECTURES if f"`{canonical(n)}`" not in text and n not in ranged] == []


def test_parameters_and_published_numbers_of_the_table() -> None:
    checked = 0
    for _, names, _, parameters, published, _ in (row for row in ROWS if len(row) == 6):
        stated = [int(n.replace(",", "")) for n in re.findall(r"[\d,]{5,}", parameters)]
        named = re.findall(r"`([\w-]+)`", names)
        for name, count in zip(named, stated, strict=False):
            assert CATALOGUE[name].parameters == count
            checked += 1
        for name, top1 in zip(named, published.split(";"), strict=False):
            if top1.strip():
                assert CATALOGUE[name].published == float(top1)
    assert checked == 33


def test_the_bundled_classifiers_are_as_their_records_say() -> None:
    """Epochs and accuracy of the table; SciPy gives the interval."""
    rows = {cells[1].strip(): cells[2:4] for cells in map(_cells, PAGE.splitlines()) if cells}
    for place, name in enumerate(("vmamba-pico", "resnet-pico")):
        facts = json.loads((files("robustcli") / "assets" / f"{name}.json").read_text("utf-8"))
        assert int(rows["epochs"][place]) == facts["recipe"]["epochs"]
        correct, n = round(facts["test_top1"] * facts["test_images"]), facts["test_images"]
        low, high = binomtest(correct, n).proportion_ci(method="wilson")
        shown = f"{100 * correct / n:.2f} % ({100 * low:.2f} to {100 * high:.2f})"
        assert rows["top-1 on the 10,000 test images, 95 % interval"][place].strip() == shown


def _cells(line: str) -> list[str]:
    return line.split("|") if line.startswith("|") and line.count("|") == 4 else []


CONTROLS_PAGE = (Path(__file__).parents[2] / "docs" / "controls.md").read_text(encoding="utf-8")


def control_rows(columns: int) -> list[list[str]]:
    cells = [re.split(r" *\| *", line.strip("| ")) for line in CONTROLS_PAGE.splitlines()]
    return [row for row in cells if len(row) == columns and row[0].startswith("`")]


def count(text: str) -> int:
    return int(text.replace(",", ""))


def test_parameters_with_and_without_scan() -> None:
    table = control_rows(4)
    assert len(table) == 16
    for name, full, left, share in table:
        name = name.strip("`")
        removed = map(math.prod, scan_parameters(golden.published(name)).values())
        parameters = CATALOGUE[name].parameters
        assert [count(full), count(left)] == [parameters, parameters - sum(removed)]
        assert share == f"{100 * (1 - count(left) / count(full)):.1f} %"


def test_networks_without_mamba_are_all_named() -> None:
    table = {name.strip("`"): count(parameters) for name, _, parameters in control_rows(3)}
    assert set(table) == {name for controls in CONTROLS.values() for name in controls}
    assert all(CATALOGUE[name].parameters == parameters for name, parameters in table.items())
