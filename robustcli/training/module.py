"""A segmenter as Lightning trains it: one step, one validation, one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from robustcli.adapters.foreground import is_probability
from robustcli.models.weight_decay import Decays, parameter_groups
from robustcli.training.batches.samples import Batch
from robustcli.training.deep_supervision import DeepSupervision
from robustcli.training.finite import SCALER_TRIES, check_gradient, check_loss, gradient_norm
from robustcli.training.losses import make_loss
from robustcli.training.outputs import outputs
from robustcli.training.pooled import pooled_scores
from robustcli.training.recipes import Recipe
from robustcli.training.schedules import SCHEDULES

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}


class SegmentationModule(pl.LightningModule):
    """A network in training.

    Parameters whose `requires_grad` is off when the optimizer is made stay out of it.

    Args:
        network: The network.
        recipe: How it is trained.
        channels: Order in which it takes the colours.
        decays: Which parameters weight decay touches.
        val_groups: The group of each validation sample, by its number.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, *, channels: str, decays: Decays,
        val_groups: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.recipe, self.channels = network, recipe, channels
        self.decays, self.val_groups = decays, val_groups
        self.probabilities = is_probability(network)
        self.loss = self.make_loss()
        self.recent_ids: list[str] = []
        self._counts = torch.zeros(0)
        self._skipped = 0

    def make_loss(self) -> nn.Module:
        """Of what `outputs` gives and the masks, a scalar."""
        return DeepSupervision(make_loss(self.recipe.loss, probabilities=self.probabilities))

    def pixels(self, batch: Batch) -> Tensor:
        """The images as the network takes them: float32 in [0, 1], its order of colours."""
        images = batch.images
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return images.flip(1) if self.channels == "bgr" else images

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            RunError: It is not finite; the message names the images.
        """
        first = batch_idx % self.recipe.accumulate == 0
        self.recent_ids = batch.ids if first else self.recent_ids + batch.ids
        loss: Tensor = self.loss(outputs(self.network, self.pixels(batch)), batch.masks)
        check_loss(loss, batch.ids, self.current_epoch, self.global_step)
        self._log("train_loss", loss.detach())
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norm of the gradient before clipping.

        Raises:
            RunError: It is not finite, and not because of float16's loss scale.
        """
        norm = gradient_norm(self.parameters())
        self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
        if self.recipe.precision != "fp16" or self._skipped > SCALER_TRIES:
            named = self.network.named_parameters()
            check_gradient(norm, named, self.recent_ids, self.current_epoch, self.global_step)
        if not self._skipped:
            self._log("grad_norm", norm)

    def on_validation_epoch_start(self) -> None:
        """No pixel is counted yet."""
        shape = (len(self.val_groups), 3)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts the pixels of a batch; means of batch losses, as the paper took them."""
        output = outputs(self.network, self.pixels(batch))
        self._log("val_loss", self.loss(output, batch.masks))
        said = self.foreground(output[0]) & batch.counted
        true = (batch.masks > 0.5) & batch.counted
        counts = torch.stack([said & true, said & ~true, ~said & true], dim=-1).sum((1, 2, 3))
        self._counts[batch.numbers] = counts

    def on_validation_epoch_end(self) -> None:
        """Logs dice and IoU, pooled within each group and averaged over groups."""
        # The largest: of samples that several processes have seen, each has counted the same.
        counts = self.trainer.strategy.reduce(self._counts, reduce_op="max")
        self.log_scores(*pooled_scores(counts.cpu().numpy(), self.val_groups))

    def log_scores(self, dice: float, iou: float) -> None:
        """Logs what a validation found."""
        self._log("val_dice", torch.tensor(dice, device=self.device))
        self._log("val_iou", torch.tensor(iou, device=self.device))

    def foreground(self, output: Tensor) -> Tensor:
        """Which pixels are foreground, by the recipe's decision."""
        if self.probabilities or self.recipe.decision == "logit":
            return output >= 0.5
        return output >= 0.0  # the logit of probability 0.5

    def make_optimizer(self) -> Optimizer:
        """The recipe's optimizer over the trainable parameters."""
        groups = parameter_groups(self.network, self.recipe.weight_decay, self.decays)
        return OPTIMIZERS[self.recipe.optimizer](groups, lr=self.recipe.lr)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the recipe's schedule by the step."""
        total, optimizer = int(self.trainer.estimated_stepping_batches), self.make_optimizer()
        factor = SCHEDULES[self.recipe.schedule]
        schedule = LambdaLR(optimizer, lambda step: factor(step, total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _log(self, name: str, value: Tensor) -> None:
        """To loggers and callbacks, as the plain mean over an epoch's batches and processes."""
        self.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
