"""Pretrained weights into a network for another task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from robustcli.adapters.nnunet_keys import upstream_state
from robustcli.adapters.nnunet_planner import make_plan
from robustcli.adapters.nnunet_transfer import transfer
from robustcli.core.errors import UsageError
from tests.adapters.nnunet_files import PLAN, network

ORGANS = replace(PLAN, dataset={**PLAN.dataset, "labels": {"background": 0, "a": 1, "b": 2}})


@pytest.mark.parametrize("model", ["umamba", "umamba-enc"])
@pytest.mark.parametrize("copies", [True, False])
def test_all_but_the_heads_is_copied_from_either_spelling(model: str, copies: bool) -> None:
    source, target = network(model, ORGANS, seed=1), network(model, seed=2)
    heads = {k: v.clone() for k, v in target.state_dict().items() if ".seg_layers." in k}
    state = upstream_state(source) if copies else source.state_dict()
    names = transfer(target, state)
    after = target.state_dict()
    assert names == [name for name in after if ".seg_layers." not in name]
    assert all(torch.equal(after[name], source.state_dict()[name]) for name in names)
    assert heads
    assert all(torch.equal(after[name], head) for name, head in heads.items())


def test_heads_stay_new_even_where_they_would_fit() -> None:
    source, target = network(seed=1), network(seed=2)
    before = target.get_parameter("decoder.seg_layers.0.weight").clone()
    transfer(target, source.state_dict())
    assert torch.equal(target.get_parameter("decoder.seg_layers.0.weight"), before)


def test_tensors_that_are_missing_are_named_and_nothing_is_copied() -> None:
    state = network(seed=1).state_dict()
    del state["mamba_layer.mamba.D"], state["encoder.stem.0.conv1.bias"]
    target = network(seed=2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        transfer(target, state)
    assert "2 differ: `encoder.stem.0.conv1.bias` is missing; `mamba_layer.mamba.D` is missing" in (
        caught.value.why
    )
    assert "nnUNetv2_move_plans_between_datasets" in caught.value.todo
    assert all(torch.equal(before[name], t) for name, t in target.state_dict().items())


def test_other_input_channels_say_so() -> None:
    grey = make_plan((32, 32), ("MR",), images=50, features=(4, 64))
    with pytest.raises(UsageError, match=r"(?s)is \(4, 1, 3, 3\), not \(4, 3, 3, 3\).*channels mu"):
        transfer(network(), network(plan=grey).state_dict())


def test_another_patch_size_of_the_encoder_variant_says_so() -> None:
    other = make_plan((48, 32), ("R", "G", "B"), images=50, features=(4, 64))
    with pytest.raises(UsageError, match=r"(?s)mamba_layers.*`umamba-enc` depend on the patch"):
        transfer(network("umamba-enc"), network("umamba-enc", other).state_dict())
    assert transfer(network("umamba"), network("umamba", other).state_dict())


def test_shapes_that_agree_by_chance_do_not_hide_another_patch_size() -> None:
    """Last stage: 16 channels of 16 pixels as tokens at one patch, 24 pixels of 16 at the other."""
    plans = [
        make_plan((side, 32), ("R", "G", "B"), images=50, features=(4, 16)) for side in (32, 48)
    ]
    target, source = (network("umamba-enc", plan) for plan in plans)
    assert transfer(target, source.state_dict())
    with pytest.raises(UsageError, match=r"(?s)for patches of 48 x 32 pixels.*for 32 x 32.*umamba"):
        transfer(target, source.state_dict(), patch=plans[1].patch)
    assert transfer(target, source.state_dict(), patch=plans[0].patch)
    bottleneck = network("umamba", plans[0])
    assert transfer(bottleneck, network("umamba", plans[1]).state_dict(), patch=plans[1].patch)
