"""Timm's contract for features: `features_only` and `forward_intermediates`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from timm.models import FeatureInfo

from tests.timm_releases import ALL, SIDE, VIM, VMAMBA, images, small


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_features_only(name: str) -> None:
    model = small(name, features_only=True).eval()
    channels, reductions = model.feature_info.channels(), model.feature_info.reduction()
    if name in VMAMBA:
        assert (channels, reductions) == ([16, 32, 64, 128], [4, 8, 16, 32])
    else:
        assert len(channels) == 3
    maps = model(images())
    assert len(maps) == len(channels)
    for many, reduction, features in zip(channels, reductions, maps, strict=True):
        assert features.shape[:2] == (1, many)
        assert math.ceil(SIDE / reduction) - 1 <= features.shape[2] <= math.ceil(SIDE / reduction)
        assert not features.isnan().any()


@pytest.mark.parametrize(
    "name", ["vmamba_tiny_s1l8", "vmamba_tiny_v0", "vim_tiny", "vim_tiny_plus"]
)
@pytest.mark.parametrize("indices", [(0, 2), (-1,), 2, (1, 2, 3)])
def test_chosen_features_are_those_of_the_whole_network(name: str, indices: Any) -> None:
    torch.manual_seed(0)
    full = small(name).eval()
    torch.manual_seed(0)
    chosen = small(name, features_only=True, out_indices=indices).eval()
    with torch.no_grad():
        everything = full.forward_intermediates(images(), intermediates_only=True)
        features = chosen(images())
    numbers = range(4 - indices, 4) if isinstance(indices, int) else [i % 4 for i in indices]
    assert len(features) == len(numbers)
    for number, single in zip(numbers, features, strict=True):
        torch.testing.assert_close(single, everything[number], rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_intermediates(name: str) -> None:
    model = small(name).eval()
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    final, maps = model.forward_intermediates(images())
    torch.testing.assert_close(final, model.forward_features(images()), rtol=0, atol=0)
    assert [m.shape[1] for m in maps] == info.channels()
    other = model.forward_intermediates(
        images(), output_fmt=model.output_fmt, intermediates_only=True
    )
    for a, b in zip(maps, other, strict=True):
        same = a.flatten(2).transpose(1, 2) if name in VIM else a.permute(0, 2, 3, 1)
        torch.testing.assert_close(same, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["vmamba_tiny_s2l5", "vim_tiny"])
def test_a_pruned_trunk_trains_all_that_it_has(name: str) -> None:
    """Unused parameters would stop a distributed run."""
    model = small(name, features_only=True, out_indices=(0, 1)).train()
    sum(m.square().mean() for m in model(images(2))).backward()
    trained = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert trained == []
