"""Lightning modules of networks: loss, optimizer, validation, checks for non-finite values.

Training stays stable on batches that contain constant images; see `without_gradient_of_constants`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from robustcli.adapters.catalogue import ModelEntry
from robustcli.adapters.networks import OUR_BUILDERS
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.segmenter import at_size, is_probability, selected_scores
from robustcli.core.errors import RunError
from robustcli.metrics.class_scores import macro_f1
from robustcli.metrics.mask_scores import pooled_scores
from robustcli.models.architectures import (
    Decays,
    architecture,
    everything_decays,
    parameter_groups,
    vmamba_decays,
)
from robustcli.training.losses import CLASS_LOSSES, DeepSupervision, SoftmaxLoss, make_loss
from robustcli.training.mask_samples import MaskBatch
from robustcli.training.photo_samples import PhotoBatch
from robustcli.training.recipes import SCHEDULES, SMOOTHINGS, Photowise, Recipe

_SHOWN = 8
SCALER_TRIES = 32
"""Consecutive steps that the loss scaler of float16 may skip: its scale has fewer halvings."""


def check_loss(
    loss: Tensor, ids: Sequence[str], constant: Sequence[str], epoch: int, step: int
) -> None:
    """Raises RunError unless `loss` is finite.

    Args:
        loss: Loss of the batch, a scalar.
        ids: Ids of the images in the batch.
        constant: Ids of the constant images among them.
        epoch: Epoch, counted from 0.
        step: Optimizer step, counted from 0.
    """
    if not torch.isfinite(loss):
        raise not_finite(f"The loss is {loss.item()}", ids, constant, epoch, step)


def check_gradient(
    norm: Tensor, parameters: Iterable[tuple[str, nn.Parameter]], ids: Sequence[str],
    constant: Sequence[str], epoch: int, step: int,
) -> None:  # fmt: skip
    """Raises RunError unless the `norm` of the gradient is finite; the message names parameters.

    For the other arguments, see `check_loss`.
    """
    if torch.isfinite(norm):
        return
    bad = [n for n, p in parameters if p.grad is not None and not torch.isfinite(p.grad).all()]
    shown = ", ".join(f"`{name}`" for name in bad[:3])
    of = f" of {len(bad)} parameters ({shown}{', ...' if len(bad) > 3 else ''})" if bad else ""
    raise not_finite(f"The gradient{of} is not finite", ids, constant, epoch, step)


def not_finite(
    quantity: str, ids: Sequence[str], constant: Sequence[str], epoch: int, step: int
) -> RunError:
    """The error for a non-finite value: names the images, constant ones first, and remedies."""
    shown = ", ".join(constant[:_SHOWN])
    note = (
        f" Images with a single value in all pixels, the most likely reason: {shown}."
        if constant
        else ""
    )
    return RunError(
        f"{quantity} in epoch {epoch + 1}, step {step + 1}.",
        f"{images_in_words(ids)}{note}",
        "The checkpoints of the last finished epoch are kept. Check these images. If they are "
        "correct, try a smaller `--lr`, `--clip 1` or `--precision fp32`, with `--fresh` or "
        "another `--out`.",
    )


def images_in_words(ids: Sequence[str]) -> str:
    """A sentence with the first images of a batch."""
    suffix = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"Images of the batch: {', '.join(ids[:_SHOWN])}{suffix}."


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients, a scalar; 0 without gradients."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


_NO_VARIANCE = 1e-6  # share of epsilon below which the variance is rounding noise


@contextmanager
def without_gradient_of_constants(network: nn.Module) -> Iterator[None]:
    """Stops gradients of normalisation layers to constant inputs in the context's forward passes.

    A constant image has one value in every pixel. If it is black, or normalised by its own mean, it
    is exactly zero at the input of the network. With zero-initialised biases it stays zero in every
    layer, and each normalisation layer multiplies its gradient by 1 / sqrt(epsilon), which is 316
    for epsilon 1e-5. After ten such layers a gradient of 1 overflows float32 and spoils the
    gradients of all images in the batch. After seven layers (U-Mamba) it is finite, but after
    clipping it dominates the step.

    The gradient with respect to such an input is rounding noise, so that none is passed to inputs
    without variance; scales and biases are still trained. The gradients of all other inputs stay
    bit-identical, and the outputs of the network do not change.
    """
    norms = [module for module in network.modules() if _axes(module, 4) is not None]
    handles = [norm.register_forward_pre_hook(_gated) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gated(norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    x = inputs[0]
    if not (torch.is_grad_enabled() and x.requires_grad):
        return inputs
    return (_Gate.apply(x, _varies(norm, x)), *inputs[1:])


def _varies(norm: nn.Module, x: Tensor) -> Tensor:
    """Mask of the groups of values with variance that the layer normalises; broadcasts to `x`."""
    axes = _axes(norm, x.ndim)
    assert axes is not None, "hooks are registered for such layers only"
    values = x.detach().float()
    if isinstance(norm, nn.GroupNorm):
        grouped = values.reshape(len(x), norm.num_groups, -1).var(2, correction=0)
        shape = (len(x), x.shape[1], *[1] * (x.ndim - 2))
        variance = grouped.repeat_interleave(x.shape[1] // norm.num_groups, 1).reshape(shape)
    else:
        variance = values.var(axes, correction=0, keepdim=True)
    eps: Any = norm.eps
    return variance > _NO_VARIANCE * float(eps)


def _axes(norm: nn.Module, dimensions: int) -> tuple[int, ...] | None:
    """The axes over which a layer computes mean and variance; None for other modules."""
    if isinstance(norm, nn.LayerNorm):
        if type(norm).__name__.endswith("2d"):  # timm's: over the channels of (B, C, H, W)
            return (1,)
        return tuple(range(-len(norm.normalized_shape), 0))
    if isinstance(norm, _BatchNorm):
        return (0, *range(2, dimensions))
    if isinstance(norm, (_InstanceNorm, nn.GroupNorm)):
        return tuple(range(2, dimensions))
    return None


class _Gate(Function):
    """The identity with a gradient of zero outside the mask."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return torch.where(mask, gradients[0], 0.0), None


