"""One training in two processes, started by the command line and by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustcli.training.engine import run_training
from robustcli.training.record import read_train_record
from tests.training.images import write_pairs, write_photos
from tests.training.runs import tiny_classifier, tiny_unet

# Without batch normalisation, whose statistics would depend on the batch of each process.
_OVERRIDES: dict[str, Any] = {
    "model": "ulvm", "model_args": {}, "window": 32, "loss": "bce", "aug": "none", "epochs": 2
}  # fmt: skip
_SCRIPT = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.runs import tiny_unet
from tests.training.test_ddp import _OVERRIDES

data, out, devices = sys.argv[1:]
run_training(tiny_unet(Path(data), Path(out), **_OVERRIDES, devices=int(devices)))
print("finished")
"""


def environment() -> dict[str, str]:
    """Makes the tests importable in subprocesses, which use one core each."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def run_script(text: str, folder: Path, *arguments: object, launcher: Sequence[str] = ()) -> None:
    """Runs `text` as a script, which must print "finished" once."""
    script = folder / "train.py"
    script.write_text(text)
    child = subprocess.run(
        [sys.executable, *launcher, str(script), *map(str, arguments)],
        env=environment(), capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.count("finished") == 1


def assert_equal_metrics(run: Path, single: Path, columns: Sequence[str]) -> None:
    record = read_train_record(run)
    assert (record.status, record.devices) == ("complete", 2)
    metrics, expected = (pd.read_csv(r / "metrics.csv") for r in (run, single))
    assert metrics["step"].tolist() == expected["step"].tolist() == [3, 6]
    for column in columns:
        assert metrics[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_two_processes_train_a_segmenter_like_one(tmp_path: Path, torchrun: bool) -> None:
    """For equally many pixels, the mean gradient of the two halves equals that of the batch."""
    data, run = write_pairs(tmp_path / "data", 14), tmp_path / "run"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if torchrun else []
    run_script(_SCRIPT, tmp_path, data, run, "1" if torchrun else "2", launcher=launcher)
    single = run_training(tiny_unet(data, tmp_path / "single", **_OVERRIDES))
    assert_equal_metrics(run, single, ("train_loss", "grad_norm", "val_loss", "val_dice"))


_SCRIPT_DDP = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.runs import tiny_classifier

run_training(tiny_classifier(sys.argv[1], Path(sys.argv[2]), epochs=2, devices=2))
print("finished")
"""


@pytest.mark.slow
def test_two_processes_train_a_classifier_like_one(tmp_path: Path) -> None:
    """Layer normalisation does not depend on the batch, so the gradients are equal."""
    data, run = write_photos(tmp_path / "paints", 12), tmp_path / "run"
    run_script(_SCRIPT_DDP, tmp_path, data, run)
    single = run_training(tiny_classifier(data, tmp_path / "single", epochs=2))
    assert_equal_metrics(run, single, ("train_loss", "grad_norm", "val_top1", "val_f1"))
