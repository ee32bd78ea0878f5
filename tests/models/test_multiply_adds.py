"""The count of multiply-adds: by hand, against published counts, and without side effects."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from robustcli.models.mamba import BidirectionalMamba, Mamba
from robustcli.models.multiply_adds import count_multiply_adds, scan_multiply_adds
from robustcli.models.scan import selective_scan
from robustcli.models.scan.dispatch import VARIABLE
from robustcli.models.vmamba import SS2D

L, C, D, N, R = 10, 8, 16, 16, 1  # steps, channels, inner channels, states, rank
PROJECTIONS = L * (C * 2 * D + D * C)  # in_proj and out_proj
BRANCH = L * (D * 4 + D * (R + 2 * N) + R * D)  # convolution of width 4, x_proj, dt_proj
SCAN = L * D * (4 * N + 2)


def counted(module: nn.Module, *shape: int) -> int:
    return count_multiply_adds(lambda: module(torch.zeros(1, *shape)), module)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_mamba_and_vims_mixer_by_hand(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv(VARIABLE, backend)
    assert SCAN == 10_560
    assert counted(Mamba(C), L, C) == PROJECTIONS + BRANCH + SCAN == 20_480
    assert counted(BidirectionalMamba(C), L, C) == PROJECTIONS + 2 * (BRANCH + SCAN)


def test_four_directions_of_an_image_by_hand() -> None:
    mixer = SS2D(C, d_state=2, ratio=2, gate=True, conv_bias=True)
    pixels, K, states, rank = 4 * 5, 4, 2, 1
    projected = C * 2 * D + 9 * D + D * C  # in_proj, 3 x 3 depthwise, out_proj
    per_direction = D * (rank + 2 * states) + rank * D + D * (4 * states + 2)
    assert counted(mixer, 4, 5, C) == pixels * (projected + K * per_direction)


def test_a_scan_without_skip_weights_takes_one_product_less() -> None:
    u = torch.zeros(2, D, L)
    A, B = torch.zeros(D, N), torch.zeros(2, N, L)
    without = count_multiply_adds(lambda: selective_scan(u, u, A, B, B))
    assert without == scan_multiply_adds(2 * L, D, N, skip=False) == 2 * L * D * (4 * N + 1)


@pytest.mark.parametrize("name", ["mobilenet_v2", "swin_t"])
def test_networks_without_a_scan_have_the_counts_that_torchvision_publishes(name: str) -> None:
    weights = torchvision.models.get_model_weights(name).DEFAULT
    published = weights.meta["_ops"]  # 10^9 multiply-adds, three decimals
    network = torchvision.models.get_model(name, weights=None)
    assert counted(network, 3, 224, 224) / 1e9 == pytest.approx(published, abs=6e-4)


def test_attention_counts_whichever_kernel_would_serve() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    by_hand = 10 * (3 * 32 * 32 + 32 * 32 + 2 * 32 * 64) + 2 * 10 * 10 * 32
    assert counted(layer, 10, 32) == by_hand
    tokens = 1 + (32 // 8) ** 2
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=5
    )
    of_block = tokens * (12 * 192 * 192) + 2 * tokens * tokens * 192
    assert counted(vit, 3, 32, 32) == 16 * 192 * 192 + of_block + 192 * 5


def test_the_network_comes_back_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    network[2].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    assert count_multiply_adds(lambda: network(torch.ones(1, 3, 1, 1)), network) == 12
    assert [module.training for module in network] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_error_of_the_network_leaves_it_in_training() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("broken")

    network = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        counted(network, 3)
    assert network.training
    assert torch.backends.mha.get_fastpath_enabled()
