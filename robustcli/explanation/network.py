"""The network in the form that methods need: normalised pixels in, one score per image out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from robustcli.adapters.foreign import LogitNetwork
from robustcli.core.names import TaskName
from robustcli.core.seeds import identity_seed

_PROBABILITY_FLOOR = 1e-6  # keeps the logit of a saturated probability finite


@dataclass(frozen=True)
class ExplainedNetwork:
    """A network in eval mode, in float32, whose parameters require no gradients.

    Args:
        module: Maps normalised images (N, C, H, W) to logits (N, K), or as a segmenter to
            foreground scores (N, 1, H, W).
        device: Device of the module.
        task: Task of the network.
        family: Family of the network, see `ModelFacts`.
        classes: Label of each class.
        layer: Layer named by the user with `--layer`; None for the default.
        mean: Subtracted from pixel values in [0, 1], per channel.
        std: Divisor after the subtraction, per channel.
        answers: Indices of the classes that may be predicted; None for all.
        probabilities: Whether a segmenter's scores are probabilities instead of logits.
        forward: Calls the module on images and returns scores; None if the module returns scores.
        initial: Builds the network with its weights before training; None if these are unknown.
        most_probable: For a segmenter with several classes: maps module and images to a mask, bool
            (N, H, W), of pixels whose most probable class is the explained one. None if a threshold
            defines the mask.
    """

    module: nn.Module
    device: torch.device
    task: TaskName
    family: str
    classes: tuple[str, ...]
    layer: str | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    answers: tuple[int, ...] | None = None
    probabilities: bool = False
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None
    initial: Callable[[], nn.Module] | None = None
    most_probable: Callable[[nn.Module, Tensor], Tensor] | None = None

    @property
    def core(self) -> nn.Module:
        """The network without its wrapper, so that module names are those of the user."""
        return self.module.network if isinstance(self.module, LogitNetwork) else self.module

    def logits(self, pixels: Tensor) -> Tensor:
        """Logits (N, K) of a classifier, or foreground logits (N, 1, H, W) of a segmenter."""
        output: Tensor = (self.forward or nn.Module.__call__)(self.module, pixels)
        if self.probabilities:
            return torch.logit(output.float(), eps=_PROBABILITY_FLOOR)
        return output.float()

    def score(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """The explained quantity, one number per image (N,).

        Args:
            pixels: Normalised images (N, C, H, W).
            targets: Classes (N,), whose logits are returned; or masks (N, H, W), for the mean logit
                inside each mask. An empty mask is treated as the complete image.
        """
        logits = self.logits(pixels)
        if targets.ndim == 1:
            return logits.gather(1, targets[:, None])[:, 0]
        return _mean_inside(logits[:, 0], targets)

    def probability(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """The probability of each target (N,): of the class, or the mean inside the mask."""
        logits = self.logits(pixels)
        if targets.ndim == 1:
            return self.softmax(logits).gather(1, targets[:, None])[:, 0]
        return _mean_inside(logits[:, 0].sigmoid(), targets)

    def softmax(self, logits: Tensor) -> Tensor:
        """Probabilities (N, K) over the classes that may be predicted."""
        if self.answers is None:
            return logits.softmax(1)
        excluded = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        excluded[list(self.answers)] = False
        return logits.masked_fill(excluded, -torch.inf).softmax(1)

    def limits(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised values of black and white, (C, 1, 1) each."""
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(-1, 1, 1)
            for values in (self.mean, self.std)
        )
        return (0 - mean) / std, (1 - mean) / std

    def mean_colour(self, pixels: Tensor) -> Tensor:
        """Images of the mean colour, of the shape of `pixels` (N, C, H, W).

        It is zero if the preprocessing subtracts a mean; otherwise, it is that of each image.
        """
        if any(self.mean):
            return torch.zeros_like(pixels)
        return pixels.mean((2, 3), keepdim=True).expand_as(pixels)

    def shuffled(self, seed: int) -> ExplainedNetwork:
        """A copy of this network with the values of each parameter tensor in random order.

        Each tensor keeps its values, and so its scale.
        """
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                generator = torch.Generator().manual_seed(identity_seed(seed, name, bits=63))
                order = torch.randperm(parameter.numel(), generator=generator)
                flat = parameter.detach().flatten()[order.to(parameter.device)]
                parameter.copy_(flat.view_as(parameter))
        return replace(self, module=module)


def _mean_inside(values: Tensor, masks: Tensor) -> Tensor:
    """The mean (N,) of `values` inside each mask (N, H, W), or of all values if it is empty."""
    inside = masks.to(values.dtype)
    inside = torch.where(inside.flatten(1).any(1)[:, None, None], inside, 1.0)
    return (values * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)


@dataclass(frozen=True)
class Attribution:
    """The result of a method for N images.

    Args:
        maps: Evidence for the target per pixel, float32 (N, H, W), on any device.
        checks: Numbers per image (N,) by column name: `completeness_error`, `conservation_error`,
            `bias_relevance`, `picture_probability`.
        pictures: Generated pictures, uint8 (N, H, W, 3); None for methods that make none.
    """

    maps: Tensor
    checks: dict[str, Tensor] = field(default_factory=dict)
    pictures: Tensor | None = None


class Attribute(Protocol):
    """The function of a method of `methods.METHODS`."""

    def __call__(
        self,
        explained: ExplainedNetwork,
        pixels: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seeds: Sequence[int],
    ) -> Attribution:
        """The result for each image; it does not depend on the batch size.

        Args:
            explained: The network.
            pixels: Normalised images, float32 (N, C, H, W), on the device of the network.
            targets: Classes, int64 (N,), or masks, bool (N, H, W); see `ExplainedNetwork.score`.
                Ignored by methods without a target.
            batch_size: Largest number of images per forward pass.
            seeds: Seed of each image, in [0, 2**63): the only source of randomness.
        """


def batched(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size` items that cover `count` items."""
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
