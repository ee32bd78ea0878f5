"""`OUT/frozen.csv`: what became of every tensor, and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from robustcli.core.atomic import write_text
from robustcli.finetuning.record import FROZEN
from robustcli.finetuning.selection import Decision


def write_decisions(path: Path, decisions: Sequence[Decision], network: nn.Module) -> None:
    """Writes `decisions` on the tensors of `network` to `path`, durably."""
    shapes = {n: "x".join(map(str, p.shape)) or "1" for n, p in network.named_parameters()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(FROZEN)
    for d in decisions:
        said = "" if d.statistic is None else repr(d.statistic)
        writer.writerow([d.name, shapes[d.name], d.count, int(d.mamba), said, int(d.frozen), d.why])
    write_text(path, text.getvalue())
