"""Samples of training and validation: functions of (seed, epoch, image id) and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.tv_tensors import Image, Mask, wrap

from robustcli.core.names import find
from robustcli.core.seeds import identity_seed
from robustcli.data.mask_values import IGNORED
from robustcli.training.cache import Decoded, Pixels
from robustcli.training.constant_images import constant_ids

# What a training image may look like otherwise: image and mask are changed together.
#
# Made of torchvision's transforms. They draw from torch's global generator, which is set to a seed
# of its own for every image and put back afterwards; so neither the order of the images nor the
# number of workers changes what an image becomes.


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


# Square windows out of images of any size: a random one for training, all for validation.


@dataclass(frozen=True)
class Tile:
    """A window of an image, and what of it counts.

    Args:
        top: First row of the window in the image.
        left: First column.
        first_row: The first row of the window that counts.
        first_column: The first column that does.
        rows: How many rows count.
        columns: How many columns.
    """

    top: int
    left: int
    first_row: int
    first_column: int
    rows: int
    columns: int


def tiles(height: int, width: int, side: int) -> Iterator[Tile]:
    """Windows of `side` pixels that count every pixel of an image once.

    Where windows overlap, the earlier one counts. An image smaller than a window is padded.
    """
    for top, first_row, rows in _spans(height, side):
        for left, first_column, columns in _spans(width, side):
            yield Tile(top, left, first_row, first_column, rows, columns)


def _spans(length: int, side: int) -> Iterator[tuple[int, int, int]]:
    """Start of each window, and the first and the number of its pixels that count."""
    if length <= side:
        yield 0, (side - length) // 2, length
        return
    count = -(-length // side)
    counted = 0
    for i in range(count):
        start = round(i * (length - side) / (count - 1))
        yield start, counted - start, start + side - counted
        counted = start + side


def window(pixels: Pixels, top: int, left: int, side: int) -> Pixels:
    """The window of `pixels` (H, W, ...) at `top`, `left`; a smaller image in the middle of it.

    It is continued by reflection, as prediction does it, and so is the mask: what the network sees
    there is foreground all the same.
    """
    part = pixels[top : top + side, left : left + side]
    short = [side - length for length in part.shape[:2]]
    if not any(short):
        return part
    pads = [(missing // 2, missing - missing // 2) for missing in short]
    return np.pad(part, pads + [(0, 0)] * (part.ndim - 2), mode="reflect")


def random_place(height: int, width: int, side: int, *identity: object) -> tuple[int, int]:
    """Top and left of a training window, drawn from `identity` alone, every place as likely."""
    rng = np.random.default_rng(identity_seed("window", *identity))
    top = int(rng.integers(0, max(0, height - side) + 1))
    return top, int(rng.integers(0, max(0, width - side) + 1))


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

    @property
    def places(self) -> list[int]:
        """Of each sample, the place of its image."""
        return [place for place, _ in self.tiles]


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

    @property
    def places(self) -> list[int]:
        """Of each sample, the place of its image."""
        return list(range(len(self)))


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
