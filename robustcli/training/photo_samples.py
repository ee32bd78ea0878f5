"""Batches of images with classes, augmented by (seed, epoch, image id).

An augmentation is a random crop, resized as usual for ImageNet, or a shift as usual for CIFAR: the
image is padded, cropped at a random position, and mirrored with probability 0.5; RandAugment can
follow. The random numbers of shifts are drawn for many images at once, so that loader processes
(NumPy) and a device that stores all images (torch) give the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from robustcli.adapters.preprocessing import Preprocessing, grey
from robustcli.core.draws import Bits, below, stream_bits, stream_keys
from robustcli.core.errors import UsageError
from robustcli.core.machine import available_bytes
from robustcli.core.names import find
from robustcli.core.seeds import identity_seed
from robustcli.core.watchdog import switch_to, working_on
from robustcli.training.datamodule import (
    DecodedSubset,
    PixelArray,
    channels_first,
    constant_ids,
)


@dataclass(frozen=True)
class Crops:
    """Random crops; `least` is the smallest share of the image's area, in (0, 1]."""

    least: float


CROPS: dict[str, Crops | None] = {"none": None, "light": Crops(0.5), "strong": Crops(0.08)}
"""Random crops by name. `light`: a crop of at least half of the area, mirrored with
probability 0.5. `strong`: a crop of at least 8 %, as usual for ImageNet. `none`: the preprocessing
of evaluation."""
_CROP_TRIES = 10
_CROP_RATIOS = (3 / 4, 4 / 3)


def random_crop(
    image: Tensor, crops: Crops, side: int, interpolation: str, rng: np.random.Generator
) -> Tensor:
    """A random crop of uint8 `image` (3, H, W), resized to (3, side, side), randomly mirrored."""
    top, left, height, width = _crop_box(image.shape[1], image.shape[2], crops, rng)
    mode = InterpolationMode(interpolation)
    crop = v2.functional.resized_crop(
        image, top, left, height, width, [side, side], mode, antialias=True
    )
    mirrored: Tensor = v2.functional.horizontal_flip(crop) if rng.random() < 0.5 else crop
    return mirrored.to(torch.uint8)


