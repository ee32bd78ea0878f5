"""The batches of training and validation, as Lightning asks for them, and their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset, Sampler

from robustcli.core.machine import start_method
from robustcli.core.seeds import identity_seed
from robustcli.core.watchdog import Watchdog, WorkerTable
from robustcli.training.recipes import Recipe


class EpochOrder(Sampler[tuple[int, int]]):
    """The images of an epoch in an order drawn from seed, epoch and their ids; each with the epoch.

    Args:
        most: Images of an epoch; None for all.
        rank: Which of `world` processes this one is; each takes every `world`-th image.
        world: How many processes share the images. They get equally many: the first images of the
            order come again at its end where it does not divide.
    """

    def __init__(
        self, ids: Sequence[str], seed: int, *, most: int | None, rank: int = 0, world: int = 1
    ) -> None:
        self.ids, self.seed, self.rank, self.world = ids, seed, rank, world
        self.count = min(most or len(ids), len(ids))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Makes this the order of `epoch`, counted from 0; Lightning calls it."""
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
    """Every `world`-th batch of `count` samples, from `rank` on; equally many in each process.

    Batches are those of one process alone, so that a mean over batches is the same however many
    processes share them, and every sample is in exactly one. Where they do not divide, the last
    batch of some processes is empty: all must take equally many steps, as they exchange the
    buffers of the network in each.
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
    """How many images each batch of an epoch has: `batch_size`, and the rest in the last one.

    A last batch below `least` shares the images of the one before: the two become halves where
    these are large enough, else one batch. So the number of batches depends on the three numbers
    alone, and is the same for processes that have equally many images.

    Args:
        images: Of this process, in an epoch.
        batch_size: The usual size.
        least: Fewest images of a batch, at most `batch_size` and at most `images`.
    """
    full, remainder = divmod(images, batch_size)
    sizes = [batch_size] * full + [remainder] * (remainder > 0)
    if len(sizes) < 2 or sizes[-1] >= least:
        return sizes
    last_two = sizes.pop() + sizes.pop()
    smaller = last_two // 2
    return [*sizes, last_two - smaller, smaller] if smaller >= least else [*sizes, last_two]


class _SizedSampler(Sized, Protocol):
    def __iter__(self) -> Iterator[Any]: ...


class Batches(Sampler[list[Any]]):
    """Batches of what `sampler` gives, of the sizes of `batch_sizes`.

    Args:
        sampler: The samples of this process; Lightning finds it here to tell it the epoch.
    """

    def __init__(self, sampler: _SizedSampler, batch_size: int, least: int = 1) -> None:
        self.sampler, self.batch_size, self.least = sampler, batch_size, least

    def set_epoch(self, epoch: int) -> None:
        """Tells the sampler, where the batches themselves are what a loader draws from."""
        if isinstance(self.sampler, EpochOrder):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[Any]]:
        drawn = iter(self.sampler)
        for size in self._sizes():
            yield list(islice(drawn, size))

    def __len__(self) -> int:
        return len(self._sizes())

    def _sizes(self) -> list[int]:
        return batch_sizes(len(self.sampler), self.batch_size, self.least)


@dataclass(frozen=True)
class BatchSettings:
    """How batches are made, whatever is in them.

    Args:
        pin: Whether batches go through pinned memory, for CUDA.
        least: Fewest images of a training batch; see `batch_sizes`.
        ignores: Whether masks hold pixels to ignore (`mask_values.IGNORED`).
    """

    seed: int
    workers: int
    pin: bool = False
    least: int = 1
    ignores: bool = False


class BaseDataModule(pl.LightningDataModule):
    """The loaders that all data modules share; `watchdog` looks at their processes."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any], settings: BatchSettings) -> None:
        super().__init__()
        self.collate, self.settings = collate, settings
        self.watchdog = Watchdog()

    def loader(self, samples: Dataset[Any], **batches: Any) -> DataLoader[Any]:
        """Batches of `samples`; `batches` are the arguments of DataLoader that say which."""
        workers, method = self.settings.workers, start_method()
        table = self.watchdog.table(workers, method) if workers else None
        return DataLoader(
            samples,
            **batches,
            collate_fn=self.collate,
            num_workers=workers,
            multiprocessing_context=method if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.settings.pin,
            worker_init_fn=None if table is None else partial(_enter, table),
        )


def _enter(table: WorkerTable, worker: int) -> None:
    table.enter(worker)


class ImageData(BaseDataModule):
    """Batches where an epoch is a pass over images.

    Args:
        ids: The training images.
        train_samples: Samples of them, by (epoch, place).
        val_samples: The validation samples, by number.
        collate: Makes a batch of samples.
        recipe: With the batch size and the number of images of an epoch.
        settings: How batches are made.
    """

    def __init__(
        self, ids: Sequence[str], train_samples: Dataset[Any], val_samples: Any,
        collate: Callable[[Sequence[Any]], Any], recipe: Recipe, settings: BatchSettings,
    ) -> None:  # fmt: skip
        super().__init__(collate, settings)
        self.ids, self.train_samples, self.val_samples = ids, train_samples, val_samples
        self.recipe = recipe

    def train_dataloader(self) -> DataLoader[Any]:
        """The batches of an epoch; of each step, this process's share."""
        recipe, least, (rank, world) = self.recipe, self.settings.least, self.rank()
        order = EpochOrder(
            self.ids, self.settings.seed, most=recipe.images_per_epoch, rank=rank, world=world
        )
        size = recipe.batch_size // world
        if least > 1:
            return self.loader(self.train_samples, batch_sampler=Batches(order, size, least))
        return self.loader(self.train_samples, batch_size=size, sampler=order)

    def val_dataloader(self) -> DataLoader[Any]:
        """The validation samples; of them, this process's share."""
        rank, world = self.rank()
        count = len(self.val_samples)
        share = ShareOfBatches(count, self.recipe.batch_size, rank=rank, world=world)
        return self.loader(self.val_samples, batch_sampler=share)

    def rank(self) -> tuple[int, int]:
        """This process's number among those that train, and how many these are."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
