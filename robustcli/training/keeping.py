"""Callback that keeps two checkpoints: of the last finished epoch, and of the best one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

FOLDER = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"


class KeepLastAndBest(Checkpoint):
    """Saves after every epoch.

    Not Lightning's ModelCheckpoint, which forgets the best score when a run's folder was moved.

    Args:
        run: The run's folder.
        best: Whether the epoch with the highest value is kept too; the earlier one of equals.
        monitor: What the value is, as it is logged.
    """

    def __init__(self, run: Path, *, best: bool, monitor: str) -> None:
        self.folder, self.best, self.monitor = run / FOLDER, best, monitor
        self.best_value: float | None = None
        self.best_epoch: int | None = None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The best one first: were this process killed in between, the epoch is done again."""
        value = float(trainer.callback_metrics[self.monitor])
        if self.best and (
            self.best_value is None or math.isnan(self.best_value) or value > self.best_value
        ):
            self.best_value, self.best_epoch = value, trainer.current_epoch + 1
            trainer.save_checkpoint(self.folder / BEST)
        trainer.save_checkpoint(self.folder / LAST)

    def state_dict(self) -> dict[str, Any]:
        """The best so far; the first key has the name that it got when only dice was kept."""
        return {
            "best_dice": self.best_value, "best_epoch": self.best_epoch, "monitor": self.monitor
        }  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.best_value, self.best_epoch = state_dict["best_dice"], state_dict["best_epoch"]
