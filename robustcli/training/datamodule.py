"""The data of a training: images decoded once, the order of an epoch, and Lightning data modules.

Images are decoded into memory, or into a memory-mapped file if memory is short.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from robustcli.core.errors import RunError
from robustcli.core.io import refused
from robustcli.core.machine import available_bytes, start_method, usable_cores
from robustcli.core.seeds import identity_seed
from robustcli.core.watchdog import Watchdog, decoding_pool
from robustcli.data.dataset import FileRef, Sample
from robustcli.data.decode import UnreadableImage, decode
from robustcli.data.masks import decode_pair
from robustcli.evaluation.loader import WorkerLoader, in_shared_memory
from robustcli.training.recipes import Recipe

MEMORY_SHARE = 0.5
"""Share of the available memory for decoded samples; the rest is left for the network."""
_AHEAD = 64  # samples that threads decode ahead of the copy into storage

PixelArray = NDArray[np.uint8]
Collate = Callable[[Sequence[Any]], Any]


class Decoded(NamedTuple):
    """The decoded pixels of a sample.

    Args:
        image: (H, W, 3) uint8, RGB.
        mask: (H, W) uint8, 0 to K (1 for foreground) or `mask_values.IGNORED`; shape (0, 0) for
            classification samples.
    """

    image: PixelArray
    mask: PixelArray = np.empty((0, 0), np.uint8)


@dataclass(frozen=True)
class DecodedSubset:
    """Decoded samples with their ids and, for classification, their class indices."""

    ids: Sequence[str]
    decoded: Sequence[Decoded]
    targets: Sequence[int] = ()

    @classmethod
    def of(cls, samples: Sequence[Sample], decoded: Sequence[Decoded]) -> DecodedSubset:
        """The subset of `samples` with the pixels `decoded`."""
        targets = [sample.truth for sample in samples if isinstance(sample.truth, int)]
        return cls([sample.image_id for sample in samples], decoded, targets)


def channels_first(pixels: PixelArray) -> Tensor:
    """A copy of (H, W, C) or (H, W) as tensor (C, H, W), so that a mapped file can be closed."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


_LOOKED_AT = 64  # pixels of a quick test, which rules out most images


