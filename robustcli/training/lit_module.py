"""A network as Lightning trains it, whatever it is for: steps, checks, optimizer and schedule."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from robustcli.adapters.catalogue import ModelEntry
from robustcli.core.errors import RunError
from robustcli.models.architectures import (
    Decays,
    architecture,
    everything_decays,
    parameter_groups,
    vmamba_decays,
)
from robustcli.training.constant_images import without_gradient_of_constants
from robustcli.training.recipes import SCHEDULES, Recipe

# Stops a training on a non-finite loss or gradient, before anything of it is saved.


_SHOWN = 8
SCALER_TRIES = 32
"""Steps in a row that float16's loss scaler may skip: more halvings than its scale has."""


def check_loss(
    loss: Tensor, ids: Sequence[str], constant: Sequence[str], epoch: int, step: int
) -> None:
    """Raises RunError unless `loss` is finite.

    Args:
        loss: Of a batch.
        ids: The images of the batch.
        constant: Those of one value everywhere.
        epoch: Counted from 0.
        step: Of the optimizer, counted from 0.
    """
    if not torch.isfinite(loss):
        raise not_finite(f"The loss is {loss.item()}", ids, constant, epoch, step)


def check_gradient(
    norm: Tensor, named: Iterable[tuple[str, nn.Parameter]], ids: Sequence[str],
    constant: Sequence[str], epoch: int, step: int,
) -> None:  # fmt: skip
    """Raises RunError unless the gradient's `norm` is finite; the message names parameters.

    For the other arguments see `check_loss`.
    """
    if torch.isfinite(norm):
        return
    bad = [n for n, p in named if p.grad is not None and not torch.isfinite(p.grad).all()]
    shown = ", ".join(f"`{name}`" for name in bad[:3])
    of = f" of {len(bad)} parameters ({shown}{', ...' if len(bad) > 3 else ''})" if bad else ""
    raise not_finite(f"The gradient{of} is not finite", ids, constant, epoch, step)


def not_finite(
    what: str, ids: Sequence[str], constant: Sequence[str], epoch: int, step: int
) -> RunError:
    """The error for the user: which images, those of one value first, and what may help."""
    odd = ", ".join(constant[:_SHOWN])
    named = f" Of one value everywhere, and so most likely the reason: {odd}." if constant else ""
    return RunError(
        f"{what} in epoch {epoch + 1}, step {step + 1}.",
        f"{images_in_words(ids)}{named}",
        "The checkpoints of the last finished epoch are kept. Look at those images; else try a "
        "smaller `--lr`, `--clip 1` or `--precision fp32`, with `--fresh` or another `--out`.",
    )


def images_in_words(ids: Sequence[str]) -> str:
    """The first images of a batch, in a sentence."""
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"Images of the batch: {', '.join(ids[:_SHOWN])}{more}."


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The Euclidean norm over all gradients; 0 where there are none."""
    norms = [torch.linalg.vector_norm(p.grad) for p in parameters if p.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
}


class Identified(Protocol):
    """A batch whose images are known by name."""

    @property
    def ids(self) -> list[str]:
        """The image of each sample."""

    @property
    def constant(self) -> tuple[str, ...]:
        """The images that have a single value per channel."""


class LitModule(pl.LightningModule):
    """A network in training.

    Parameters whose `requires_grad` is off when the optimizer is made stay out of it.

    Args:
        network: The network.
        recipe: How it is trained.
        decays: Which parameters weight decay touches.
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
        """How many channels the network's images have: 3, or 1 for greyscale."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image as the network gets it."""
        return self.input_channels, self.recipe.window, self.recipe.window

    @abstractmethod
    def loss_of(self, batch: Any) -> Tensor:
        """The loss of a batch, a scalar."""

    @abstractmethod
    def trial_loss(self, images: Tensor) -> Tensor:
        """The loss of made-up images (B, *input_shape) in [0, 1], as costly as a real one."""

    def training_step(self, batch: Identified, batch_idx: int) -> Tensor:
        """The loss of a batch.

        Raises:
            RunError: It is not finite; the message names the images.
        """
        first = batch_idx % self.recipe.accumulate == 0
        self.recent_ids = batch.ids if first else self.recent_ids + batch.ids
        self.recent_constant = batch.constant if first else self.recent_constant + batch.constant
        with self._told_of(batch), self._constants_bounded(batch):
            loss = self.loss_of(batch)
        check_loss(loss, batch.ids, batch.constant, self.current_epoch, self.global_step)
        self._log("train_loss", loss.detach())
        return loss

    @contextmanager
    def _told_of(self, batch: Identified) -> Iterator[None]:
        """Adds the step and the images of `batch` to whatever is raised in the context."""
        try:
            yield
        except Exception as error:
            epoch, step = self.current_epoch + 1, self.global_step + 1
            error.add_note(f"It was in epoch {epoch}, step {step}; {images_in_words(batch.ids)}")
            raise

    def _constants_bounded(self, batch: Identified) -> AbstractContextManager[None]:
        """In batches with a constant image, norms pass no gradient to what does not vary."""
        return without_gradient_of_constants(self.network) if batch.constant else nullcontext()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Logs the norm of the gradient before clipping.

        Raises:
            RunError: It is not finite, and not because of float16's loss scale.
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

    def start_losses(self, samples: int) -> None:
        """No validation loss is known yet, of batches of `samples` in all."""
        batches = -(-samples // self.recipe.batch_size)
        self._losses = torch.zeros(batches, dtype=torch.float32, device=self.device)

    def keep_loss(self, numbers: Tensor, loss: Tensor) -> None:
        """Keeps the validation loss of the batch that has the samples `numbers`."""
        self._losses[numbers[:1] // self.recipe.batch_size] = loss.detach().float()

    def log_losses(self) -> None:
        """Logs `val_loss`: the plain mean over all batches, whichever process had them."""
        losses = self.trainer.strategy.reduce(self._losses, reduce_op="sum")
        self._log("val_loss", losses.mean())

    def _log(self, name: str, value: Tensor) -> None:
        """To loggers and callbacks, as the plain mean over an epoch's batches and processes."""
        self.log(name, value, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)


# Which parameters get weight decay, by where the network comes from.


_OURS = ("zoo", "vmamba", "vim")


def decays_of(entry: ModelEntry, network: nn.Module | None = None) -> Decays:
    """Our networks' own rules; of timm's classifiers timm's, and of other segmenters everything.

    Args:
        entry: What the network is.
        network: The network, which timm's classifiers are asked.
    """
    if entry.builder in _OURS:
        return architecture(entry.variant).decays()
    if entry.builder == "timm" and network is not None:
        spared = frozenset(getattr(network, "no_weight_decay", set)())
        return lambda name, parameter: name not in spared and vmamba_decays(name, parameter)
    return everything_decays
