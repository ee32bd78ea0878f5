"""Two processes on one training of a classifier."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from robustcli.training.record import read_train_record
from robustcli.training.train import run_training
from tests.training.classification.runs import tiny
from tests.training.photos import write_photos
from tests.training.test_ddp import environment

_SCRIPT = """
import sys
from pathlib import Path
from robustcli.training.train import run_training
from tests.training.classification.runs import tiny

run_training(tiny(sys.argv[1], Path(sys.argv[2]), epochs=2, devices=2))
print("finished")
"""


@pytest.mark.slow
def test_two_processes_come_to_the_numbers_of_one(tmp_path: Path) -> None:
    """Layer normalisation knows no batch: the mean gradient of two halves is that of the whole."""
    data = write_photos(tmp_path / "paints", 12)
    script, run = tmp_path / "train.py", tmp_path / "run"
    script.write_text(_SCRIPT)
    child = subprocess.run(
        [sys.executable, str(script), str(data), str(run)],
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.count("finished") == 1
    assert read_train_record(run).devices == 2
    single = run_training(tiny(data, tmp_path / "single", epochs=2))
    metrics, expected = (pd.read_csv(r / "metrics.csv") for r in (run, single))
    assert metrics["step"].tolist() == expected["step"].tolist() == [3, 6]
    for column in ("train_loss", "grad_norm", "val_top1"):
        assert metrics[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-3)
