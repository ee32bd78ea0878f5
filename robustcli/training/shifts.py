"""Photos shifted and mirrored a batch at a time, as networks for CIFAR are trained.

Each photo is padded, cut at a random place and mirrored half of the time; RandAugment may follow.
The draws of a photo depend on seed, epoch and its id alone. They are made for many photos at once,
so that loader processes (NumPy) and a device that holds the whole set (torch) give the same pixels.
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
from robustcli.training.cache import DecodedSubset, PixelArray
from robustcli.training.constant_images import constant_ids
from robustcli.training.samples import CROPS, Crops, PhotoBatch, collate_photos

_DRAWS = 4  # of a photo and epoch: down, across, mirrored, and the seed of RandAugment
_SEED_BITS = np.uint64(1)  # to shift away: torch takes seeds below 2**63
RESIDENT_SHARE = 0.5
"""Of a device's free memory, what the images may take; the rest is for the network."""

Offsets = NDArray[np.int64]


@dataclass(frozen=True)
class Shifts:
    """Photos cut at a random place after padding, and mirrored half of the time.

    Args:
        share: Padding on each side, of the side of the photo: 1/8 is 4 pixels of 32.
        padding: What is padded: black pixels, or the photo continued by reflection.
        operations: How many of RandAugment's operations follow; 0 for none.
        magnitude: Of them, of 30. Source: Cubuk et al., "RandAugment" (2020); the operations are
            torchvision's.
    """

    share: float = 1 / 8
    padding: Literal["constant", "reflect"] = "constant"
    operations: int = 0
    magnitude: int = 9

    def pixels(self, side: int) -> int:
        """Padding of photos of `side` pixels."""
        return round(self.share * side)


SHIFTS: dict[str, Shifts] = {
    "shift": Shifts(),
    "shift-reflect": Shifts(padding="reflect"),
    "randaugment": Shifts(operations=2, magnitude=9),
}
"""Augmentations of photos that work on batches, by name: `shift` pads with black, `shift-reflect`
by reflection; `randaugment` is `shift` and two of RandAugment's operations at magnitude 9."""
PHOTO_AUGMENTATIONS: dict[str, Crops | Shifts | None] = {**CROPS, **SHIFTS}


def photo_augmentation_name(name: str) -> str:
    """The registered spelling of `name`.

    Raises:
        UsageError: No augmentation is called so; the message offers the nearest names.
    """
    return find(name, PHOTO_AUGMENTATIONS, kind="augmentation", listing="docs/train-cls.md")


@dataclass(frozen=True)
class Drawn:
    """What happens to each of B photos.

    Args:
        down: First row of the cut in the padded photo, (B,).
        across: First column.
        mirrored: Whether it is mirrored, bool (B,).
        seeds: Of RandAugment, below 2**63, (B,).
    """

    down: Offsets
    across: Offsets
    mirrored: NDArray[np.bool_]
    seeds: Bits


def draw(keys: Bits, epochs: NDArray[np.integer] | int, padding: int) -> Drawn:
    """The draws of the photos with these keys in these epochs, counted from 0."""
    first = np.asarray(epochs, np.uint64) * np.uint64(_DRAWS)
    bits = stream_bits(keys, first, _DRAWS)
    places = 2 * padding + 1
    down, across = below(bits[:, 0], places), below(bits[:, 1], places)
    return Drawn(down, across, below(bits[:, 2], 2) == 1, bits[:, 3] >> _SEED_BITS)


def padded(images: PixelArray, pixels: int, padding: str) -> PixelArray:
    """The `images` (B, S, S, C) with so many more pixels on each side."""
    sides = [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)]
    if padding == "reflect":
        return np.pad(images, sides, mode="reflect")
    return np.pad(images, sides)


