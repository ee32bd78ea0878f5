"""What every loaded model has, classifier or segmenter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
GREY = "`{}` reads one channel: images are turned into greyscale (luma of ITU-R BT.601)."
"""What is announced of a model that reads greyscale images."""


@dataclass(frozen=True)
class Facts:
    """What a record says of a model beside its preprocessing; `scans`: it needs the scan."""

    name: str
    family: str
    builder: str
    arguments: dict[str, object]
    parameters: int
    weights: str
    weights_sha256: str
    pretraining: str
    untrained: bool
    label_space: str
    scans: bool


SelfT = TypeVar("SelfT", bound="Model")


class Model(Protocol):
    """A network in eval mode on its device, with its preprocessing and precision."""

    network: nn.Module
    facts: Facts
    notes: tuple[str, ...]
    """What is to be announced of how it was loaded, a line each."""
    device: torch.device
    precision: Precision

    @property
    def preprocessing(self) -> Any:
        """How images become its input: a dataclass with a `view`."""

    def to(self: SelfT, device: torch.device, precision: Precision) -> SelfT:
        """This model, moved."""

    def try_out(self) -> None:
        """Puts one made-up image through the network.

        Raises:
            UsageError: It cannot take images of its preprocessing, or does not answer as a model
                of its task does; the message says what it wants.
        """

    @property
    def predict(self) -> Callable[..., Any]:
        """Of equally long inputs, one entry an image, to the answers.

        The inputs of a classifier are views and true classes, those of a segmenter images of any
        size.
        """