def _crop_box(
    height: int, width: int, crops: Crops, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop.

    Source: Szegedy et al., "Going deeper with convolutions" (2015), section 6, like
    torchvision's RandomResizedCrop: draws an area and an aspect ratio, up to ten times. Its
    `get_params` uses torch's global generator; here each image has a separate generator.
    """
    low, high = (math.log(ratio) for ratio in _CROP_RATIOS)
    for _ in range(_CROP_TRIES):
        area = height * width * rng.uniform(crops.least, 1)
        ratio = math.exp(rng.uniform(low, high))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top = int(rng.integers(0, height - down + 1))
            return top, int(rng.integers(0, width - across + 1)), down, across
    across = min(width, round(height * _CROP_RATIOS[1]))
    down = min(height, round(width / _CROP_RATIOS[0]))
    return (height - down) // 2, (width - across) // 2, down, across


_DRAWS = 4  # per image and epoch: row, column, mirroring, and the seed of RandAugment
_SEED_BITS = np.uint64(1)  # to shift away: torch takes seeds below 2**63
RESIDENT_SHARE = 0.5
"""Share of a device's free memory for images; the rest is left for the network."""

Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class Shifts:
    """Random crops after padding, mirrored with probability 0.5.

    Args:
        share: Padding on each side as a share of the image's side: 1/8 is 4 of 32 pixels.
        padding: Padding with black pixels or by reflection.
        operations: Number of RandAugment operations that follow; 0 for none.
        magnitude: Magnitude of RandAugment, up to 30. Source: Cubuk et al., "RandAugment" (2020);
            the operations are torchvision's.
    """

    share: float = 1 / 8
    padding: Literal["constant", "reflect"] = "constant"
    operations: int = 0
    magnitude: int = 9

    def pixels(self, side: int) -> int:
        """Padding in pixels for images with `side` pixels per side."""
        return round(self.share * side)


SHIFTS: dict[str, Shifts] = {
    "shift": Shifts(),
    "shift-reflect": Shifts(padding="reflect"),
    "randaugment": Shifts(operations=2, magnitude=9),
}
"""Batched augmentations by name: `shift` pads with black, `shift-reflect` by reflection;
`randaugment` is `shift` followed by two RandAugment operations with magnitude 9."""
PHOTO_AUGMENTATIONS: dict[str, Crops | Shifts | None] = {**CROPS, **SHIFTS}


def photo_augmentation_name(name: str) -> str:
    """The registered spelling of the augmentation `name`.

    Raises:
        UsageError: The augmentation does not exist; the message lists the nearest names.
    """
    return find(name, PHOTO_AUGMENTATIONS, kind="augmentation", listing="docs/train-cls.md")


@dataclass(frozen=True)
class Drawn:
    """Random numbers for B images.

    Args:
        down: First row of the crop in the padded image, (B,).
        across: First column of the crop, (B,).
        mirrored: Whether the image is mirrored, bool (B,).
        seeds: Seeds of RandAugment below 2**63, (B,).
    """

    down: Offsets
    across: Offsets
    mirrored: NDArray[np.bool_]
    seeds: Bits


def draw(keys: Bits, epochs: NDArray[np.integer] | int, padding: int) -> Drawn:
    """The random numbers of the images with `keys` in `epochs`, counted from 0."""
    first = np.asarray(epochs, np.uint64) * np.uint64(_DRAWS)
    bits = stream_bits(keys, first, _DRAWS)
    places = 2 * padding + 1
    down, across = below(bits[:, 0], places), below(bits[:, 1], places)
    return Drawn(down, across, below(bits[:, 2], 2) == 1, bits[:, 3] >> _SEED_BITS)


def padded(images: PixelArray, pixels: int, padding: str) -> PixelArray:
    """The `images` (B, S, S, C) padded by `pixels` on each side."""
    sides = [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)]
    if padding == "reflect":
        return np.pad(images, sides, mode="reflect")
    return np.pad(images, sides)


def shifted(images: PixelArray, drawn: Drawn, shifts: Shifts) -> PixelArray:
    """The `images` (B, S, S, C) cropped and mirrored as `drawn`, as (B, C, S, S)."""
    side = images.shape[1]
    windows = np.lib.stride_tricks.sliding_window_view(  # type: ignore[call-overload]
        padded(images, shifts.pixels(side), shifts.padding),
        (side, side),
        axis=(1, 2),
    )  # (B, places, places, C, S, S)
    cut = windows[np.arange(len(images)), drawn.down, drawn.across]
    cut[drawn.mirrored] = cut[drawn.mirrored][..., ::-1]
    return np.ascontiguousarray(cut)


@cache
def _randaugment(operations: int, magnitude: int) -> v2.Transform:
    return v2.RandAugment(operations, magnitude)


def randaugmented(images: PixelArray, seeds: Bits, shifts: Shifts) -> PixelArray:
    """RandAugment of each of the `images` (B, 3, S, S), each with its seed.

    Works on Pillow images like torchvision's training scripts, in half of the time of tensors.
    """
    transform = _randaugment(shifts.operations, shifts.magnitude)
    augmented = np.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for number, seed in enumerate(seeds.tolist()):
            torch.default_generator.manual_seed(seed)
            picture = transform(Image.fromarray(images[number].transpose(1, 2, 0)))
            augmented[number] = np.asarray(picture).transpose(2, 0, 1)
    return augmented


class PhotoBatch(NamedTuple):
    """A batch of images with classes.

    Args:
        images: RGB or greyscale, uint8 (B, C, S, S).
        targets: Class indices, int64 (B,).
        numbers: Index of each image in its subset, int64 (B,).
        constant: Ids of the constant images.
    """

    images: Tensor
    targets: Tensor
    ids: list[str]
    numbers: Tensor
    constant: tuple[str, ...] = ()


