"""Batches of patches, as Lightning asks for them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from robustcli.data.mask_values import IGNORED
from robustcli.training.batches.loaders import Part
from robustcli.training.batches.samples import Sample, collate
from robustcli.training.batches.serving import Serving
from robustcli.training.nnunet.patches import Patches, Phase, Sampling
from robustcli.training.recipes import Recipe


class PatchOrder(Sampler[tuple[int, int]]):
    """The numbers of an epoch's patches, each with the epoch."""

    def __init__(self, count: int) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        """Makes this the order of `epoch`, counted from 0; Lightning calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from ((self.epoch, number) for number in range(self.count))

    def __len__(self) -> int:
        return self.count


class PatchSamples(Dataset[Sample]):
    """Patches by epoch and number; batch `number // batch size` has it.

    Args:
        part: The images.
        sampling: How patches are drawn.
        phase: `train` augments; `val` does not.

    Raises:
        UsageError: No image has foreground.
    """

    def __init__(self, part: Part, sampling: Sampling, phase: Phase) -> None:
        self.part, self.batch_size = part, sampling.batch_size
        shown = [place for place, one in enumerate(part.decoded) if (one.mask == 1).any()]
        self.patches = Patches(self.load, len(part.decoded), shown, sampling, phase)

    def load(self, place: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Image and mask number `place`."""
        return self.part.decoded[place].image, self.part.decoded[place].mask

    def __getitem__(self, drawn: tuple[int, int]) -> Sample:
        epoch, number = drawn
        iteration, place = divmod(number, self.batch_size)
        patch = self.patches.patch(epoch, iteration, place)
        mask = patch.labels[None].to(torch.uint8)
        return Sample(patch.image, mask, self.part.ids[patch.index], number, mask != IGNORED)


class PatchData(Serving):
    """Training and validation batches of a recipe with `patches`.

    Args:
        train: What is trained on.
        val: What is validated on.
        recipe: With batch size and window.
        seed: Of the run.
        workers: Loader processes; 0 for none.
        pin: Whether batches go through pinned memory, for CUDA.
        ignores: Whether masks hold pixels to ignore.
    """

    def __init__(
        self, train: Part, val: Part, recipe: Recipe, *, seed: int, workers: int,
        pin: bool = False, ignores: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(collate, workers=workers, pin=pin)
        assert recipe.patches is not None
        self.recipe, self.patches = recipe, recipe.patches
        sampling = Sampling(
            (recipe.window, recipe.window), recipe.batch_size, recipe.patches.oversampling,
            recipe.patches.channels, seed, IGNORED if ignores else None,
        )  # fmt: skip
        self.train, self.val = (
            PatchSamples(train, sampling, "train"), PatchSamples(val, sampling, "val"),
        )  # fmt: skip

    def train_dataloader(self) -> DataLoader[Sample]:
        """The batches of an epoch."""
        return self._batches(self.train, self.patches.iterations)

    def val_dataloader(self) -> DataLoader[Sample]:
        """The batches of an epoch's validation, other patches in every epoch, as upstream."""
        return self._batches(self.val, self.patches.validation_iterations)

    def _batches(self, samples: PatchSamples, batches: int) -> DataLoader[Sample]:
        size = self.recipe.batch_size
        return self.loader(samples, PatchOrder(batches * size), size)
