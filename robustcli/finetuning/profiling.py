"""The gradient profile while Lightning trains: a callback around `gradients`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from torch import nn
from torch.optim import Optimizer

from robustcli.finetuning.gradients import GradientProfile


def _nothing(rows: pd.DataFrame) -> None:
    """Nobody wants to know."""


class ProfileGradients(pl.Callback):
    """Takes the gradients of every optimizer step, before clipping and with the loss scale undone.

    Args:
        network: Whose gradients.
        iterations: How many steps are profiled; None for all.
        tell: Receives the rows of the profile once it is full.
    """

    def __init__(
        self, network: nn.Module, iterations: int | None = None,
        tell: Callable[[pd.DataFrame], None] = _nothing,
    ) -> None:  # fmt: skip
        self.profile, self.iterations, self.tell = GradientProfile(network), iterations, tell

    @property
    def full(self) -> bool:
        """Whether all iterations asked for are there."""
        return self.iterations is not None and len(self.profile) >= self.iterations

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """One more iteration."""
        if self.full:
            return
        self.profile.add()
        if self.full:
            self.tell(self.profile.rows())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that a resumed profile is that of an unbroken run."""
        return {"measured": self.profile.measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.profile.measured = list(state_dict["measured"])
