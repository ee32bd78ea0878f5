"""Every name of upstream's state dict, in its order."""

from __future__ import annotations

import pytest
import torch

from robustcli.adapters.nnunet_keys import upstream_state
from robustcli.models.umamba import build
from tests.models import golden


@pytest.mark.parametrize(
    ("name", "variant"), [("UMambaBot_2d", "umamba"), ("UMambaEnc_2d", "umamba-enc")]
)
def test_names_shapes_and_order_are_upstreams(name: str, variant: str) -> None:
    state = upstream_state(build(variant))
    shapes = [(key, tuple(tensor.shape)) for key, tensor in state.items()]
    assert shapes == list(golden.layout(name).items())


def test_copies_share_their_storage() -> None:
    state = upstream_state(build("umamba", features=(4, 8), strides=(1, 2), patch_size=16))
    name = "encoder.stem.1.conv1"
    copies = [
        state[f"{prefix}{name}.{part}.weight"]
        for prefix in ("", "decoder.")
        for part in ("conv", "all_modules.0")
    ]
    assert len({tensor.data_ptr() for tensor in copies}) == 1
    assert not any(tensor.requires_grad for tensor in state.values())
    assert all(tensor.device == torch.device("cpu") for tensor in state.values())
