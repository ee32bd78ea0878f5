"""`docs/models.md`: its snippets run, and its table holds the right names and numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from robustcli.adapters.catalogue import CATALOGUE
from robustcli.adapters.networks import create_model
from robustcli.core.names import canonical
from robustcli.models.architectures import ARCHITECTURES

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
            with torch.device("meta"):
                network = create_model(name)
            assert sum(p.numel() for p in network.parameters()) == count
            checked += 1
        for name, top1 in zip(named, published.split(";"), strict=False):
            if top1.strip():
                assert CATALOGUE[name].published == float(top1)
    assert checked == 24
