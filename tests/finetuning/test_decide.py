"""What is frozen before any step, and how it is told."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from robustcli.finetuning.decide import (
    frozen_names,
    keep_known,
    known_decisions,
    saving_of,
    tell,
    write_decisions,
)
from robustcli.finetuning.finetune_plan import FinetunePlan, plan_finetuning
from robustcli.finetuning.record import FROZEN
from robustcli.finetuning.rules import FreezeRule
from robustcli.finetuning.selection import Decision
from tests.finetuning.tunings import network, tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("given")
    return write_pairs(folder / "data", 14), write_pretrained(folder / "weights.safetensors")


def made(given: tuple[Path, Path], out: Path, **said: object) -> FinetunePlan:
    return plan_finetuning(tuning(given[0], out, given[1], **said), Heard())


def test_names_decide_at_once_and_thresholds_later(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    rule = FreezeRule(pattern="encoder")
    by_name = made(given, tmp_path / "run", rule=rule)
    decisions = known_decisions(by_name, network())
    assert decisions is not None
    assert {d.name.split(".")[0] for d in decisions if d.frozen} == {"encoder"}
    assert known_decisions(made(given, tmp_path / "run"), network()) is None
    alone = made(given, tmp_path / "run", rule=rule, profile_only=True)
    assert known_decisions(alone, network()) is None


def test_the_file_gives_the_names_back(given: tuple[Path, Path], tmp_path: Path) -> None:
    plan = made(given, tmp_path / "run", rule=FreezeRule(pattern="encoder"))
    decisions = known_decisions(plan, network())
    assert decisions is not None
    keep_known(plan, decisions, network())
    assert frozen_names(plan.run) == [d.name for d in decisions if d.frozen]
    assert pd.read_csv(plan.run / "frozen.csv")["statistic"].isna().all()


def test_a_frozen_prefix_saves_its_backward_pass(given: tuple[Path, Path], tmp_path: Path) -> None:
    plan, net = made(given, tmp_path / "run"), network()
    names = [name for name, _ in net.named_parameters()]
    prefix = [name for name in names if name.startswith("encoder.")]
    saved = saving_of(plan, prefix, net)
    assert saved.parameters == sum(p.numel() for p in net.parameters())
    assert saved.frozen == sum(p.numel() for n, p in net.named_parameters() if n in prefix)
    assert saved.optimizer_bytes == 8 * saved.parameters
    assert 0.2 < saved.flops_saved / saved.flops < 0.6
    assert saving_of(plan, [], net).flops_saved == 0
    assert all(p.requires_grad for p in net.parameters())


def test_what_is_told(given: tuple[Path, Path], tmp_path: Path) -> None:
    plan = made(given, tmp_path / "run", rule=FreezeRule(pattern="encoder"))
    said: list[str] = []
    decisions = known_decisions(plan, network())
    assert decisions is not None
    tell(decisions, plan, network(), said.append)
    count = sum(d.frozen for d in decisions)
    (line,) = said
    assert line.startswith(f"Frozen: {count} of {len(decisions)} tensors, ")


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
