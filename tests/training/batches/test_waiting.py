"""The clock of the loader."""

from __future__ import annotations

import time

import pytest

from robustcli.training.batches.waiting import WaitingTime


def test_only_fetching_counts_and_taking_starts_anew() -> None:
    clock = WaitingTime()
    with clock.profile("[_TrainingEpochLoop].train_dataloader_next"):
        time.sleep(0.02)
    with clock.profile("run_training_epoch"):
        time.sleep(0.02)
    assert clock.take() == pytest.approx(0.02, abs=0.015)
    assert clock.take() == 0
    assert clock.summary() == ""
