"""Samples of training and validation: functions of (seed, epoch, image id) and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from robustcli.core.seeds import identity_seed
from robustcli.data.mask_values import IGNORED
from robustcli.training.batches.augmentations import augment
from robustcli.training.batches.cache import Decoded, Pixels
from robustcli.training.batches.windows import Tile, random_place, tiles, window
from robustcli.training.constant_images import constant_ids


class Batch(NamedTuple):
    """What a step gets.

    Args:
        images: RGB (B, 3, S, S), uint8, or float32 in [0, 1] where they were resized.
        masks: (B, 1, S, S), 0, 1 or `IGNORED`; uint8, or float32 and soft where they were resized.
        ids: The image of each.
        numbers: Of each sample, int64 (B): which image, or in validation which window.
        counted: Which pixels count in validation, bool (B, 1, S, S); those to ignore never do.
        constant: The images, by id, that have a single value per channel.
    """

    images: Tensor
    masks: Tensor
    ids: list[str]
    numbers: Tensor
    counted: Tensor
    constant: tuple[str, ...] = ()


class Sample(NamedTuple):
    """One of a batch."""

    image: Tensor
    mask: Tensor
    image_id: str
    number: int
    counted: Tensor


def collate(samples: Sequence[Sample]) -> Batch:
    """The batch of `samples`; without any, an empty one of no height and width."""
    if not samples:
        nothing = torch.empty(0, 1, 0, 0)
        return Batch(nothing, nothing, [], torch.empty(0, dtype=torch.long), nothing.bool())
    images, masks, ids, numbers, counted = zip(*samples, strict=True)
    stacked = torch.stack(images)
    return Batch(
        stacked,
        torch.stack(masks),
        list(ids),
        torch.tensor(numbers),
        torch.stack(counted),
        constant_ids(stacked, ids),
    )


@dataclass(frozen=True)
class TrainingSamples(Dataset[Sample]):
    """A random window of an image, augmented; asked for by epoch and place.

    Args:
        ids: The images.
        decoded: Their pixels.
        side: Of the window.
        augmentation: A name of AUGMENTATIONS.
        seed: Of the run.
    """

    ids: Sequence[str]
    decoded: Sequence[Decoded]
    side: int
    augmentation: str
    seed: int

    def __getitem__(self, drawn: tuple[int, int]) -> Sample:
        epoch, place = drawn
        one, identity = self.decoded[place], (self.seed, epoch, self.ids[place])
        top, left = random_place(*one.mask.shape, self.side, *identity)
        seed = identity_seed("augmentation", *identity, bits=63)
        image, mask = augment(
            _channels_first(window(one.image, top, left, self.side)),
            _channels_first(window(one.mask, top, left, self.side)),
            name=self.augmentation,
            seed=seed,
        )
        return Sample(
            image.contiguous(), mask.contiguous(), self.ids[place], place, mask != IGNORED
        )

    def __len__(self) -> int:
        return len(self.ids)


class ValidationSamples(Dataset[Sample]):
    """Every window of every image, so that every pixel counts once."""

    def __init__(self, ids: Sequence[str], decoded: Sequence[Decoded], side: int) -> None:
        self.ids, self.decoded, self.side = ids, decoded, side
        self.tiles: list[tuple[int, Tile]] = [
            (place, tile)
            for place, one in enumerate(decoded)
            for tile in tiles(one.mask.shape[0], one.mask.shape[1], side)
        ]

    def __getitem__(self, number: int) -> Sample:
        place, tile = self.tiles[number]
        one = self.decoded[place]
        counted = torch.zeros(1, self.side, self.side, dtype=torch.bool)
        rows = slice(tile.first_row, tile.first_row + tile.rows)
        counted[:, rows, tile.first_column : tile.first_column + tile.columns] = True
        mask = _channels_first(window(one.mask, tile.top, tile.left, self.side))
        return Sample(
            _channels_first(window(one.image, tile.top, tile.left, self.side)),
            mask,
            self.ids[place],
            number,
            counted & (mask != IGNORED),
        )

    def __len__(self) -> int:
        return len(self.tiles)


class WholeSamples(Dataset[Sample]):
    """Whole images and masks, resized as the paper did, so that edges of masks become soft.

    Source: torchvision 0.15's `Resize` of tensors: bilinear, without antialiasing.
    """

    def __init__(self, ids: Sequence[str], decoded: Sequence[Decoded], side: int) -> None:
        self.ids, self.decoded, self.side = ids, decoded, side

    def __getitem__(self, drawn: int | tuple[int, int]) -> Sample:
        place = drawn if isinstance(drawn, int) else drawn[1]
        one = self.decoded[place]
        counted = torch.ones(1, self.side, self.side, dtype=torch.bool)
        image = resized(_channels_first(one.image).float() / 255, self.side)
        mask = resized(_channels_first(one.mask).float(), self.side)
        return Sample(image, mask, self.ids[place], place, counted)

    def __len__(self) -> int:
        return len(self.ids)


def resized(pixels: Tensor, side: int) -> Tensor:
    """`pixels` (C, H, W), float32, at (C, side, side)."""
    if pixels.shape[1:] == (side, side):
        return pixels
    return F.interpolate(pixels[None], (side, side), mode="bilinear", align_corners=False)[0]


def _channels_first(pixels: Pixels) -> Tensor:
    """(H, W, C) or (H, W) to a tensor (C, H, W) of its own, so that a mapped file can close."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
