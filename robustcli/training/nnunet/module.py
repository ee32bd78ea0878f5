"""A segmenter as nnU-Net trains it: its loss, optimizer, learning rate and best epoch.

The dice of its validation is nnU-Net's pseudo dice: of patches, their pixels pooled. It says which
epoch is best, and is no score to report; the held-out images are measured whole afterwards.

Source: nnU-Net v2.1.1, `nnUNetTrainer`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robustcli.data.mask_values import IGNORED
from robustcli.models.umamba import UMamba
from robustcli.models.weight_decay import everything_decays, parameter_groups
from robustcli.training.module import SegmentationModule
from robustcli.training.nnunet.schedule import moving_average, poly_lr
from robustcli.training.nnunet.two_classes import TwoClasses
from robustcli.training.recipes import Recipe
from robustcli.training.record import AVERAGED


class NnUNetModule(SegmentationModule):
    """A network in nnU-Net's training; a U-Mamba answers at every resolution from now on.

    Args:
        network: The network.
        recipe: How it is trained; one with `patches`.
        ignores: Whether masks hold pixels to ignore.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, *, ignores: bool = False) -> None:
        assert recipe.patches is not None
        self.patches = recipe.patches
        samples = recipe.patches.validation_iterations * recipe.batch_size
        super().__init__(
            network, recipe, channels="rgb", decays=everything_decays,
            val_groups=("all",) * samples, ignores=ignores,
        )  # fmt: skip
        if isinstance(network, UMamba):
            network.decoder.deep_supervision = True
        self.average: float | None = None

    def make_loss(self) -> nn.Module:
        """Cross-entropy minus soft dice."""
        return TwoClasses(
            probabilities=self.probabilities,
            batch_dice=self.patches.batch_dice,
            ignore_label=IGNORED if self.ignores else None,
        )

    def make_optimizer(self) -> Optimizer:
        """SGD with Nesterov's momentum; weight decay on everything that trains."""
        recipe = self.recipe
        groups = parameter_groups(self.network, recipe.weight_decay, self.decays)
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=self.patches.momentum, nesterov=True)

    def configure_optimizers(self) -> Optimizer:
        """The optimizer alone: `on_train_epoch_start` sets its learning rate, as upstream does."""
        return self.make_optimizer()

    def on_train_epoch_start(self) -> None:
        """The learning rate of the epoch, a function of its number alone."""
        recipe = self.recipe
        rate = poly_lr(self.current_epoch, recipe.epochs, recipe.lr, self.patches.exponent)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def log_scores(self, dice: float, iou: float) -> None:
        """Logs both, and the moving average by which an epoch is best."""
        super().log_scores(dice, iou)
        self.average = moving_average(self.average, dice, self.patches.ema)
        value = math.nan if self.average is None else self.average
        self._log(AVERAGED, Tensor([value])[0].to(self.device))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The average goes on after an interruption."""
        checkpoint[AVERAGED] = self.average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See `on_save_checkpoint`."""
        self.average = checkpoint[AVERAGED]