class LitModule(pl.LightningModule):
    """Base class of a network in training.

    The optimizer contains only parameters that require gradients when it is created.
    """

    def __init__(self, network: nn.Module, recipe: Recipe, decays: Decays) -> None:
        super().__init__()
        self.network, self.recipe, self.decays = network, recipe, decays
        self.recent_ids: list[str] = []
        self.recent_constant: tuple[str, ...] = ()
        self._skipped = 0
        self._losses = torch.zeros(0)

    @property
    @abstractmethod
    def input_channels(self) -> int:
        """Number of channels of the network's input: 3, or 1 for greyscale."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the network's input."""
        return self.input_channels, self.recipe.window, self.recipe.window

    @abstractmethod
    def loss_of(self, batch: Any) -> Tensor:
        """The loss of a batch, a scalar."""

    @abstractmethod
    def trial_loss(self, images: Tensor) -> Tensor:
        """The loss of generated images (B, *input_shape) in [0, 1], at the cost of a real batch."""

    def training_step(self, batch: MaskBatch | PhotoBatch, batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            RunError: The loss is not finite; the message names the images.
        """
        first = batch_idx % self.recipe.accumulate == 0
        self.recent_ids = batch.ids if first else self.recent_ids + batch.ids
        self.recent_constant = batch.constant if first else self.recent_constant + batch.constant
        constants = without_gradient_of_constants(self.network) if batch.constant else nullcontext()
        try:
            with constants:
                loss = self.loss_of(batch)
        except Exception as error:
            epoch, step = self.current_epoch + 1, self.global_step + 1
            error.add_note(
                f"The error occurred in epoch {epoch}, step {step}; {images_in_words(batch.ids)}"
            )
            raise
        check_loss(loss, batch.ids, batch.constant, self.current_epoch, self.global_step)
        self._log("train_loss", loss.detach())
        return loss * self._share(batch_idx)

    def _share(self, batch_idx: int) -> float:
        """Factor of a batch's loss so that a step uses the mean gradient of its batches.

        Lightning divides every loss by `accumulate`, also in the last step of an epoch, which can
        have fewer batches.
        """
        accumulate, batches = self.recipe.accumulate, self.trainer.num_training_batches
        last = batches % accumulate
        return accumulate / last if last and batch_idx >= batches - last else 1.0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norm of the gradient before clipping.

        Raises:
            RunError: The norm is not finite, and the loss scale of float16 is not the reason.
        """
        norm = gradient_norm(self.parameters())
        self._skipped = 0 if torch.isfinite(norm) else self._skipped + 1
        if self.recipe.precision != "fp16" or self._skipped > SCALER_TRIES:
            check_gradient(
                norm, self.network.named_parameters(), self.recent_ids, self.recent_constant,
                self.current_epoch, self.global_step,
            )  # fmt: skip
        if not self._skipped:
            self._log("grad_norm", norm)

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Checks the network if its validation loss is not finite, before the epoch is stored.

        After the last epoch, the selected weights are checked instead.

        Raises:
            RunError: The network returns NaN for generated images.
        """
        is_last = self.current_epoch + 1 == self.trainer.max_epochs
        val_loss = self.trainer.callback_metrics.get("val_loss")
        if is_last or val_loss is None or val_loss.isfinite():
            return
        learns = self.network.training
        self.network.eval()
        loss = self.trial_loss(torch.rand(2, *self.input_shape, device=self.device))
        self.network.train(learns)
        if not torch.isfinite(loss):
            raise RunError(
                f"The training diverged in epoch {self.current_epoch + 1}.",
                "Its network returns NaN (not a number), also for a synthetic image.",
                "Use a smaller `--lr`, `--clip 1` or `--precision fp32`, with `--fresh` or another "
                "`--out`.",
            )

    def make_optimizer(self) -> Optimizer:
        """The recipe's optimizer over the trainable parameters."""
        recipe, settings = self.recipe, {}
        special = recipe.patches or recipe.photos
        if special is not None and special.momentum:
            settings = {"momentum": special.momentum, "nesterov": True}
        groups = parameter_groups(self.network, recipe.weight_decay, self.decays)
        make: Callable[..., Optimizer] = getattr(torch.optim, recipe.optimizer)
        return make(groups, lr=recipe.lr, **settings)

    def configure_optimizers(self) -> Any:
        """The optimizer, and the recipe's learning-rate schedule per step."""
        total, optimizer = int(self.trainer.estimated_stepping_batches), self.make_optimizer()
        factor = SCHEDULES[self.recipe.schedule]
        schedule = LambdaLR(optimizer, lambda step: factor(step, total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def start_losses(self, samples: int) -> None:
        """Allocates the validation losses of `samples` samples."""
        batches = -(-samples // self.recipe.batch_size)
        self._losses = torch.zeros(batches, dtype=torch.float32, device=self.device)

    def keep_loss(self, numbers: Tensor, loss: Tensor) -> None:
        """Stores the validation loss of the batch with the sample indices `numbers`."""
        self._losses[numbers[:1] // self.recipe.batch_size] = loss.detach().float()

    def log_losses(self) -> None:
        """Logs `val_loss`: the mean over the batches of all processes."""
        losses = self.trainer.strategy.reduce(self._losses, reduce_op="sum")
        self._log("val_loss", losses.mean())

    def _log(self, name: str, value: Tensor) -> None:
        """Logs `value` as the mean over the batches of an epoch in all processes."""
        self.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


def decays_of(entry: ModelEntry, network: nn.Module | None = None) -> Decays:
    """The parameters with weight decay: defined by our networks and timm's, else all parameters."""
    if entry.builder in OUR_BUILDERS:
        return architecture(entry.variant).decays
    if entry.builder == "timm" and network is not None:
        spared = frozenset(getattr(network, "no_weight_decay", set)())
        return lambda name, parameter: name not in spared and vmamba_decays(name, parameter)
    return everything_decays


def outputs(network: nn.Module, images: Tensor, classes: int = 0) -> list[Tensor]:
    """All outputs of a segmenter; the first has the size of `images` (B, C, H, W).

    Auxiliary outputs follow at their native sizes. Each output contains logits or probabilities
    of the foreground (B, 1, H, W); with `classes` (counted without background), logits
    (B, classes + 1, H, W).
    """
    answer = network(images)
    levels = [answer] if isinstance(answer, Tensor) else list(answer)
    height, width = images.shape[-2:]
    return [
        at_size(levels[0], (height, width), classes),
        *(selected_scores(level, classes) for level in levels[1:]),
    ]


class SegmenterModule(LitModule):
    """A segmenter in training.

    Args:
        channels: Channel order of the network's input; `grey` for luma.
        decays: Selects the parameters with weight decay.
        val_groups: Group of each validation sample, by index.
        ignores: Whether masks contain pixels to ignore (`mask_values.IGNORED`).
        classes: Number of classes without background; 0 for foreground and background.
    """

    def __init__(
        self, network: nn.Module, recipe: Recipe, *, channels: str, decays: Decays,
        val_groups: Sequence[str], ignores: bool = False, classes: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(network, recipe, decays)
        self.classes = classes
        self.channels, self.val_groups = channels, val_groups
        self.probabilities, self.ignores = is_probability(network), ignores
        self.loss = self.make_loss()
        self._counts = torch.zeros(0)

    @property
    def input_channels(self) -> int:
        """See `LitModule.input_channels`."""
        return 1 if self.channels == "grey" else 3

    def make_loss(self) -> nn.Module:
        """The loss module: maps the result of `outputs` and the masks to a scalar."""
        name, ignores = self.recipe.loss, self.ignores
        if self.classes:
            return DeepSupervision(SoftmaxLoss(CLASS_LOSSES[name], ignores=ignores))
        return DeepSupervision(make_loss(name, probabilities=self.probabilities, ignores=ignores))

    def outputs(self, images: Tensor) -> list[Tensor]:
        """The outputs of the network in training; see the function `outputs`."""
        return outputs(self.network, images, self.classes)

    def pixels(self, batch: MaskBatch) -> Tensor:
        """The images of a batch as network input: float32 in [0, 1], in its channel order."""
        images = batch.images
        if self.channels == "grey":
            images = luma(images)
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return images.flip(1) if self.channels == "bgr" else images

    def loss_of(self, batch: MaskBatch) -> Tensor:
        """See `LitModule.loss_of`."""
        loss: Tensor = self.loss(self.outputs(self.pixels(batch)), batch.masks)
        return loss

    def trial_loss(self, images: Tensor) -> Tensor:
        """See `LitModule.trial_loss`."""
        loss: Tensor = self.loss(self.outputs(images), images[:, :1].round())
        return loss

    def on_validation_epoch_start(self) -> None:
        """Resets all counts to 0."""
        shape = (len(self.val_groups), max(1, self.classes), 3)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.start_losses(len(self.val_groups))

    def validation_step(self, batch: MaskBatch, batch_idx: int) -> None:
        """Counts the pixels of a batch; an empty batch only keeps the processes synchronised."""
        if not batch.ids:
            return
        output = self.outputs(self.pixels(batch))
        self.keep_loss(batch.numbers, self.loss(output, batch.masks))
        if self.classes:
            predicted_classes = output[0].argmax(1, keepdim=True)
            self._counts[batch.numbers] = class_counts(
                predicted_classes, batch.masks, batch.counted, self.classes
            )
            return
        predicted = self.foreground(output[0]) & batch.counted
        true = (batch.masks > 0.5) & batch.counted
        outcomes = [predicted & true, predicted & ~true, ~predicted & true]
        counts = torch.stack(outcomes, dim=-1).sum((1, 2, 3))
        self._counts[batch.numbers] = counts[:, None]

    def on_validation_epoch_end(self) -> None:
        """Logs dice and IoU, pooled within each group and averaged over groups.

        The logged loss is the mean over batches, as in the paper.
        """
        self.log_losses()
        # One process counted each sample, and the counts of the others are 0.
        counts = self.trainer.strategy.reduce(self._counts, reduce_op="sum")
        self.log_scores(*pooled_scores(counts.cpu().numpy(), self.val_groups))

    def log_scores(self, dice: float, iou: float) -> None:
        """Logs the scores of a validation."""
        self._log("val_dice", torch.tensor(dice, device=self.device))
        self._log("val_iou", torch.tensor(iou, device=self.device))

    def foreground(self, output: Tensor) -> Tensor:
        """The predicted foreground, by the decision rule of the recipe."""
        if self.probabilities or self.recipe.decision == "logit":
            return output >= 0.5
        return output >= 0.0  # the logit of probability 0.5


def class_counts(predicted: Tensor, true: Tensor, counted: Tensor, classes: int) -> Tensor:
    """Counts of true positive, false positive and false negative pixels, int64 (B, classes, 3).

    Args:
        predicted: Predicted class of each pixel, (B, 1, H, W), 0 for background.
        true: True class of each pixel, (B, 1, H, W).
        counted: Mask of the pixels to count, bool (B, 1, H, W).
        classes: Number of classes without background.
    """
    side = classes + 1
    images = torch.arange(len(predicted), device=predicted.device).view(-1, 1, 1, 1)
    cells = ((images * side + true.long()) * side + predicted.long())[counted]
    pixels = torch.bincount(cells, minlength=len(predicted) * side**2).view(-1, side, side)
    hits = pixels.diagonal(dim1=1, dim2=2)[:, 1:]
    predicted_sums, true_sums = pixels.sum(1)[:, 1:], pixels.sum(2)[:, 1:]
    return torch.stack([hits, predicted_sums - hits, true_sums - hits], dim=-1)


def luma(images: Tensor) -> Tensor:
    """The luma (B, 1, H, W) of RGB images (B, 3, H, W), with the same dtype.

    uint8 images are rounded like Pillow's `convert("L")`, so that evaluation sees equal values.
    Source: ITU-R BT.601; Pillow, `libImaging/Convert.c`, L24.
    """
    if images.dtype == torch.uint8:
        red, green, blue = images.to(torch.int32).unbind(1)
        return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None].to(torch.uint8)
    red, green, blue = images.unbind(1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]


def average(network: nn.Module, share: float) -> AveragedModel:
    """An exponential moving average of the weights and buffers of `network`.

    The share of the old value in step n is min(`share`, (1 + n) / (10 + n)), so that the initial
    weights lose their influence quickly. Source: TensorFlow's `ExponentialMovingAverage` with
    `num_updates`. Integer buffers are copied.
    """

    @torch.no_grad()
    def update(averages: Any, values: Any, updates: Tensor | int) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, values)
            return
        steps = int(updates)
        old = min(share, (1 + steps) / (10 + steps))
        torch._foreach_lerp_(averages, values, 1 - old)

    averaged = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    return averaged.requires_grad_(False)


class ClassifierModule(LitModule):
    """A classifier in training.

    If the recipe averages the weights, `averaged` is the average. It is part of the module's
    state, so that a resumed training continues it.

    Args:
        decays: Selects the parameters with weight decay.
        preprocessing: Mean and standard deviation, applied on the device to uint8 images.
        val_images: Number of validation images.
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
        self._answers = torch.zeros(0)
        photos = recipe.photos or Photowise()
        self.resident = photos.resident
        if self.resident:  # the faster memory format of convolutions on a GPU
            self.network.to(memory_format=torch.channels_last)
        self.averaged = None if photos.ema is None else average(network, photos.ema)
        self._averaged_step = 0

    @property
    def input_channels(self) -> int:
        """See `LitModule.input_channels`."""
        return self.mean.shape[1]

    def logits(self, images: Tensor, network: nn.Module | None = None) -> Tensor:
        """The float32 logits of `images` (B, C, H, W), float32 in [0, 1] or uint8.

        `network` defaults to the network in training.
        """
        values = images.float() / 255 if images.dtype == torch.uint8 else images
        values = (values - self.mean) / self.std
        if self.resident:
            values = values.contiguous(memory_format=torch.channels_last)
        logits: Tensor = (self.network if network is None else network)(values)
        return logits.float()

    def on_train_start(self) -> None:
        """Stores the number of finished steps, which are not averaged again after a resume."""
        self._averaged_step = self.trainer.global_step

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Updates the average after an optimizer step."""
        if self.averaged is not None and self.trainer.global_step > self._averaged_step:
            self.averaged.update_parameters(self.network)
            self._averaged_step = self.trainer.global_step

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy with smoothed labels."""
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing)

    def loss_of(self, batch: PhotoBatch) -> Tensor:
        """See `LitModule.loss_of`."""
        return self.loss(self.logits(batch.images), batch.targets)

    def trial_loss(self, images: Tensor) -> Tensor:
        """See `LitModule.trial_loss`."""
        targets = torch.zeros(len(images), dtype=torch.long, device=images.device)
        return self.loss(self.network(images).float(), targets)

    def on_validation_epoch_start(self) -> None:
        """Resets all counts to 0."""
        shape = (2, self.val_images)  # true and predicted class
        self._answers = torch.zeros(shape, dtype=torch.int64, device=self.device)
        self.start_losses(self.val_images)

    def validation_step(self, batch: PhotoBatch, batch_idx: int) -> None:
        """Stores true and predicted classes; an empty batch only synchronises the processes."""
        if not batch.ids:
            return
        logits = self.logits(batch.images, self.averaged)
        self._answers[:, batch.numbers] = torch.stack([batch.targets, logits.argmax(1)])
        self.keep_loss(batch.numbers, self.loss(logits, batch.targets))

    def on_validation_epoch_end(self) -> None:
        """Logs the validation top-1 accuracy and macro F1."""
        self.log_losses()
        # One process predicted each image, and the values of the others are 0.
        answers = self.trainer.strategy.reduce(self._answers, reduce_op="sum")
        targets, predictions = answers.cpu().numpy()
        self._log("val_top1", (answers[0] == answers[1]).float().mean())
        f1 = macro_f1(targets, predictions)
        self._log("val_f1", torch.tensor(f1, device=self.device))
