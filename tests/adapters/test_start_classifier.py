"""The classifier that training begins with."""

from __future__ import annotations

import pytest
import torch

from robustcli.adapters.load import resolve
from robustcli.adapters.preprocessing import Preprocessing
from robustcli.adapters.start_classifier import sized_preprocessing, start_classifier
from robustcli.core.errors import UsageError

TINY = {"depths": [1, 1], "dim": 8}
PICO = resolve("vmamba-pico")


def test_the_seed_decides_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, words = start_classifier(PICO, 3, TINY, seed=0)
    assert torch.equal(torch.rand(3), expected)
    again, _ = start_classifier(PICO, 3, TINY, seed=0)
    other, _ = start_classifier(PICO, 3, TINY, seed=1)
    key = "layers.0.blocks.0.op.in_proj.weight"
    assert torch.equal(one.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(one.state_dict()[key], other.state_dict()[key])
    assert words == "none: initialised with seed 0"
    assert one(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_the_preprocessing_is_the_networks_own_or_that_of_a_window() -> None:
    own = sized_preprocessing(PICO, TINY, None)
    assert (own.resize, own.crop, own.interpolation) == (32, 32, "bilinear")
    resnet = resolve("resnet10t")
    assert sized_preprocessing(resnet, {}, 44) == Preprocessing(
        resize=sized_preprocessing(resnet, {}, None).resize * 44 // 176, crop=44,
        interpolation="bicubic",
    )  # fmt: skip


def test_a_size_that_the_network_cannot_take_is_refused() -> None:
    with pytest.raises(UsageError, match="Give its own size with `--window`") as told:
        sized_preprocessing(resolve("vim-t"), {"depth": 1}, 40)
    assert "--model-arg img_size=40" in str(told.value)