def constant_ids(images: Tensor, ids: Sequence[str]) -> tuple[str, ...]:
    """The `ids` of the images (B, C, H, W) that have a single value in each channel."""
    flat = images.flatten(2)
    some = flat[:, :, :: max(1, flat.shape[2] // _LOOKED_AT)]
    perhaps = (some == some[:, :, :1]).flatten(1).all(1).nonzero().flatten().tolist()
    return tuple(ids[i] for i in perhaps if bool((flat[i] == flat[i, :, :1]).all()))


def decode_sample(sample: Sample) -> Decoded:
    """Decodes the image of `sample`, and its mask if it has one.

    Raises:
        RunError: A file cannot be decoded.
        UsageError: Image and mask differ in size, or the mask has unknown values.
    """
    masked = isinstance(sample.truth, FileRef)
    try:
        if not masked:
            return Decoded(decode(sample.image))
        image, mask = decode_pair(sample)
    except UnreadableImage as error:
        raise RunError(
            f"The {'pair' if masked else 'image'} `{sample.image_id}` cannot be read.",
            f"{sample.image.path}: {error.reason}.",
            f"Repair or remove {'both files' if masked else 'the file'}, then repeat the command.",
        ) from error
    return Decoded(image, mask.view(np.uint8))


@contextmanager
def decoded_once(
    samples: Sequence[Sample], folder: Path, *, budget: int | None = None, processes: int = 1
) -> Iterator[list[Decoded]]:
    """Decodes `samples` in order; the pixels are valid inside the context.

    Args:
        samples: Samples to decode.
        folder: Folder of the mapped file, if one is needed; the file is removed at the end.
        budget: Largest number of bytes in memory; None for half of the available memory.
        processes: Number of processes on this machine that share the available memory.

    Raises:
        RunError: A file cannot be decoded, or the disk is full.
    """
    if budget is None:
        budget = int(MEMORY_SHARE * available_bytes() / processes)
    with ExitStack() as stack:
        in_memory: list[Decoded] = []
        size = 0
        stream = _decoded(samples)
        for decoded in stream:
            in_memory.append(decoded)
            size += sum(array.nbytes for array in decoded)
            if size > budget:
                file = folder / f"pixels-{uuid.uuid4().hex}"  # processes can share the folder
                stack.callback(_remove, file)
                in_memory = _mapped(in_memory, stream, file)
        yield in_memory


def _remove(file: Path) -> None:
    """Removes `file`, and its folder if it is then empty."""
    with suppress(OSError):
        file.unlink(missing_ok=True)
        file.parent.rmdir()


def _decoded(samples: Sequence[Sample]) -> Iterator[Decoded]:
    """Decodes in threads: Pillow releases the global interpreter lock."""
    with decoding_pool(usable_cores()) as pool:
        for first in range(0, len(samples), _AHEAD):
            yield from pool.map(decode_sample, samples[first : first + _AHEAD])


def _mapped(in_memory: list[Decoded], remaining: Iterator[Decoded], file: Path) -> list[Decoded]:
    """Copies `in_memory` and `remaining` into a mapped file; returns views into it.

    The operating system caches the parts of the file that fit into memory.
    """
    shapes = []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as out:
            for source in (in_memory, remaining):
                for decoded in source:
                    shapes.append([array.shape for array in decoded])
                    for array in decoded:
                        out.write(array.tobytes())
    except OSError as error:
        raise refused(file, error) from error
    return list(_views(np.memmap(file, np.uint8, mode="r"), shapes))


def _views(pixels: PixelArray, shapes: Sequence[Sequence[tuple[int, ...]]]) -> Iterator[Decoded]:
    start = 0
    for shapes_of_sample in shapes:
        arrays = []
        for shape in shapes_of_sample:
            size = math.prod(shape)
            arrays.append(pixels[start : start + size].reshape(shape))
            start += size
        yield Decoded(*arrays)


class EpochOrder(Sampler[tuple[int, int]]):
    """Samples (epoch, image index) in an order that depends on seed, epoch and image ids.

    Args:
        most: Largest number of images per epoch; None for all.
        rank: Rank of this process; it takes every `world`-th image from `rank` on.
        world: Number of processes that share the images. All get the same number: if `world` does
            not divide the number of images, the first images are repeated at the end.
    """

    def __init__(
        self, ids: Sequence[str], seed: int, *, most: int | None, rank: int = 0, world: int = 1
    ) -> None:
        self.ids, self.seed, self.rank, self.world = ids, seed, rank, world
        self.count = min(most or len(ids), len(ids))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the `epoch`, counted from 0; called by Lightning."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = sorted(
            range(len(self.ids)),
            key=lambda index: identity_seed("order", self.seed, self.epoch, self.ids[index]),
        )[: self.count]
        mine = range(self.rank, len(self) * self.world, self.world)
        yield from ((self.epoch, order[number % self.count]) for number in mine)

    def __len__(self) -> int:
        return -(-self.count // self.world)


class ShareOfBatches(Sampler[list[int]]):
    """Every `world`-th batch of `count` samples, from `rank` on; the same number in each process.

    The batches are those of a single process, so that a mean over batches does not depend on the
    number of processes, and every sample is in exactly one batch. If `world` does not divide the
    number of batches, some processes get an empty last batch: all processes must take the same
    number of steps, because they synchronise the buffers of the network in each step.
    """

    def __init__(self, count: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        batches = [range(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
        self.mine = [list(batch) for batch in batches[rank::world]]
        steps = -(-len(batches) // world)
        self.mine += [[] for _ in range(steps - len(self.mine))]

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.mine

    def __len__(self) -> int:
        return len(self.mine)


def batch_sizes(images: int, batch_size: int, least: int = 1) -> list[int]:
    """Number of images in each batch of an epoch: `batch_size`, the remainder in the last batch.

    A remainder below `least` is merged with the batch before it; the two are split into halves if
    these have at least `least` images, else they form one batch. The number of batches depends only
    on the three arguments, so it is equal in processes with equally many images.

    Args:
        images: Number of images of this process per epoch.
        batch_size: Usual batch size.
        least: Smallest allowed batch, at most `batch_size` and at most `images`.
    """
    full, remainder = divmod(images, batch_size)
    sizes = [batch_size] * full + [remainder] * (remainder > 0)
    if len(sizes) < 2 or sizes[-1] >= least:
        return sizes
    last_two = sizes.pop() + sizes.pop()
    smaller = last_two // 2
    return [*sizes, last_two - smaller, smaller] if smaller >= least else [*sizes, last_two]


class Batches(Sampler[list[tuple[int, int]]]):
    """Batches of the items of `sampler`, with the sizes of `batch_sizes`.

    Args:
        sampler: The samples of this process; Lightning calls its `set_epoch`.
    """

    def __init__(self, sampler: EpochOrder, batch_size: int, least: int = 1) -> None:
        self.sampler, self.batch_size, self.least = sampler, batch_size, least

    def set_epoch(self, epoch: int) -> None:
        """Passes `epoch` to the sampler, for loaders whose sampler is this object."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        drawn = iter(self.sampler)
        for size in self._sizes():
            yield list(islice(drawn, size))

    def __len__(self) -> int:
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        return batch_sizes(len(self.sampler), self.batch_size, self.least)


@dataclass(frozen=True)
class BatchSettings:
    """Settings of data loaders for all kinds of samples.

    Args:
        pin: Whether batches use pinned memory, for CUDA.
        least: Smallest training batch; see `batch_sizes`.
        ignores: Whether masks contain pixels to ignore (`mask_values.IGNORED`).
    """

    seed: int
    workers: int
    pin: bool = False
    least: int = 1
    ignores: bool = False


class BaseDataModule(pl.LightningDataModule):
    """Base class: creates the data loaders; `watchdog` observes their processes.

    Samplers begin with `first_epoch`, counted from 0; above 0 in a resumed training. In a resumed
    training, Lightning 2.6 sets the epoch of a sampler only after the loader processes have
    received the first batches.

    Args:
        collate: Makes a batch from a list of samples; None for data sets that return batches.
        settings: Settings of the loaders.
    """

    def __init__(self, collate: Collate | None, settings: BatchSettings) -> None:
        super().__init__()
        self.collate, self.settings, self.first_epoch = collate, settings, 0
        self.watchdog = Watchdog()

    def loader(self, samples: Dataset[Any], **batches: Any) -> DataLoader[Any]:
        """A loader of `samples`; `batches` are arguments of DataLoader that define the batches."""
        workers, method = self.settings.workers, start_method()
        table = self.watchdog.table(workers, method) if workers else None
        return WorkerLoader(
            samples,
            **batches,
            collate_fn=partial(_collated, self.collate),
            num_workers=workers,
            multiprocessing_context=method if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.settings.pin,
            worker_init_fn=None if table is None else table.enter,
        )


def _collated(collate: Collate | None, samples: Any) -> Any:
    return in_shared_memory(samples if collate is None else collate(samples))


class ImageData(BaseDataModule):
    """Data module in which an epoch is a pass over the images.

    Args:
        ids: Ids of the training images.
        train_samples: Training samples, indexed by (epoch, image index).
        val_samples: Validation samples, indexed by image.
        collate: See `BaseDataModule`.
        recipe: Gives the batch size and the number of images per epoch.
        settings: Settings of the loaders.
    """

    def __init__(
        self, ids: Sequence[str], train_samples: Dataset[Any], val_samples: Any,
        collate: Collate | None, recipe: Recipe, settings: BatchSettings,
    ) -> None:  # fmt: skip
        super().__init__(collate, settings)
        self.ids, self.train_samples, self.val_samples = ids, train_samples, val_samples
        self.recipe = recipe

    def train_dataloader(self) -> DataLoader[Any]:
        """Training batches; each process gets its share of every step."""
        recipe, least, (rank, world) = self.recipe, self.settings.least, self.rank()
        order = EpochOrder(
            self.ids, self.settings.seed, most=recipe.images_per_epoch, rank=rank, world=world
        )
        order.set_epoch(self.first_epoch)
        batches = Batches(order, recipe.batch_size // world, least)
        return self.loader(self.train_samples, batch_sampler=batches)

    def val_dataloader(self) -> DataLoader[Any]:
        """Validation batches of this process."""
        rank, world = self.rank()
        count = len(self.val_samples)
        share = ShareOfBatches(count, self.recipe.batch_size, rank=rank, world=world)
        return self.loader(self.val_samples, batch_sampler=share)

    def rank(self) -> tuple[int, int]:
        """Rank of this process and number of training processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
