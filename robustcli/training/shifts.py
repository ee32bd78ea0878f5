"""Batched augmentation of small images, as usual for CIFAR.

Each image is padded, cropped at a random position, and mirrored with probability 0.5; RandAugment
can follow. The random numbers depend only on seed, epoch and image id. They are drawn for many
images at once, so that loader processes (NumPy) and a device that stores all images (torch) give
the same pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from robustcli.adapters.preprocessing import Preprocessing, grey
from robustcli.core.draws import Bits, below, stream_bits, stream_keys
from robustcli.core.errors import UsageError
from robustcli.core.machine import available_bytes
from robustcli.core.names import find
from robustcli.core.watchdog import working_on
from robustcli.training.datamodule import DecodedSubset, PixelArray
from robustcli.training.samples import CROPS, Crops, PhotoBatch, collate_photos, constant_ids

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


class PhotoViews:
    """Preprocessed images of a subset without augmentation, RGB (S, S, 3)."""

    def __init__(self, subset: DecodedSubset, preprocessing: Preprocessing) -> None:
        self.subset, self.preprocessing = subset, preprocessing
        self.targets = np.array(subset.targets, np.int64)

    def pixels(self, indices: Sequence[int]) -> PixelArray:
        """The images at `indices`, (B, S, S, 3)."""
        return np.stack([self._view(self.subset.decoded[index].image) for index in indices])

    def batch(self, images: Tensor, indices: Sequence[int]) -> PhotoBatch:
        """The batch of the images at `indices` with the pixels `images` (B, C, S, S)."""
        ids = [self.subset.ids[index] for index in indices]
        targets = torch.from_numpy(self.targets[list(indices)])
        return PhotoBatch(images, targets, ids, torch.tensor(indices), constant_ids(images, ids))

    def _view(self, image: PixelArray) -> PixelArray:
        crop, resize = self.preprocessing.crop, self.preprocessing.resize
        if image.shape[:2] == (crop, crop) and resize in (None, crop):
            return image  # already has the size of the input
        return self.preprocessing.apply(image)


class PhotoBatches(Dataset[PhotoBatch]):
    """Batches of images, indexed by lists of (epoch, image index), or of indices without `shifts`.

    Args:
        subset: The images.
        preprocessing: Preprocessing of the network.
        shifts: Augmentation; None for none.
        seed: Seed of the augmentation.
    """

    def __init__(
        self, subset: DecodedSubset, preprocessing: Preprocessing, shifts: Shifts | None, seed: int
    ) -> None:
        self.views, self.shifts = PhotoViews(subset, preprocessing), shifts
        self.keys = photo_keys(subset.ids, seed)

    def __getitem__(self, key: int | tuple[int, int]) -> PhotoBatch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> PhotoBatch:
        """The batch of these images; called by torch's loader instead of `__getitem__`."""
        if not keys:
            return collate_photos([])
        epochs, indices = epochs_and_places(keys)
        ids = self.views.subset.ids
        with working_on(f"augmenting `{ids[indices[0]]}` to `{ids[indices[-1]]}`"):
            return self._batch(epochs, indices)

    def _batch(self, epochs: Sequence[int], indices: Sequence[int]) -> PhotoBatch:
        preprocessing, shifts = self.views.preprocessing, self.shifts
        pixels = self.views.pixels(indices)
        if shifts is None:
            images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        else:
            draws = draw(self.keys[indices], np.array(epochs), shifts.pixels(preprocessing.crop))
            images = shifted(pixels, draws, shifts)
            if shifts.operations:
                images = randaugmented(images, draws.seeds, shifts)
        if preprocessing.channels == 1:
            images = np.stack([grey(image.transpose(1, 2, 0)) for image in images])
            images = images.transpose(0, 3, 1, 2)
        return self.views.batch(torch.from_numpy(images), indices)

    def __len__(self) -> int:
        return len(self.views.subset.ids)


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
        self.views, self.shifts, self.side = PhotoViews(subset, preprocessing), shifts, 0
        self.side, self.keys = preprocessing.crop, photo_keys(subset.ids, seed)
        self.padding = 0 if shifts is None else shifts.pixels(self.side)
        self._check_fits(preprocessing, device)
        pixels = self.views.pixels(range(len(subset.ids)))
        if preprocessing.channels == 1:
            pixels = np.stack([grey(image) for image in pixels])
        # Constant images are determined once: a test per batch would synchronise the device.
        tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        self.constant = frozenset(constant_ids(tensor, subset.ids))
        if shifts is not None:
            pixels = padded(pixels, self.padding, shifts.padding)
            tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        self.images = tensor.to(device)
        self.targets = torch.from_numpy(self.views.targets).to(device)

    def __getitem__(self, keys: Sequence[int | tuple[int, int]]) -> PhotoBatch:
        ids, device = self.views.subset.ids, self.images.device
        if not keys:
            return collate_photos([])
        epochs, indices = epochs_and_places(keys)
        places = torch.tensor(indices, device=device)
        images = self.images[places]
        if self.shifts is not None:
            draws = draw(self.keys[indices], np.array(epochs), self.padding)
            images = self._cut(images, draws)
        names = [ids[index] for index in indices]
        constant = tuple(name for name in names if name in self.constant)
        return PhotoBatch(images, self.targets[places], names, places, constant)

    def __len__(self) -> int:
        return len(self.views.subset.ids)

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
