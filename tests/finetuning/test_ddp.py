"""A fine-tuning in two processes: separate processes per mode, and equal frozen sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.record import read_finetune_record
from robustcli.training.record import read_train_record
from tests.finetuning.test_mode_trainings import HALF_RULE
from tests.finetuning.tunings import tiny_tuning, write_pretrained
from tests.training.images import write_pairs
from tests.training.test_ddp import environment

_SCRIPT = """
import sys
from pathlib import Path
from robustcli.finetuning.mode_trainings import run_finetuning
from tests.finetuning.test_mode_trainings import HALF_RULE
from tests.finetuning.tunings import tiny_tuning

data, weights, out = map(Path, sys.argv[1:])
run_finetuning(tiny_tuning(data, out, weights, rule=HALF_RULE, epochs=2, devices=2))
print("finished")
"""


@pytest.mark.slow
def test_two_processes_freeze_what_one_does(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 14)
    weights = write_pretrained(tmp_path / "weights.safetensors")
    script, run = tmp_path / "tune.py", tmp_path / "run"
    script.write_text(_SCRIPT)
    child = subprocess.run(
        [sys.executable, str(script), str(data), str(weights), str(run)],
        env=environment(), capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.count("finished") == 1
    record = read_finetune_record(run)
    assert (record.status, record.modes) == ("complete", ["scratch", "full", "freeze"])
    for mode in record.modes:
        train_record = read_train_record(run / mode)
        assert (train_record.status, train_record.devices) == ("complete", 2)
    single = run_finetuning(
        tiny_tuning(data, tmp_path / "single", weights, mode="freeze", rule=HALF_RULE, epochs=2)
    )
    joint, single_frozen = (pd.read_csv(r / "frozen.csv")["frozen"].tolist() for r in (run, single))
    equal = sum(a == b for a, b in zip(joint, single_frozen, strict=True))
    assert equal >= len(joint) - 4, "more than near ties differ"
    steps = pd.read_csv(run / "freeze" / "iterations.csv")["trainable"].tolist()
    assert steps[0] == steps[1] > steps[2] == steps[-1]
