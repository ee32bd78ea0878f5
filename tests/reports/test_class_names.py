"""Class names with special characters of HTML, Markdown tables or spreadsheets."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

import robustcli

NAMES = ("<img src=x onerror=alert(1)>", "a|b `c`", "=1+1", "@sum(1)")


def test_names_of_classes_are_shown_and_never_obeyed(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for index in range(2):
            pixels = np.random.default_rng((number, index)).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{index}.png")
    network = nn.Sequential(nn.Flatten(), nn.Linear(8 * 8 * 3, 4)).eval()
    run = robustcli.evaluate(
        network, tmp_path / "data", "identity", out=tmp_path / "run", classes=NAMES,
        preprocessing={"resize": 8, "crop": 8}, workers=0, device="cpu",
    )  # fmt: skip
    run.report()
    page = (run.path / "report.html").read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x" in page
    for line in (run.path / "report.md").read_text().splitlines():
        assert "<img src=x" not in re.sub(r"(`+).*?\1(?!`)", "", line), (
            "HTML may only appear as code"
        )
    with (run.path / "classes.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell[:1] in ("=", "@")]
    assert any("1+1" in cell for cell in cells)
