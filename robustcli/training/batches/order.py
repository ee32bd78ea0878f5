"""In which order the images of an epoch come: drawn from seed, epoch and their ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from robustcli.core.seeds import identity_seed


class EpochOrder(Sampler[tuple[int, int]]):
    """The images of an epoch in an order drawn from seed, epoch and their ids; each with the epoch.

    Args:
        ids: The images.
        seed: Of the run.
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
            key=lambda place: identity_seed("order", self.seed, self.epoch, self.ids[place]),
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