def shifted(images: PixelArray, drawn: Drawn, shifts: Shifts) -> PixelArray:
    """The `images` (B, S, S, C) cut and mirrored as `drawn`: (B, C, S, S)."""
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
    """RandAugment of each of the `images` (B, 3, S, S), by its own seed.

    On Pillow images, as torchvision's training scripts do it: half of the time of tensors.
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
    """Photos of a subset as the network sees them without augmentation, RGB (S, S, 3)."""

    def __init__(self, subset: DecodedSubset, preprocessing: Preprocessing) -> None:
        self.subset, self.preprocessing = subset, preprocessing
        self.targets = np.array(subset.targets, np.int64)

    def pixels(self, indices: Sequence[int]) -> PixelArray:
        """Those of the photos at `indices`, (B, S, S, 3)."""
        return np.stack([self._view(self.subset.decoded[index].image) for index in indices])

    def batch(self, images: Tensor, indices: Sequence[int]) -> PhotoBatch:
        """The batch of these photos, which now look like `images` (B, C, S, S)."""
        ids = [self.subset.ids[index] for index in indices]
        targets = torch.from_numpy(self.targets[list(indices)])
        return PhotoBatch(images, targets, ids, torch.tensor(indices), constant_ids(images, ids))

    def _view(self, image: PixelArray) -> PixelArray:
        own = self.preprocessing
        if image.shape[:2] == (own.crop, own.crop) and own.resize in (None, own.crop):
            return image  # as it is: nothing to resize or to cut
        return own.apply(image)


class PhotoBatches(Dataset[PhotoBatch]):
    """Batches of photos; asked for by lists of (epoch, place), or of places where none is shifted.

    Args:
        subset: The photos.
        preprocessing: How the network sees them.
        shifts: What is done to them; None for nothing.
        seed: Of the draws.
    """

    def __init__(
        self, subset: DecodedSubset, preprocessing: Preprocessing, shifts: Shifts | None, seed: int
    ) -> None:
        self.views, self.shifts = PhotoViews(subset, preprocessing), shifts
        self.keys = photo_keys(subset.ids, seed)

    def __getitem__(self, asked: int | tuple[int, int]) -> PhotoBatch:
        return self.__getitems__([asked])

    def __getitems__(self, asked: Sequence[int | tuple[int, int]]) -> PhotoBatch:
        """The batch of these; torch's loader calls it instead of `__getitem__` for each."""
        if not asked:
            return collate_photos([])
        epochs, indices = epochs_and_places(asked)
        ids = self.views.subset.ids
        with working_on(f"augmenting `{ids[indices[0]]}` to `{ids[indices[-1]]}`"):
            return self._batch(epochs, indices)

    def _batch(self, epochs: Sequence[int], indices: Sequence[int]) -> PhotoBatch:
        own, shifts = self.views.preprocessing, self.shifts
        pixels = self.views.pixels(indices)
        if shifts is None:
            images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        else:
            draws = draw(self.keys[indices], np.array(epochs), shifts.pixels(own.crop))
            images = shifted(pixels, draws, shifts)
            if shifts.operations:
                images = randaugmented(images, draws.seeds, shifts)
        if own.channels == 1:
            images = np.stack([grey(image.transpose(1, 2, 0)) for image in images])
            images = images.transpose(0, 3, 1, 2)
        return self.views.batch(torch.from_numpy(images), indices)

    def __len__(self) -> int:
        return len(self.views.subset.ids)


def epochs_and_places(asked: Sequence[int | tuple[int, int]]) -> tuple[list[int], list[int]]:
    """The epochs and places of what is asked for; the epoch is 0 where only places are."""
    pairs = [(0, item) if isinstance(item, int) else item for item in asked]
    return [epoch for epoch, _ in pairs], [place for _, place in pairs]


def photo_keys(ids: Sequence[str], seed: int) -> Bits:
    """The keys of the photos' draws."""
    return stream_keys([("shift", seed, image_id) for image_id in ids])


class ResidentPhotos(Dataset[PhotoBatch]):
    """Batches cut out of one tensor that holds all photos on the device; asked for by lists.

    Args:
        subset: The photos; all are copied to the device.
        preprocessing: How the network sees them.
        shifts: What is done to them, asked for by (epoch, place); None for nothing, by place.
        seed: Of the draws.
        device: Where they are held.

    Raises:
        UsageError: They do not fit into the device's memory.
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
        # What is constant is found once: looking at each batch would stop the device.
        tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        self.constant = frozenset(constant_ids(tensor, subset.ids))
        if shifts is not None:
            pixels = padded(pixels, self.padding, shifts.padding)
            tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
        self.images = tensor.to(device)
        self.targets = torch.from_numpy(self.views.targets).to(device)

    def __getitem__(self, asked: Sequence[int | tuple[int, int]]) -> PhotoBatch:
        ids, device = self.views.subset.ids, self.images.device
        if not asked:
            return collate_photos([])
        epochs, indices = epochs_and_places(asked)
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
        """The padded `images` (B, C, S + 2 P, S + 2 P) cut and mirrored: (B, C, S, S)."""
        device = images.device
        down, across, mirrored = (
            torch.from_numpy(values).to(device)
            for values in (draws.down, draws.across, draws.mirrored)
        )
        steps = torch.arange(self.side, device=device)
        # A mirrored photo is read from its last column to its first.
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
                f"The images take {needed / 1e9:.1f} GB, of {free / 1e9:.1f} GB that are free.",
                "Recipe `speedrun` holds all of them on the device, as the network sees them.",
                "Use a smaller `--window`, `--limit`, or `--recipe fair`, which loads batches.",
            )
