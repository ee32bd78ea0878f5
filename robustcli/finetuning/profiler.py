"""Callbacks of a fine-tuning: the gradient profile, and freezing by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import pandas as pd
from torch import nn
from torch.optim import Optimizer

from robustcli.finetuning.freezing import freeze, hold_statistics
from robustcli.finetuning.gradients import GradientProfile, statistics
from robustcli.finetuning.rules import FreezeRule
from robustcli.finetuning.selection import Decision, freeze_decisions

# The callback that takes the gradient profile.


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


# Callbacks that freeze parameters, at the start or after the profile.


Tell = Callable[[list[Decision]], None]


class KeepFrozen(pl.Callback):
    """Trains without the parameters called `names`, also after an interruption.

    Args:
        network: What is trained.
        names: Frozen before the optimizer is built.
    """

    def __init__(self, network: nn.Module, names: Sequence[str] = ()) -> None:
        self.network, self.names = network, list(names)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before the optimizer is built."""
        freeze(self.network, self.names)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A checkpoint has told its names, the optimizer's state is not restored yet."""
        self.leave_out(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Lightning wakes every module after a validation."""
        hold_statistics(self.network)

    def leave_out(self, trainer: pl.Trainer) -> None:
        """Freezes `names` and takes them out of the optimizers."""
        freeze(self.network, self.names)
        for optimizer in trainer.optimizers:
            forget_frozen(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The frozen names, so that a resumed run has the same."""
        return {"frozen": self.names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.names = list(state_dict["frozen"])


class FreezeAfterProfile(KeepFrozen):
    """Freezes by a rule once the profile is full.

    Args:
        network: What is trained.
        profiler: Gives the statistics.
        rule: What to freeze.
        heads: Beginnings of the names that are never frozen.
        tell: Receives the decisions when they are made.
    """

    def __init__(
        self, network: nn.Module, profiler: ProfileGradients, rule: FreezeRule,
        heads: Sequence[str], tell: Tell,
    ) -> None:  # fmt: skip
        super().__init__(network)
        self.profiler, self.rule = profiler, rule
        self.heads, self.tell, self.done = heads, tell, False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Decides after the last profiled step; the next one trains the rest."""
        if self.done or not self.profiler.full:
            return
        self.done = True
        decisions = freeze_decisions(
            statistics(self.profiler.profile.rows()), self.rule, self.heads
        )
        self.names = [d.name for d in decisions if d.frozen]
        self.leave_out(trainer)
        self.tell(decisions)

    def state_dict(self) -> dict[str, Any]:
        """The frozen names, and whether they are decided."""
        return {**super().state_dict(), "done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        super().load_state_dict(state_dict)
        self.done = bool(state_dict["done"])


def forget_frozen(optimizer: Optimizer) -> None:
    """Takes frozen tensors and their moments out of `optimizer`.

    A group that becomes empty stays: the learning rate's schedule counts groups.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not parameter.requires_grad:
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if p.requires_grad]