def _empty_batch() -> PhotoBatch:
    """A batch without images, with height and width 0."""
    none = torch.empty(0, dtype=torch.long)
    return PhotoBatch(torch.empty(0, 3, 0, 0), none, [], none)


def _whole(
    subset: DecodedSubset, preprocessing: Preprocessing, indices: Sequence[int]
) -> PixelArray:
    """The images at `indices` with the preprocessing of evaluation, RGB (B, S, S, 3)."""
    crop, resize = preprocessing.crop, preprocessing.resize
    has_size = resize in (None, crop)  # whether images of the size of the input stay unchanged
    return np.stack(
        [
            image if has_size and image.shape[:2] == (crop, crop) else preprocessing.apply(image)
            for image in (subset.decoded[index].image for index in indices)
        ]
    )


class PhotoBatches(Dataset[PhotoBatch]):
    """Batches of images, indexed by lists of (epoch, image index).

    Args:
        subset: The images.
        preprocessing: Preprocessing of the network.
        augmentation: A value of PHOTO_AUGMENTATIONS; None for the preprocessing of evaluation, and
            plain indices.
        seed: Seed of the augmentation.
    """

    def __init__(
        self, subset: DecodedSubset, preprocessing: Preprocessing,
        augmentation: Crops | Shifts | None, seed: int,
    ) -> None:  # fmt: skip
        self.subset, self.preprocessing, self.augmentation = subset, preprocessing, augmentation
        self.seed, self.keys = seed, photo_keys(subset.ids, seed)
        self.targets = np.array(subset.targets, np.int64)

    def __getitem__(self, key: int | tuple[int, int]) -> PhotoBatch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> PhotoBatch:
        """The batch of these images; called by torch's loader instead of `__getitem__`."""
        if not keys:
            return _empty_batch()
        epochs, indices = epochs_and_places(keys)
        ids = [self.subset.ids[index] for index in indices]
        with working_on(f"augmenting `{ids[0]}` to `{ids[-1]}`"):
            pixels = self._augmented(epochs, indices)
            if self.preprocessing.channels == 1:
                greys = [grey(image.transpose(1, 2, 0)) for image in pixels]
                pixels = np.stack(greys).transpose(0, 3, 1, 2)
            images = torch.from_numpy(np.ascontiguousarray(pixels))
        targets = torch.from_numpy(self.targets[indices])
        return PhotoBatch(images, targets, ids, torch.tensor(indices), constant_ids(images, ids))

    def _augmented(self, epochs: Sequence[int], indices: Sequence[int]) -> PixelArray:
        """The augmented images in colour, (B, 3, S, S)."""
        shifts = self.augmentation
        if isinstance(shifts, Crops):
            pairs = zip(epochs, indices, strict=True)
            return np.stack([self._crop(shifts, epoch, index) for epoch, index in pairs])
        whole = _whole(self.subset, self.preprocessing, indices)
        if shifts is None:
            return whole.transpose(0, 3, 1, 2)
        padding = shifts.pixels(self.preprocessing.crop)
        draws = draw(self.keys[indices], np.array(epochs), padding)
        images = shifted(whole, draws, shifts)
        return randaugmented(images, draws.seeds, shifts) if shifts.operations else images

    def _crop(self, crops: Crops, epoch: int, index: int) -> PixelArray:
        image_id, preprocessing = self.subset.ids[index], self.preprocessing
        switch_to(f"cropping `{image_id}`")
        rng = np.random.default_rng(identity_seed("crop", self.seed, epoch, image_id))
        image = channels_first(self.subset.decoded[index].image)
        side, interpolation = preprocessing.crop, preprocessing.interpolation
        return random_crop(image, crops, side, interpolation, rng).numpy()

    def __len__(self) -> int:
        return len(self.subset.ids)


