"""The batches of a classifier's training and validation, as Lightning asks for them."""

from __future__ import annotations

from torch.utils.data import DataLoader

from robustcli.adapters.preprocessing import Preprocessing
from robustcli.training.batches.order import EpochOrder
from robustcli.training.batches.serving import Serving
from robustcli.training.classification.samples import (
    Part,
    Sample,
    TrainingSamples,
    ValidationSamples,
    collate,
)
from robustcli.training.recipes import Recipe


class ClassificationData(Serving):
    """Training and validation batches.

    Args:
        train: What is trained on.
        val: What is validated on.
        recipe: With batch size and augmentation.
        preprocessing: The network's own.
        seed: Of the run.
        workers: Loader processes; 0 for none.
        pin: Whether batches go through pinned memory, for CUDA.
        least: Fewest images of a training batch.
    """

    def __init__(
        self, train: Part, val: Part, recipe: Recipe, preprocessing: Preprocessing, *, seed: int,
        workers: int, pin: bool = False, least: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(collate, workers=workers, pin=pin, least=least)
        self.train, self.val, self.recipe, self.preprocessing = train, val, recipe, preprocessing
        self.seed = seed

    def train_dataloader(self) -> DataLoader[Sample]:
        """The batches of an epoch; of each step, this process's share."""
        recipe = self.recipe
        samples = TrainingSamples(self.train, self.preprocessing, recipe.augmentation, self.seed)
        rank, world = self.place()
        order = EpochOrder(
            self.train.ids, self.seed, most=recipe.images_per_epoch, rank=rank, world=world
        )
        return self.loader(samples, order, recipe.batch_size // world, least=self.least)

    def val_dataloader(self) -> DataLoader[Sample]:
        """The validation images; of them, this process's share."""
        samples = ValidationSamples(self.val, self.preprocessing)
        return self.shared(samples, len(samples), self.recipe.batch_size)
