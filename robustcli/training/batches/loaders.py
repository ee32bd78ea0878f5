"""The batches of training and validation, as Lightning asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from robustcli.training.batches.cache import Decoded
from robustcli.training.batches.order import EpochOrder
from robustcli.training.batches.samples import (
    Sample,
    TrainingSamples,
    ValidationSamples,
    WholeSamples,
    collate,
)
from robustcli.training.batches.serving import Serving
from robustcli.training.recipes import Recipe


@dataclass(frozen=True)
class Part:
    """One part of the data, decoded.

    Args:
        ids: The images.
        decoded: Their pixels.
    """

    ids: Sequence[str]
    decoded: Sequence[Decoded]


class SegmentationData(Serving):
    """Training and validation batches.

    Args:
        train: What is trained on.
        val: What is validated on.
        recipe: With batch size, window and augmentation.
        seed: Of the run.
        whole: Whether images are resized whole (protocol `paper`) instead of cut.
        workers: Loader processes; 0 for none.
        pin: Whether batches go through pinned memory, for CUDA.
        least: Fewest images of a training batch.
    """

    def __init__(
        self, train: Part, val: Part, recipe: Recipe, *, seed: int, whole: bool, workers: int,
        pin: bool = False, least: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(collate, workers=workers, pin=pin, least=least)
        self.train, self.val, self.recipe = train, val, recipe
        self.seed, self.whole = seed, whole

    def train_dataloader(self) -> DataLoader[Sample]:
        """The batches of an epoch; of each step, this process's share."""
        part, recipe = self.train, self.recipe
        samples: Dataset[Sample] = (
            WholeSamples(part.ids, part.decoded, recipe.window)
            if self.whole
            else TrainingSamples(
                part.ids, part.decoded, recipe.window, recipe.augmentation, self.seed
            )
        )
        rank, world = self.place()
        order = EpochOrder(
            part.ids, self.seed, most=recipe.images_per_epoch, rank=rank, world=world
        )
        return self.loader(samples, order, recipe.batch_size // world, least=self.least)

    def val_images(self) -> list[int]:
        """Of each validation sample, by its number, the place of its image."""
        samples = self._val_samples()
        if isinstance(samples, ValidationSamples):
            return [place for place, _ in samples.tiles]
        return list(range(len(samples)))

    def val_dataloader(self) -> DataLoader[Sample]:
        """The windows of the validation images; of them, this process's share."""
        samples = self._val_samples()
        return self.shared(samples, len(samples), self.recipe.batch_size)

    def _val_samples(self) -> WholeSamples | ValidationSamples:
        kind = WholeSamples if self.whole else ValidationSamples
        return kind(self.val.ids, self.val.decoded, self.recipe.window)
