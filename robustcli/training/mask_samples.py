"""Samples of images with masks: windows and augmentation, by (seed, epoch, image id).

Neither the order of images nor the number of loader processes changes a sample. Torchvision's
transforms draw from torch's global generator, which is seeded for every image and restored
afterwards.
"""

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
from robustcli.core.watchdog import working_on
from robustcli.data.mask_values import IGNORED, is_unscored
from robustcli.training.datamodule import (
    DecodedSubset,
    PixelArray,
    channels_first,
    constant_ids,
)


class RightAngle(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Rotation by 0, 90, 180 or 270 degrees with equal probability; for square images."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draws the number of quarter turns."""
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The rotated image or mask, with its type kept for later transforms."""
        return wrap(torch.rot90(inpt, params["turns"], (-2, -1)), like=inpt)


_TURNS = (v2.RandomHorizontalFlip, v2.RandomVerticalFlip, RightAngle)


@cache
def _light() -> v2.Transform:
    return v2.Compose([*(turn() for turn in _TURNS), v2.ColorJitter(brightness=0.2, contrast=0.2)])


@cache
def _strong() -> v2.Transform:
    """Fills with black and background. Without hue, which takes as long as all other operations."""
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
"""Augmentations of images with masks. `light`: flips, right-angle rotations, brightness and
contrast up to 20 %. `strong`: also rotation, shear, shift, scale and occasional blur; brightness,
contrast and saturation up to 40 %."""


def augmentation_name(name: str) -> str:
    """The registered spelling of the augmentation `name`.

    Raises:
        UsageError: The augmentation does not exist; the message lists the nearest names.
    """
    return find(name, AUGMENTATIONS, kind="augmentation", listing="docs/train-seg.md")


def augment(image: Tensor, mask: Tensor, *, name: str, seed: int) -> tuple[Tensor, Tensor]:
    """Image and mask with the same random augmentation.

    Args:
        image: uint8 (3, S, S).
        mask: uint8 (1, S, S), classes or `mask_values.IGNORED`; resampled by nearest neighbour.
        name: A name of AUGMENTATIONS.
        seed: Seed of this image in this epoch, in `[0, 2**63)`.
    """
    make = AUGMENTATIONS[name]
    if make is None:
        return image, mask
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # CPU only: seeding CUDA is slow
        changed, moved = make()(Image(image), Mask(mask))
    return changed.as_subclass(Tensor), moved.as_subclass(Tensor)


@dataclass(frozen=True)
class CountedWindow:
    """A window of an image, and the rectangle of its pixels that are counted.

    Args:
        top: First row of the window in the image.
        left: First column.
        first_row: First counted row of the window.
        first_column: First counted column of the window.
        rows: Number of counted rows.
        columns: Number of counted columns.
    """

    top: int
    left: int
    first_row: int
    first_column: int
    rows: int
    columns: int


def tiles(height: int, width: int, side: int) -> Iterator[CountedWindow]:
    """Windows of `side` pixels that together count every pixel of an image once.

    Overlapping pixels are counted in the earlier window. Images smaller than a window are padded.
    """
    for top, first_row, rows in _spans(height, side):
        for left, first_column, columns in _spans(width, side):
            yield CountedWindow(top, left, first_row, first_column, rows, columns)


def _spans(length: int, side: int) -> Iterator[tuple[int, int, int]]:
    """(start of the window, first counted pixel in it, number of counted pixels) per window."""
    if length <= side:
        yield 0, (side - length) // 2, length
        return
    count = -(-length // side)
    counted = 0
    for i in range(count):
        start = round(i * (length - side) / (count - 1))
        yield start, counted - start, start + side - counted
        counted = start + side


def window(pixels: PixelArray, top: int, left: int, side: int) -> PixelArray:
    """The window of `pixels` (H, W, ...) at `top`, `left`; a smaller image is centred and padded.

    Padding is by reflection, as in prediction. Masks are padded alike, so that reflected objects
    are labelled as foreground.
    """
    part = pixels[top : top + side, left : left + side]
    short = [side - length for length in part.shape[:2]]
    if not any(short):
        return part
    pads = [(pixels // 2, pixels - pixels // 2) for pixels in short]
    return np.pad(part, pads + [(0, 0)] * (part.ndim - 2), mode="reflect")


def random_place(height: int, width: int, side: int, *identity: object) -> tuple[int, int]:
    """Top and left of a training window, drawn uniformly with a seed from `identity`."""
    rng = np.random.default_rng(identity_seed("window", *identity))
    top = int(rng.integers(0, max(0, height - side) + 1))
    return top, int(rng.integers(0, max(0, width - side) + 1))


class MaskBatch(NamedTuple):
    """A batch of images with masks.

    Args:
        images: RGB (B, 3, S, S), uint8, or float32 in [0, 1] if resized.
        masks: (B, 1, S, S), 0 to K (1 for foreground) or `IGNORED`; uint8, or soft float32 if
            resized.
        numbers: Index of the image, or in validation of the window, int64 (B,).
        counted: Mask of the pixels counted in validation, bool (B, 1, S, S), without ignored ones.
        constant: Ids of the constant images.
    """

    images: Tensor
    masks: Tensor
    ids: list[str]
    numbers: Tensor
    counted: Tensor
    constant: tuple[str, ...] = ()


class MaskSample(NamedTuple):
    """One sample of a `MaskBatch`."""

    image: Tensor
    mask: Tensor
    image_id: str
    number: int
    counted: Tensor


def collate_masks(samples: Sequence[MaskSample]) -> MaskBatch:
    """The batch of `samples`; without samples, an empty batch with height and width 0."""
    if not samples:
        nothing = torch.empty(0, 1, 0, 0)
        return MaskBatch(nothing, nothing, [], torch.empty(0, dtype=torch.long), nothing.bool())
    images, masks, ids, numbers, counted = zip(*samples, strict=True)
    stacked = torch.stack(images)
    return MaskBatch(
        stacked, torch.stack(masks), list(ids), torch.tensor(numbers), torch.stack(counted),
        constant_ids(stacked, ids),
    )  # fmt: skip


@dataclass(frozen=True)
class RandomWindows(Dataset[MaskSample]):
    """Augmented random windows of images, indexed by (epoch, image index)."""

    subset: DecodedSubset
    side: int
    augmentation: str
    seed: int

    def __getitem__(self, drawn: tuple[int, int]) -> MaskSample:
        epoch, index = drawn
        decoded, image_id = self.subset.decoded[index], self.subset.ids[index]
        identity = (self.seed, epoch, image_id)
        top, left = random_place(*decoded.mask.shape, self.side, *identity)
        with working_on(f"augmenting `{image_id}`"):
            image, mask = augment(
                channels_first(window(decoded.image, top, left, self.side)),
                channels_first(window(decoded.mask, top, left, self.side)),
                name=self.augmentation,
                seed=identity_seed("augmentation", *identity, bits=63),
            )
        return MaskSample(image.contiguous(), mask.contiguous(), image_id, index, mask != IGNORED)

    def __len__(self) -> int:
        return len(self.subset.ids)


class AllWindows(Dataset[MaskSample]):
    """All windows of all images, each pixel counted once; `places` has their image indices.

    Images whose mask is ignored entirely are left out, as in an evaluation: without a counted pixel
    their dice would be 1.
    """

    def __init__(self, subset: DecodedSubset, side: int) -> None:
        self.subset, self.side = subset, side
        self.tiles: list[tuple[int, CountedWindow]] = [
            (index, tile)
            for index, decoded in enumerate(subset.decoded)
            if not is_unscored(decoded.mask)
            for tile in tiles(decoded.mask.shape[0], decoded.mask.shape[1], side)
        ]
        self.places = [index for index, _ in self.tiles]

    def __getitem__(self, number: int) -> MaskSample:
        index, tile = self.tiles[number]
        decoded = self.subset.decoded[index]
        counted = torch.zeros(1, self.side, self.side, dtype=torch.bool)
        rows = slice(tile.first_row, tile.first_row + tile.rows)
        counted[:, rows, tile.first_column : tile.first_column + tile.columns] = True
        with working_on(f"cutting a window of `{self.subset.ids[index]}`"):
            image = channels_first(window(decoded.image, tile.top, tile.left, self.side))
            mask = channels_first(window(decoded.mask, tile.top, tile.left, self.side))
        return MaskSample(image, mask, self.subset.ids[index], number, counted & (mask != IGNORED))

    def __len__(self) -> int:
        return len(self.tiles)


class ResizedImages(Dataset[MaskSample]):
    """Complete images and masks resized as in the paper, which makes mask edges soft.

    Source: torchvision 0.15's `Resize` of tensors: bilinear, without antialiasing.
    """

    def __init__(self, subset: DecodedSubset, side: int) -> None:
        self.subset, self.side, self.places = subset, side, list(range(len(subset.ids)))

    def __getitem__(self, drawn: int | tuple[int, int]) -> MaskSample:
        index = drawn if isinstance(drawn, int) else drawn[1]
        decoded = self.subset.decoded[index]
        counted = torch.ones(1, self.side, self.side, dtype=torch.bool)
        with working_on(f"resizing `{self.subset.ids[index]}`"):
            image = self._resized(channels_first(decoded.image).float() / 255)
            mask = self._resized(channels_first(decoded.mask).float())
        return MaskSample(image, mask, self.subset.ids[index], index, counted)

    def __len__(self) -> int:
        return len(self.subset.ids)

    def _resized(self, pixels: Tensor) -> Tensor:
        size = (self.side, self.side)
        if pixels.shape[1:] == size:
            return pixels
        return F.interpolate(pixels[None], size, mode="bilinear", align_corners=False)[0]
