"""Callback that makes every step's randomness a function of seed, epoch and step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from robustcli.core.seeds import identity_seed


class SeededSteps(pl.Callback):
    """Seeds torch before each step: what is dropped out in it is the same after an interruption.

    Args:
        seed: Of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Each process draws otherwise."""
        identity = (self.seed, trainer.current_epoch, batch_idx, trainer.global_rank)
        torch.manual_seed(identity_seed("step", *identity, bits=63))
