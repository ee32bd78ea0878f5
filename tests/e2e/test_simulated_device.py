"""Commands on a simulated CUDA device: no mixed devices, and the results of the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

# Without it, the commands are tested on the CPU alone, in the tests of their packages.
pytestmark = pytest.mark.slow

SEGMENTER = ("--data", "nuclei-mini", "--limit", "12", "--workers", "0")
PHOTOS = ("--data", "cifar10-mini", "--workers", "0")
METHODS = ("integrated-gradients", "occlusion", "grad-cam")
COMMANDS = {
    "eval": (
        *("eval", "--model", "vmamba-pico", "--model", "resnet-pico", *PHOTOS, "--limit", "20"),
        *("--transform", "perspective"),
    ),
    "eval-masks": (
        *("eval", "--model", "umamba-pico", "--model", "otsu", "--data", "nuclei-mini"),
        *("--limit", "3", "--transform", "perspective", "--workers", "0"),
    ),
    "train-cls": ("train", "cls", "--model", "vim", *PHOTOS, "--limit", "40", "--epochs", "1"),
    "train-seg": (
        *("train", "seg", "--model", "ulvm_v5", *SEGMENTER, "--epochs", "1", "--window", "64"),
        *("--batch-size", "4"),
    ),
    "finetune": ("finetune", "umamba-pico", *SEGMENTER, "--iterations", "4"),
    "finetune-lora": (
        *("finetune", "vmamba-pico", *PHOTOS, "--limit", "40", "--iterations", "3"),
        *("--mode", "lora"),
    ),
    "explain": (
        *("explain", "--model", "vmamba-pico", *PHOTOS, "--limit", "2", "--sanity"),
        *(part for method in METHODS for part in ("--method", method)),
    ),
}
_OF_THE_MACHINE = "run|seconds|per_second|waiting|memory|energy"  # columns


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_on_a_simulated_gpu_has_the_results_of_the_cpu(name: str, tmp_path: Path) -> None:
    for device, module in (("cuda", "tests.simulated_device"), ("cpu", "robustcli")):
        typed = [*COMMANDS[name], "--device", device, "--out", str(tmp_path / device)]
        done = subprocess.run(
            [sys.executable, "-m", module, *typed], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    ours, theirs = (pd.read_csv(tmp_path / device / "results.csv") for device in ("cuda", "cpu"))
    columns = ~ours.columns.str.contains(_OF_THE_MACHINE)
    assert columns.sum() > 5
    pd.testing.assert_frame_equal(ours.loc[:, columns], theirs.loc[:, columns], atol=1e-5)
