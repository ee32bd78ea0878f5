"""The network that methods explain: normalised pixels in, one score per image out."""

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

_PROBABILITY_FLOOR = 1e-6  # so that the logit of a saturated probability is finite


@dataclass(frozen=True)
class ExplainedNetwork:
    """A network in eval mode, float32, whose parameters take no gradients.

    Args:
        module: Images (N, C, H, W), normalised, to logits (N, K); of a segmenter to foreground
            scores (N, 1, H, W).
        device: Where it is.
        task: What it does.
        family: Of networks, see `ModelFacts`.
        classes: A label for each class.
        layer: What the user named with `--layer`.
        mean: Subtracted from pixel values in [0, 1], per channel.
        std: Their divisor after that.
        answers: The only classes that may be predicted; None for all.
        probabilities: Whether a segmenter's scores are probabilities instead of logits.
        forward: Reads the module's output as scores; None takes it as it is.
        initial: Makes the same network as it is before training; None where that is not known.
        most_probable: Where the explained one of a segmenter's several classes is the most probable
            one: images to bool (N, H, W). None where the threshold decides.
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
        """The network itself, whose modules have the names that a user knows."""
        return self.module.network if isinstance(self.module, LogitNetwork) else self.module

    def logits(self, pixels: Tensor) -> Tensor:
        """A classifier's logits (N, K), or a segmenter's foreground logits (N, 1, H, W)."""
        output: Tensor = (self.forward or nn.Module.__call__)(self.module, pixels)
        if self.probabilities:
            return torch.logit(output.float(), eps=_PROBABILITY_FLOOR)
        return output.float()

    def score(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """What is explained, one number per image (N,).

        Args:
            pixels: (N, C, H, W), normalised.
            targets: Classes (N,), for the logit of each; or masks (N, H, W), for the mean logit
                inside. A mask without pixels stands for the whole picture.
        """
        logits = self.logits(pixels)
        if targets.ndim == 1:
            return logits.gather(1, targets[:, None])[:, 0]
        inside = targets.to(logits.dtype)
        inside = torch.where(inside.flatten(1).any(1)[:, None, None], inside, 1.0)
        return (logits[:, 0] * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)

    def probability(self, pixels: Tensor, targets: Tensor) -> Tensor:
        """The probability of each target (N,): of the class, or the mean one inside the mask."""
        logits = self.logits(pixels)
        if targets.ndim == 1:
            return self.softmax(logits).gather(1, targets[:, None])[:, 0]
        inside = targets.to(logits.dtype)
        inside = torch.where(inside.flatten(1).any(1)[:, None, None], inside, 1.0)
        return (logits[:, 0].sigmoid() * inside).flatten(1).sum(1) / inside.flatten(1).sum(1)

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

    def shuffled(self, seed: int) -> ExplainedNetwork:
        """This network with the values of every parameter in random order.

        Each tensor keeps its values, and so its scale, and loses what was learned.
        """
        module = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                generator = torch.Generator().manual_seed(identity_seed(seed, name, bits=63))
                order = torch.randperm(parameter.numel(), generator=generator)
                flat = parameter.detach().flatten()[order.to(parameter.device)]
                parameter.copy_(flat.view_as(parameter))
        return replace(self, module=module)


@dataclass(frozen=True)
class Attribution:
    """The result of a method for N images.

    Args:
        maps: float32 (N, H, W), evidence for the target per pixel, on any device.
        checks: Numbers per image (N,) by the name of their column: `completeness_error`,
            `conservation_error`, `picture_probability`.
        pictures: uint8 (N, H, W, 3), of methods that make pictures; else None.
    """

    maps: Tensor
    checks: dict[str, Tensor] = field(default_factory=dict)
    pictures: Tensor | None = None


class Attribute(Protocol):
    """A method of `methods.METHODS`."""

    def __call__(
        self,
        explained: ExplainedNetwork,
        pixels: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        seeds: Sequence[int],
    ) -> Attribution:
        """The result for each image; the same whatever the batch size.

        Args:
            explained: The network.
            pixels: float32 (N, C, H, W), normalised, on the network's device.
            targets: int64 (N,), or masks bool (N, H, W); see `ExplainedNetwork.score`. Of methods
                without a target: zeros (N,).
            batch_size: Images that go through the network at once, at most.
            seeds: Of each image, in [0, 2**63): the only source of randomness.
        """


def batched(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover `count`."""
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]
