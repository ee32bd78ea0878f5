"""How batches come to Lightning, whatever is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from robustcli.training.batches.order import ShareOfBatches


class Serving(pl.LightningDataModule):
    """A data module's loaders.

    Args:
        collate: Makes a batch of samples.
        workers: Loader processes; 0 for none.
        pin: Whether batches go through pinned memory, for CUDA.
    """

    def __init__(self, collate: Callable[[Sequence[Any]], Any], *, workers: int, pin: bool) -> None:
        super().__init__()
        self.collate, self.workers, self.pin = collate, workers, pin

    def loader(
        self, samples: Dataset[Any], order: Sampler[Any], batch_size: int
    ) -> DataLoader[Any]:
        """Batches of `samples` in `order`."""
        return DataLoader(
            samples,
            batch_size,
            sampler=order,
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin,
        )

    def shared(self, samples: Dataset[Any], count: int, batch_size: int) -> DataLoader[Any]:
        """Of the batches of all `count` samples in their order, this process's share."""
        rank, world = self.place()
        return DataLoader(
            samples,
            batch_sampler=ShareOfBatches(count, batch_size, rank=rank, world=world),
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin,
        )

    def place(self) -> tuple[int, int]:
        """This process's number among those that train, and how many these are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
