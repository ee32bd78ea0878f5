"""Samples of a classifier's training: photos kept decoded, random parts and mirror images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.errors import RunError
from robustcli.core.names import find
from robustcli.core.seeds import identity_seed
from robustcli.data.dataset import FileRef
from robustcli.data.decode import UnreadableImage, decode
from robustcli.training.cache import Pixels
from robustcli.training.constant_images import constant_ids

# What a training photo may look like otherwise: a random part of it, and its mirror image.
#
# Source: Szegedy et al., "Going deeper with convolutions" (2015), section 6, as torchvision's
# RandomResizedCrop has it: an area and a ratio of the sides are drawn, up to ten times.


_TRIES = 10
_RATIOS = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Crops:
    """How photos are changed.

    Args:
        least: Share of the photo's area that a part has at least, in (0, 1].
    """

    least: float


CROPS: dict[str, Crops | None] = {"none": None, "light": Crops(0.5), "strong": Crops(0.08)}
"""`light`: a part of at least half of the area, mirrored half of the time. `strong`: of at least
8 %, as ImageNet's networks are trained. `none`: the photo as it is evaluated."""


def crops_name(name: str) -> str:
    """The registered spelling of `name`.

    Raises:
        UsageError: No augmentation is called so; the message offers the nearest names.
    """
    return find(name, CROPS, kind="augmentation", listing="docs/train-cls.md")


def changed(
    image: Tensor, crops: Crops, side: int, interpolation: str, rng: np.random.Generator
) -> Tensor:
    """A random part of `image`, resized to (3, side, side), mirrored half of the time.

    Args:
        image: uint8 (3, H, W).
        crops: How.
        side: Of the result, in pixels.
        interpolation: The model's own.
        rng: Of this image in this epoch.
    """
    top, left, height, width = _box(image.shape[1], image.shape[2], crops, rng)
    mode = InterpolationMode(interpolation)
    part = F.resized_crop(image, top, left, height, width, [side, side], mode, antialias=True)
    mirrored: Tensor = F.horizontal_flip(part) if rng.random() < 0.5 else part
    return mirrored.to(torch.uint8)


def _box(
    height: int, width: int, crops: Crops, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part."""
    # Torchvision's `get_params` draws from torch's global generator; here each image has its own.
    low, high = (math.log(ratio) for ratio in _RATIOS)
    for _ in range(_TRIES):
        area = height * width * rng.uniform(crops.least, 1)
        ratio = math.exp(rng.uniform(low, high))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top = int(rng.integers(0, height - down + 1))
            return top, int(rng.integers(0, width - across + 1)), down, across
    across, down = min(width, round(height * _RATIOS[1])), min(height, round(width / _RATIOS[0]))
    return (height - down) // 2, (width - across) // 2, down, across


# Photos as they are kept while they are trained on.


@dataclass(frozen=True)
class Photo:
    """One image: (H, W, 3), RGB."""

    image: Pixels

    @property
    def arrays(self) -> tuple[Pixels]:
        """The image."""
        return (self.image,)

    @classmethod
    def of(cls, *arrays: Pixels) -> Self:
        """The photo of `arrays`."""
        return cls(*arrays)


def decode_photo(ref: FileRef) -> Photo:
    """The pixels of `ref`.

    Raises:
        RunError: The file cannot be decoded.
    """
    try:
        return Photo(decode(ref))
    except UnreadableImage as error:
        raise RunError(
            f"The image `{ref.relative}` cannot be read.",
            f"{ref.path}: {error.reason}.",
            "Repair or remove the file, then repeat the command.",
        ) from error


# Samples of training and validation: functions of (seed, epoch, image id) and of nothing else.


class Batch(NamedTuple):
    """What a step gets.

    Args:
        images: RGB or greyscale, uint8 (B, C, S, S).
        targets: The class of each, int64 (B).
        ids: The image of each.
        numbers: Which image of its part each is, int64 (B).
        constant: The images, by id, that have a single value per channel.
    """

    images: Tensor
    targets: Tensor
    ids: list[str]
    numbers: Tensor
    constant: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One of a batch."""

    image: Tensor
    target: int
    image_id: str
    number: int


def collate(samples: Sequence[Sample]) -> Batch:
    """The batch of `samples`; without any, an empty one of no height and width."""
    if not samples:
        none = torch.empty(0, dtype=torch.long)
        return Batch(torch.empty(0, 3, 0, 0), none, [], none)
    images, targets, ids, numbers = zip(*samples, strict=True)
    stacked = torch.stack(images)
    return Batch(
        stacked, torch.tensor(targets), list(ids), torch.tensor(numbers),
        constant_ids(stacked, ids),
    )  # fmt: skip


@dataclass(frozen=True)
class DecodedPhotos:
    """A subset of the data, decoded: ids, photos and classes, in the same order."""

    ids: Sequence[str]
    photos: Sequence[Photo]
    targets: Sequence[int]


@dataclass(frozen=True)
class TrainingSamples(Dataset[Sample]):
    """A photo, changed at random; asked for by epoch and place.

    Args:
        part: The images.
        preprocessing: The network's own; without augmentation nothing else is done.
        augmentation: A name of CROPS.
        seed: Of the run.
    """

    part: DecodedPhotos
    preprocessing: Preprocessing
    augmentation: str
    seed: int

    def __getitem__(self, drawn: tuple[int, int]) -> Sample:
        epoch, place = drawn
        part, own, crops = self.part, self.preprocessing, CROPS[self.augmentation]
        image_id, pixels = part.ids[place], part.photos[place].image
        if crops is None:
            image = own.apply(pixels)
        else:
            rng = np.random.default_rng(identity_seed("crop", self.seed, epoch, image_id))
            part_of = changed(_channels_first(pixels), crops, own.crop, own.interpolation, rng)
            image = part_of.permute(1, 2, 0).numpy()
        return Sample(_channels_first(own.coloured(image)), part.targets[place], image_id, place)

    def __len__(self) -> int:
        return len(self.part.ids)


@dataclass(frozen=True)
class ValidationSamples(Dataset[Sample]):
    """Each photo once, as the network is evaluated."""

    part: DecodedPhotos
    preprocessing: Preprocessing

    def __getitem__(self, number: int) -> Sample:
        part = self.part
        own = self.preprocessing
        image = own.coloured(own.apply(part.photos[number].image))
        return Sample(_channels_first(image), part.targets[number], part.ids[number], number)

    def __len__(self) -> int:
        return len(self.part.ids)


def _channels_first(pixels: Pixels) -> Tensor:
    """(H, W, C) to a tensor (C, H, W) of its own, so that a mapped file can close."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
