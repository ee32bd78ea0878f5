"""How batches come to Lightning, whatever is in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from robustcli.core.machine import start_method
from robustcli.training.batches.order import Batches, ShareOfBatches


class Serving(pl.LightningDataModule):
    """A data module's loaders.

    Args:
        collate: Makes a batch of samples.
        workers: Loader processes; 0 for none.
        pin: Whether batches go through pinned memory, for CUDA.
        least: Fewest images of a training batch; see `order.batch_sizes`.
    """

    def __init__(
        self, collate: Callable[[Sequence[Any]], Any], *, workers: int, pin: bool, least: int = 1
    ) -> None:
        super().__init__()
        self.collate, self.workers, self.pin, self.least = collate, workers, pin, least

    def loader(
        self, samples: Dataset[Any], order: Sampler[Any], batch_size: int, *, least: int = 1
    ) -> DataLoader[Any]:
        """Batches of `samples` in `order`, each of at least `least`."""
        batches: dict[str, Any] = {"batch_size": batch_size, "sampler": order}
        if least > 1:
            batches = {"batch_sampler": Batches(order, batch_size, least)}  # type: ignore[arg-type]
        return DataLoader(
            samples,
            **batches,
            collate_fn=self.collate,
            num_workers=self.workers,
            multiprocessing_context=start_method() if self.workers else None,
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
            multiprocessing_context=start_method() if self.workers else None,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin,
        )

    def place(self) -> tuple[int, int]:
        """This process's number among those that train, and how many these are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
