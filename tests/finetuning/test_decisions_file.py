"""`frozen.csv`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import nn

from robustcli.finetuning.decisions_file import write_decisions
from robustcli.finetuning.record import FROZEN
from robustcli.finetuning.selection import Decision


def test_a_line_per_tensor(tmp_path: Path) -> None:
    net = nn.Module()
    net.scale = nn.Parameter(torch.tensor(1.0))
    net.layer = nn.Conv2d(3, 8, 3, bias=False)
    decisions = [
        Decision("scale", 1, True, None, False, "never had a gradient"),
        Decision("layer.weight", 216, False, 1.25e-7, True, "below 1e-06, with a comma"),
    ]
    write_decisions(tmp_path / "frozen.csv", decisions, net)
    rows = pd.read_csv(tmp_path / "frozen.csv", dtype={"shape": str})
    assert tuple(rows.columns) == FROZEN
    assert rows["shape"].tolist() == ["1", "8x3x3x3"]
    assert rows["statistic"].isna().tolist() == [True, False]
    assert rows["statistic"][1] == 1.25e-7
    assert rows[["mamba", "frozen"]].to_numpy().tolist() == [[1, 0], [0, 1]]
    assert rows["why"][1] == "below 1e-06, with a comma"
