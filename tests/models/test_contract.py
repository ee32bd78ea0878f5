"""What every network of this room keeps, whatever its family."""

import pytest
import torch
from torch import Tensor

from robustcli.models.architectures import architecture
from tests.models import golden

SMALL = {
    "vmamba-t-s1l8": ({"depths": (1, 1), "dim": 16}, 40),
    "vmamba-t-v0": ({"depths": (1, 1), "dim": 16}, 40),
    "vim-t": ({"depth": 2, "img_size": 48}, 48),
    "vim-t-plus": ({"depth": 1, "img_size": 32}, 32),
    "vim": ({"depth": 2}, 32),
    "vit": ({"depth": 2}, 32),
    "resnet9": ({"channels": (4, 8, 8, 16)}, 16),
    "cifar-resnet18": ({"depths": (1, 1, 1, 1)}, 16),
    "umamba": ({"features": (4, 8, 16), "strides": (1, 2, 2)}, 32),
    "umamba-enc": ({"features": (4, 8, 16), "strides": (1, 2, 2), "patch_size": 16}, 16),
    "umamba-nomamba": ({"features": (4, 8, 16), "strides": (1, 2, 2)}, 16),
    "resenc": ({"features": (4, 8, 8), "strides": (1, 2, 2), "n_blocks": (1, 2, 1)}, 16),
    "vmunet": ({"dim": 16, "depths": (1, 1), "depths_decoder": (1, 1)}, 16),
    "swin-umamba": ({"dim": 8, "depths": (1, 1)}, 16),
    "swin-umamba-d": ({"dim": 8, "depths": (1, 1)}, 16),
    "ulvm": ({}, 32),
    "ulvm_v3": ({}, 32),
    "ulvm_v4": ({"widths": (16, 32, 32, 64, 64, 64)}, 64),
    "umambabot_pp": ({"features": (8, 16)}, 16),
    "unet": ({"features": (4, 8, 16)}, 16),
    "segformer": (
        {
            "widths": (8, 16),
            "depths": (1, 1),
            "heads": (1, 2),
            "patches": (7, 3),
            "strides": (4, 2),
            "reductions": (2, 1),
            "decoder": 8,
        },
        32,
    ),
    "resnet18_seg": ({"output": 64}, 64),
}


# A sibling of each is tried in every run: vmamba-t-s1l8, vim, ulvm.
SLOW = ("vmamba-t-v0", "vim-t", "vim-t-plus", "ulvm_v3", "ulvm_v4")


# Tracing them takes seconds; scans and convolutions are traced in umamba, vim and vmunet.
SLOWLY_TRACED = (
    "umamba-enc", "umamba-nomamba", "umambabot_pp", "unet", "resnet18_seg", "cifar-resnet18",
    "swin-umamba", "swin-umamba-d", "ulvm", "segformer",
)  # fmt: skip


def _cases(*slow):
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in SMALL]


traced = pytest.mark.parametrize("case", _cases(*SLOW, *SLOWLY_TRACED), indirect=True)


@pytest.fixture(params=_cases(*SLOW))
def case(request) -> tuple[torch.nn.Module, Tensor]:
    options, size = SMALL[request.param]
    network = architecture(request.param).build(**options)
    return golden.fill(network, golden.strong), golden.images(2, 3, size, size)


@traced
@torch.no_grad()
def test_compiles_whole_without_changing_the_result(case):
    network, x = case
    torch.compiler.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), network(x), atol=1e-4)


@traced
@torch.no_grad()
def test_exports_without_changing_the_result(case):
    network, x = case
    exported = torch.export.export(network, (x,)).module()
    assert torch.allclose(exported(x), network(x), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_gives_no_nan(case, dtype):
    network, x = case
    for scale in (1, 100):
        with torch.autocast("cpu", dtype=dtype):
            assert network(scale * x).isfinite().all()


@torch.no_grad()
def test_float64_takes_float64_and_agrees_with_float32(case):
    network, x = case
    single = network(x)
    double = network.double()(x.double())
    assert double.dtype == torch.float64
    assert golden.distance(single, double.numpy()) <= 1e-3 * float(double.abs().max())


def test_every_parameter_that_serves_gets_a_finite_gradient(case):
    network, x = case
    network.train()(x).square().mean().backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    assert all("seg_layers" in name or "out_layers" in name for name in idle)
    grads = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(bool(grad.isfinite().all()) for grad in grads)


@torch.no_grad()
def test_layout_of_the_input_does_not_matter(case):
    network, x = case
    channels_last = x.to(memory_format=torch.channels_last)
    strided = torch.stack((x, x), -1)[..., 0]
    expected = network(x)
    for other in (channels_last, strided):
        assert torch.allclose(network(other), expected, atol=1e-4)


@torch.no_grad()
def test_an_image_gets_the_same_output_alone_and_in_a_batch(case):
    network, x = case
    assert torch.allclose(network(x[1:]), network(x)[1:], atol=1e-4)


@torch.no_grad()
def test_the_input_is_left_as_it_was(case):
    network, x = case
    before = x.clone()
    network(x)
    assert torch.equal(x, before)
