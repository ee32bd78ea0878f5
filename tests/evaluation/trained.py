"""Writes the files of a training that an evaluation reads, with untrained weights."""

from __future__ import annotations

from pathlib import Path

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.training_run import WeightsHeader, write_weights
from robustcli.data.dataset import Dataset
from robustcli.data.splits import split_dataset, write_splits

NETWORK = "ulvm_v2"


def make_training(run: Path, index: Dataset, *, seed: int = 0) -> Path:
    """Writes weights, header and splits of a training of ulvm_v2 on `index` to `run`."""
    network = load(ModelRequest(NETWORK, untrained=True), "seg", seed=seed).network
    header = WeightsHeader(
        model=NETWORK, window=64, channels="rgb", threshold=0.5, protocol="patient",
        trained_on=index.digest, images_sha256="0" * 64,
    )  # fmt: skip
    write_weights(run / "weights.safetensors", network.state_dict(), header)
    write_splits(run / "splits.csv", split_dataset(index, seed=seed))
    return run
