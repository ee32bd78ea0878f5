"""What a training image may look like otherwise: image and mask are changed together.

Made of torchvision's transforms. They draw from torch's global generator, which is set to a seed of
its own for every image and put back afterwards; so neither the order of the images nor the number
of workers changes what an image becomes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask, wrap

from robustcli.core.names import find


class RightAngle(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """A turn by 0, 90, 180 or 270 degrees, each as likely; for square images."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """How many quarter turns."""
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The turned image or mask, still known as one: what comes after moves only these."""
        return wrap(torch.rot90(inpt, params["turns"], (-2, -1)), like=inpt)


_TURNS = (v2.RandomHorizontalFlip, v2.RandomVerticalFlip, RightAngle)


@cache
def _light() -> v2.Transform:
    return v2.Compose([*(turn() for turn in _TURNS), v2.ColorJitter(brightness=0.2, contrast=0.2)])


@cache
def _strong() -> v2.Transform:
    """Also turned, shifted and scaled freely (what comes into view is black and background).

    Hue stays: changing it takes as long as all of the rest.
    """
    return v2.Compose(
        [
            *(turn() for turn in _TURNS),
            v2.RandomApply(
                [v2.RandomAffine(degrees=30, translate=(0.1, 0.1), scale=(0.75, 1.33), shear=5)],
                p=0.5,
            ),
            v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 1.5))], p=0.2),
        ]
    )


AUGMENTATIONS = {"none": None, "light": _light, "strong": _strong}
"""`light`: flips, turns by right angles, brightness and contrast up to 20 %. `strong`: also turned,
sheared, shifted and scaled freely and sometimes blurred, brightness, contrast and saturation up to
40 %."""


def augmentation_name(name: str) -> str:
    """The registered spelling of `name`.

    Raises:
        UsageError: No augmentation is called so; the message offers the nearest names.
    """
    return find(name, AUGMENTATIONS, kind="augmentation", listing="docs/train-seg.md")


def augment(image: Tensor, mask: Tensor, *, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Image and mask, changed together.

    Args:
        image: uint8 (3, S, S).
        mask: uint8 (1, S, S), 0, 1 or `mask_values.IGNORED`: it is moved by nearest neighbour.
        name: One of AUGMENTATIONS.
        seed: Of this image in this epoch, in `[0, 2**63)`.
    """
    make = AUGMENTATIONS[name]
    if make is None:
        return image, mask
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU alone: CUDA would cost a stack trace
        changed, moved = make()(Image(image), Mask(mask))
    return changed.as_subclass(Tensor), moved.as_subclass(Tensor)