def epochs_and_places(keys: Sequence[int | tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Epochs and image indices of the requested samples; the epoch is 0 for plain indices."""
    pairs = [(0, item) if isinstance(item, int) else item for item in keys]
    return [epoch for epoch, _ in pairs], [place for _, place in pairs]


def photo_keys(ids: Sequence[str], seed: int) -> Bits:
    """The keys of the images for `draw`."""
    return stream_keys([("shift", seed, image_id) for image_id in ids])


class ResidentPhotos(Dataset[PhotoBatch]):
    """Batches from one tensor with all images on the device, indexed by lists.

    Args:
        subset: The images; all are copied to the device.
        preprocessing: Preprocessing of the network.
        shifts: Augmentation, for indices (epoch, image index); None for none and plain indices.
        seed: Seed of the augmentation.
        device: Device of the images.

    Raises:
        UsageError: The images do not fit into the memory of the device.
    """

    def __init__(
        self, subset: DecodedSubset, preprocessing: Preprocessing, shifts: Shifts | None, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.ids, self.shifts = subset.ids, shifts
        self.side, self.keys = preprocessing.crop, photo_keys(subset.ids, seed)
        self.padding = 0 if shifts is None else shifts.pixels(self.side)
        self._check_fits(preprocessing, device)
        pixels = _whole(subset, preprocessing, range(len(subset.ids)))
        if preprocessing.channels == 1:
            pixels = np.stack([grey(image) for image in pixels])
        # Constant images are determined once: a test per batch would synchronise the device.
        tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        self.constant = frozenset(constant_ids(tensor, subset.ids))
        if shifts is not None:
            pixels = padded(pixels, self.padding, shifts.padding)
            tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        self.images = tensor.to(device)
        self.targets = torch.tensor(subset.targets, dtype=torch.int64, device=device)

    def __getitem__(self, keys: Sequence[int | tuple[int, int]]) -> PhotoBatch:
        if not keys:
            return _empty_batch()
        epochs, indices = epochs_and_places(keys)
        places = torch.tensor(indices, device=self.images.device)
        images = self.images[places]
        if self.shifts is not None:
            draws = draw(self.keys[indices], np.array(epochs), self.padding)
            images = self._cut(images, draws)
        ids = [self.ids[index] for index in indices]
        constant = tuple(image_id for image_id in ids if image_id in self.constant)
        return PhotoBatch(images, self.targets[places], ids, places, constant)

    def __len__(self) -> int:
        return len(self.ids)

    def _cut(self, images: Tensor, draws: Drawn) -> Tensor:
        """The padded `images` (B, C, S + 2 P, S + 2 P) cropped and mirrored, as (B, C, S, S)."""
        device = images.device
        down, across, mirrored = (
            torch.from_numpy(values).to(device)
            for values in (draws.down, draws.across, draws.mirrored)
        )
        steps = torch.arange(self.side, device=device)
        # A mirrored image is read from the last column to the first.
        turned = torch.where(mirrored[:, None], self.side - 1 - steps, steps)
        rows = (down[:, None] + steps)[:, None, :, None]  # (B, 1, S, 1)
        columns = (across[:, None] + turned)[:, None, None, :]
        samples = torch.arange(len(images), device=device)[:, None, None, None]
        colours = torch.arange(images.shape[1], device=device)[None, :, None, None]
        return images[samples, colours, rows, columns]

    def _check_fits(self, preprocessing: Preprocessing, device: torch.device) -> None:
        side = self.side + 2 * self.padding
        needed = len(self) * preprocessing.channels * side * side
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
        if needed > RESIDENT_SHARE * free:
            raise UsageError(
                f"The images need {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free.",
                "Recipe `speedrun` stores all preprocessed images on the device.",
                "Use a smaller `--window`, `--limit`, or `--recipe fair`, which loads batches.",
            )
