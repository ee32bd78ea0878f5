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
        order += order[: -len(order) % self.world]
        yield from ((self.epoch, place) for place in order[self.rank :: self.world])

    def __len__(self) -> int:
        return -(-self.count // self.world)


class Share(Sampler[int]):
    """Every `world`-th of `count` samples, from `rank` on; equally many in each process.

    Where they do not divide, the first samples come again.
    """

    def __init__(self, count: int, *, rank: int = 0, world: int = 1) -> None:
        self.mine = [number % count for number in range(rank, -(-count // world) * world, world)]

    def __iter__(self) -> Iterator[int]:
        yield from self.mine

    def __len__(self) -> int:
        return len(self.mine)
