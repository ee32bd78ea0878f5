"""MONAI's transforms channel by channel."""

from __future__ import annotations

import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.array import RandScaleIntensity

from robustcli.training.nnunet.channelwise import PerChannel, plain


def scaled(seed: int, prob: float, channel_prob: float) -> torch.Tensor:
    each = PerChannel(RandScaleIntensity(0.5, prob=1.0), prob=prob, channel_prob=channel_prob)
    each.set_random_state(seed=seed)
    return each(torch.ones(4, 3, 3))


def test_each_channel_has_draws_of_its_own() -> None:
    assert len(scaled(0, 1.0, 1.0)[:, 0, 0].unique()) == 4


def test_channels_are_touched_by_chance() -> None:
    touched = torch.stack([scaled(seed, 1.0, 0.5)[:, 0, 0] != 1 for seed in range(100)])
    assert 0.4 < touched.float().mean() < 0.6
    assert 0 < touched.all(1).sum() < 20


def test_a_sample_is_touched_by_chance() -> None:
    touched = [bool((scaled(seed, 0.3, 1.0) != 1).any()) for seed in range(200)]
    assert 40 <= sum(touched) <= 80


def test_the_seed_alone_decides() -> None:
    found = [scaled(seed, 0.8, 0.5) for seed in (1, 2, 3, 1, 2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(found[:3], found[3:], strict=True))
    assert not torch.equal(found[0], found[1])


def test_plain_takes_the_metadata_off() -> None:
    for tensor in (torch.ones(2), MetaTensor(torch.ones(2))):
        assert type(plain(tensor)) is torch.Tensor
        assert torch.equal(plain(tensor), torch.ones(2))
