"""The order of images: a permutation that hangs on seed, epoch and ids."""

from __future__ import annotations

import pytest

from robustcli.training.batches.order import EpochOrder, Share

IDS = [f"image-{i}" for i in range(17)]


def order(epoch: int, *, ids: list[str] = IDS, seed: int = 0, **more: int | None) -> list[str]:
    sampler = EpochOrder(ids, seed, most=more.pop("most", None), **more)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert {e for e, _ in drawn} == {epoch}
    assert len(drawn) == len(sampler)
    return [ids[place] for _, place in drawn]


def test_every_image_comes_once_an_epoch_in_another_order() -> None:
    orders = [order(epoch) for epoch in range(5)]
    assert all(sorted(found) == sorted(IDS) for found in orders)
    assert len({tuple(found) for found in orders}) == 5
    assert order(3) == orders[3]
    assert order(3, seed=1) != orders[3]


def test_the_order_on_disk_does_not_matter() -> None:
    assert order(2, ids=IDS[::-1]) == order(2)


def test_a_shorter_epoch_takes_other_images_each_time() -> None:
    first, second = order(0, most=5), order(1, most=5)
    assert len(first) == len(second) == 5
    assert set(first) != set(second)
    assert order(0)[:5] == first
    assert len(order(0, most=99)) == 17


def test_processes_share_an_epoch_equally() -> None:
    shares = [order(4, rank=rank, world=3) for rank in range(3)]
    assert {len(share) for share in shares} == {6}
    assert {image for share in shares for image in share} == set(IDS)
    assert [image for step in zip(*shares, strict=True) for image in step][:17] == order(4)


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_validation_samples_are_shared_equally(world: int) -> None:
    shares = [list(Share(17, rank=rank, world=world)) for rank in range(world)]
    assert {i for share in shares for i in share} == set(range(17))
    assert {len(share) for share in shares} == {-(-17 // world)}
    assert len(Share(17, rank=0, world=world)) == len(shares[0])
