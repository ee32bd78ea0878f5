"""A segmenter as Lightning trains it: its loss, and dice and IoU of its validation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcli.adapters.segmenter import at_size, foreground_logits, is_probability
from robustcli.metrics.mask_scores import pooled_scores
from robustcli.models.architectures import Decays
from robustcli.training.lit_module import LitModule
from robustcli.training.losses import DeepSupervision, make_loss
from robustcli.training.recipes import Recipe
from robustcli.training.samples import Batch

# What a network says in training: one output, or with deep supervision one per resolution.


def outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Logits or probabilities of the foreground (B, 1, H, W), the first at the size of `images`.

    Further ones, where there are any, are at the sizes that the network gives them.
    """
    said = network(images)
    levels = [said] if isinstance(said, Tensor) else list(said)
    height, width = images.shape[-2:]
    return [at_size(levels[0], (height, width)), *map(foreground_logits, levels[1:])]


class SegmentationModule(LitModule):
    """A segmenter in training.

    Args:
        network: The network.
        recipe: How it is trained.
        channels: Order in which it takes the colours; `grey` for their luma alone.
        decays: Which parameters weight decay touches.
        val_groups: The group of each validation sample, by its number.
        ignores: Whether masks hold pixels to ignore (`mask_values.IGNORED`).
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, *, channels: str, decays: Decays,
        val_groups: Sequence[str], ignores: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(network, recipe, decays)
        self.channels, self.val_groups = channels, val_groups
        self.probabilities, self.ignores = is_probability(network), ignores
        self.loss = self.make_loss()
        self._counts = torch.zeros(0)

    @property
    def input_channels(self) -> int:
        """See `LitModule.input_channels`."""
        return 1 if self.channels == "grey" else 3

    def make_loss(self) -> nn.Module:
        """Of what `outputs` gives and the masks, a scalar."""
        loss = make_loss(self.recipe.loss, probabilities=self.probabilities, ignores=self.ignores)
        return DeepSupervision(loss)

    def pixels(self, batch: Batch) -> Tensor:
        """The images as the network takes them: float32 in [0, 1], its order of colours."""
        images = batch.images
        if self.channels == "grey":
            images = luma(images)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return images.flip(1) if self.channels == "bgr" else images

    def loss_of(self, batch: Batch) -> Tensor:
        """See `LitModule.loss_of`."""
        loss: Tensor = self.loss(outputs(self.network, self.pixels(batch)), batch.masks)
        return loss

    def trial_loss(self, images: Tensor) -> Tensor:
        """See `LitModule.trial_loss`."""
        loss: Tensor = self.loss(outputs(self.network, images), images[:, :1].round())
        return loss

    def on_validation_epoch_start(self) -> None:
        """No pixel is counted yet."""
        shape = (len(self.val_groups), 3)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.start_losses(len(self.val_groups))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts the pixels of a batch; an empty one only keeps the processes in step."""
        if not batch.ids:
            return
        output = outputs(self.network, self.pixels(batch))
        self.keep_loss(batch.numbers, self.loss(output, batch.masks))
        said = self.foreground(output[0]) & batch.counted
        true = (batch.masks > 0.5) & batch.counted
        counts = torch.stack([said & true, said & ~true, ~said & true], dim=-1).sum((1, 2, 3))
        self._counts[batch.numbers] = counts

    def on_validation_epoch_end(self) -> None:
        """Logs dice and IoU, pooled within each group and averaged over groups.

        The loss is the mean of the losses of batches, as the paper took it.
        """
        self.log_losses()
        # Every sample was seen by one process; the others have counted nothing of it.
        counts = self.trainer.strategy.reduce(self._counts, reduce_op="sum")
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


def luma(images: Tensor) -> Tensor:
    """The greyscale of images (B, 3, H, W), RGB, in their own type: (B, 1, H, W).

    Of uint8 as Pillow's `convert("L")` rounds it, so that evaluation sees the same values.
    Source: ITU-R BT.601; Pillow, `libImaging/Convert.c`, L24.
    """
    if images.dtype == torch.uint8:
        red, green, blue = images.to(torch.int32).unbind(1)
        return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None].to(torch.uint8)
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
