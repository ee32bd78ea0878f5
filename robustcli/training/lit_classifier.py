"""A classifier as Lightning trains it: cross-entropy, and top-1 of its validation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.models.architectures import Decays
from robustcli.training.lit_module import LitModule
from robustcli.training.photos import Batch
from robustcli.training.recipes import SMOOTHINGS, Recipe


class ClassificationModule(LitModule):
    """A classifier in training.

    Args:
        network: The network.
        recipe: How it is trained.
        decays: Which parameters weight decay touches.
        preprocessing: With mean and standard deviation of the images, which leave the CPU as bytes.
        val_images: How many images there are to validate on.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, decays: Decays, *, preprocessing: Preprocessing,
        val_images: int,
    ) -> None:  # fmt: skip
        super().__init__(network, recipe, decays)
        self.mean: Tensor
        self.std: Tensor
        self.smoothing = SMOOTHINGS[recipe.loss]
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocessing, name)).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.val_images = val_images
        self._right = torch.zeros(0)

    @property
    def input_channels(self) -> int:
        """See `LitModule.input_channels`."""
        return self.mean.shape[1]

    def logits(self, images: Tensor) -> Tensor:
        """What the network says of `images`: float32 in [0, 1], or uint8."""
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        said: Tensor = self.network((values - self.mean) / self.std)
        return said.float()

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy with smoothed labels."""
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)

    def loss_of(self, batch: Batch) -> Tensor:
        """See `LitModule.loss_of`."""
        return self.loss(self.logits(batch.images), batch.targets)

    def trial_loss(self, images: Tensor) -> Tensor:
        """See `LitModule.trial_loss`."""
        targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return self.loss(self.network(images).float(), targets)

    def on_validation_epoch_start(self) -> None:
        """No image is counted yet."""
        self._right = torch.zeros(self.val_images, dtype=torch.int64, device=self.device)
        self.start_losses(self.val_images)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Which images of a batch are right; an empty one only keeps the processes in step."""
        if not batch.ids:
            return
        logits = self.logits(batch.images)
        self._right[batch.numbers] = (logits.argmax(1) == batch.targets).long()
        self.keep_loss(batch.numbers, self.loss(logits, batch.targets))

    def on_validation_epoch_end(self) -> None:
        """Logs the share of the validation images that are right."""
        self.log_losses()
        # Every image was seen by one process; the others have counted nothing of it.
        right = self.trainer.strategy.reduce(self._right, reduce_op="sum")
        self._log("val_top1", right.float().mean())
