"""Samples of training and validation: functions of (seed, epoch, image id) and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.core.seeds import identity_seed
from robustcli.training.batches.cache import Pixels
from robustcli.training.classification.crops import CROPS, changed
from robustcli.training.classification.photos import Photo
from robustcli.training.constant_images import constant_ids


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
class Part:
    """One part of the data, decoded: ids, photos and classes, in the same order."""

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

    part: Part
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

    part: Part
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
