"""Integrated gradients and occlusion by hand, Grad-CAM against captum's own, and receptive fields.

The effective receptive fields are compared with their closed form.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import Tensor, nn

from robustcli.adapters.catalogue import ModelRequest
from robustcli.adapters.load import load
from robustcli.adapters.segmenter import raw_output
from robustcli.core.errors import UsageError
from robustcli.explanation.input_methods import integrated_gradients, occlusion
from robustcli.explanation.layer_methods import (
    cam_layer,
    grad_cam,
    layer_maps,
    receptive_field,
    untrained_receptive_field,
)
from robustcli.models import cifar_networks, ulvm
from tests.explanation.networks import (
    assert_unchanged,
    explained,
    fingerprint,
    small_vim,
    small_vmamba,
)
from tests.models import golden

MEAN = (0.5, 0.5, 0.5)
"""Of a preprocessing; without one, the mean colour is that of each photo and not zero."""


class Linear(nn.Module):
    """Class k scores the sum of `weights[k]` times the pixels."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weights)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_maps_of_a_linear_network_are_known():
    weights, photos = noise(3, 3, 8, 12), noise(2, 3, 8, 12, seed=1)
    network, targets = explained(Linear(weights), mean=MEAN), torch.tensor([2, 0])
    terms = (weights[targets] * photos).sum(1)
    made = integrated_gradients(network, photos, targets, batch_size=5)
    assert torch.allclose(made.maps, terms, atol=1e-5)
    assert made.checks["completeness_error"].max() < 1e-5
    # Windows of 2 x 3 that move by 1 x 1: a pixel gets the mean of what its windows hide.
    hidden = F.avg_pool2d(terms[:, None], (2, 3), 1) * 6
    cover = F.conv_transpose2d(torch.ones_like(hidden), torch.ones(1, 1, 2, 3))
    expected = (F.conv_transpose2d(hidden, torch.ones(1, 1, 2, 3)) / cover)[:, 0]
    assert torch.allclose(
        occlusion(network, photos, targets, batch_size=7).maps, expected, atol=1e-4
    )


def test_integrated_gradients_of_a_network_add_up_to_the_change_of_its_score():
    network, photos = explained(small_vmamba(), mean=MEAN), noise(2, 3, 32, 32)
    targets = torch.tensor([1, 2])
    made = integrated_gradients(network, photos, targets, batch_size=16)
    due = network.score(photos, targets) - network.score(torch.zeros_like(photos), targets)
    error = (made.maps.flatten(1).sum(1) - due).abs() / due.abs()
    assert torch.allclose(made.checks["completeness_error"].float(), error, atol=1e-4)
    assert error.max() < 0.05  # 32 steps; a sum of one step is off by more than the score


def test_a_mask_is_a_target():
    class Pixels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum(1, keepdim=True)

    photos = noise(2, 3, 6, 6)
    mask = torch.zeros(2, 6, 6, dtype=torch.bool)
    mask[0, 1:3, 2:5] = True
    network = explained(Pixels(), task="seg", mean=MEAN)
    maps = integrated_gradients(network, photos, mask, batch_size=4).maps
    assert torch.allclose(maps[0], photos[0].sum(0) * mask[0] / 6, atol=1e-6)
    assert torch.allclose(maps[1], photos[1].sum(0) / 36, atol=1e-6)  # empty: the whole picture


def test_grad_cam_is_captums():
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=5)
    photos, targets = noise(3, 3, 64, 64), torch.tensor([0, 4, 2])
    captums = LayerGradCam(network.eval(), network.layer4).attribute(
        photos, targets, relu_attributions=True
    )
    shown = explained(network)
    layer = cam_layer(shown, photos[:1])
    assert layer.name == "layer4"
    maps = layer_maps(shown, layer, photos, targets)
    assert maps.max() > 0
    assert torch.allclose(maps, captums[:, 0], rtol=1e-4, atol=1e-7)
    enlarged = F.interpolate(captums, (64, 64), mode="bilinear", align_corners=False)[:, 0]
    assert torch.allclose(grad_cam(shown, photos, targets, batch_size=2).maps, enlarged, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "side", "name", "size"),
    [
        (small_vmamba, 32, "layers", (4, 4)),
        (small_vim, 16, "layers.1.norm", (4, 4)),
        (lambda: timm.create_model("test_vit", img_size=64), 64, "blocks.5.norm1", (4, 4)),
        (lambda: timm.create_model("test_convnext"), 64, "norm_pre", (2, 2)),
        (lambda: cifar_networks.build("vit", depth=2), 32, "transformer.layers.1.0.norm", (8, 8)),
        (lambda: ClassAttention(), 8, "norm", (4, 4)),
    ],
)
def test_the_usual_layer_has_places_whose_gradients_count(module, side, name, size):
    torch.manual_seed(0)
    network = explained(module())
    photos = noise(2, 3, side, side)
    layer = cam_layer(network, photos[:1])
    assert (layer.name, layer.size) == (name, size)
    assert grad_cam(network, photos, torch.tensor([0, 1]), batch_size=2).maps.amax((1, 2)).max() > 0


class ClassAttention(nn.Module):
    """Patches, whose attention weights (N, 1, 16, 16) are no map; a class token reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.weights, self.norm, self.head = nn.Identity(), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed = self.weights((tokens @ tokens.mT).softmax(2)[:, None])[:, 0] @ tokens
        read = self.norm(torch.cat((0 * mixed[:, :1], mixed), 1))
        token = self.weights((read[:, :1] @ read.mT).softmax(2)[:, None])[:, 0] @ read
        return self.head(token[:, 0])


def test_the_class_token_of_vim_is_no_place():
    network = explained(small_vim())
    layer = cam_layer(network, noise(1, 3, 16, 16))
    tokens = torch.arange(17.0).view(1, 17, 1)
    assert layer.maps(tokens).flatten().tolist() == [i for i in range(17) if i != 8]


def test_the_layer_can_be_named_and_candidates_are_listed():
    photo, target = noise(1, 3, 32, 32), torch.tensor([0])
    network = explained(small_vmamba(), layer="layers.0.blocks")
    assert cam_layer(network, photo).size == (8, 8)
    for name, message in (
        ("layers.0.blokcs", "Did you mean `layers.0.blocks`"),
        ("classifier.head", "is neither a map"),
    ):
        network = explained(small_vmamba(), layer=name)
        with pytest.raises(UsageError, match=rf"(?s)`.*{name}.*{message}.*Suitable .*`layers`"):
            grad_cam(network, photo, target, batch_size=1)
    flat = explained(nn.Sequential(nn.Flatten(), nn.Linear(3072, 3)))
    with pytest.raises(UsageError, match=r"(?s)found no suitable layer.*`--method occlusion`"):
        grad_cam(flat, photo, target, batch_size=1)


def test_a_segmenter_is_explained_at_its_smallest_map():
    down = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1), nn.ReLU())
    up = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(8, 1, 1))
    network = explained(nn.Sequential(down, up), task="seg")
    assert cam_layer(network, noise(1, 3, 16, 16)).name == "0"


def test_pools_of_a_pyramid_are_not_the_smallest_map_of_a_segmenter():
    module = ulvm.build("ulvm_v6")
    network = explained(module, task="seg", probabilities=True, forward=raw_output)
    layer = cam_layer(network, noise(1, 3, 128, 128))
    assert layer.size == (4, 4)
    assert "ppm" not in layer.name  # its pools have 1, 2 x 2, 3 x 3 and 6 x 6 positions


def test_a_layer_before_an_instance_norm_has_no_channel_weights():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.InstanceNorm2d(8), nn.ReLU())
    network = nn.Sequential(body, nn.Upsample(scale_factor=2), nn.Conv2d(8, 1, 3, padding=1))
    photo, mask = noise(1, 3, 16, 16), torch.zeros(1, 16, 16, dtype=torch.bool)
    assert grad_cam(explained(network, task="seg"), photo, mask, batch_size=1).maps.std() > 0
    named = explained(network, task="seg", layer="0.0")
    with pytest.raises(UsageError, match=r"(?s)`--layer 0.0` cannot be used.*sums to zero.*norm"):
        grad_cam(named, photo, mask, batch_size=1)


def test_a_module_that_is_used_in_several_places_is_a_layer_where_it_has_positions():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.head(self.relu(self.conv(x)).mean((2, 3))) + 9)

    torch.manual_seed(0)
    network, photo, target = Shared(), noise(1, 3, 8, 8), torch.tensor([1])
    maps = grad_cam(explained(network, layer="relu"), photo, target, batch_size=1).maps
    features = network.conv(photo).relu()
    by_hand = (network.head.weight[1][:, None, None] / 36 * features[0]).sum(0).relu()
    enlarged = F.interpolate(by_hand[None, None], (8, 8), mode="bilinear")[:, 0]
    torch.testing.assert_close(maps, enlarged)
    assert cam_layer(explained(network), photo).name == "relu"


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # deprecated in new releases
def test_modules_of_torchscript_are_no_layers():
    photo, body = noise(1, 3, 16, 16), nn.Sequential(nn.Conv2d(3, 3, 3), nn.AvgPool2d(14))
    script = torch.jit.trace(nn.Sequential(body, nn.Flatten()), photo)
    for changes in ({}, {"layer": "0.0"}):
        with pytest.raises(UsageError, match=r"TorchScript files cannot|omit `--method grad-cam`"):
            grad_cam(explained(script, **changes), photo, torch.tensor([0]), batch_size=1)


def test_integrated_gradients_of_instance_norms_add_up():
    """From black, the norm jumps at the first step; from the mean colour of the photo, it does not.

    Only networks without a mean in their preprocessing start from the colour of the photo.
    """
    segmenter = load(ModelRequest("umamba-pico", None, {}), "seg", offline=True)
    network = explained(segmenter.network, task="seg", forward=raw_output)
    y, x = np.mgrid[:64, :64]
    cells = 0.1 + 0.6 * (np.hypot(y % 32 - 16, x % 32 - 16) < 9)
    photo = torch.from_numpy(cells).float().expand(1, 3, 64, 64) + 0.02 * noise(1, 3, 64, 64)
    mask = torch.from_numpy(cells > 0.5)[None]
    errors = [
        float(
            integrated_gradients(shown, photo, mask, batch_size=16).checks["completeness_error"][0]
        )
        for shown in (network, replace(network, mean=MEAN))
    ]
    assert errors[0] < 0.05
    assert errors[1] > 0.1


def test_the_mean_colour_is_that_of_the_preprocessing_or_else_of_the_photo():
    photos = noise(2, 3, 4, 4)
    network = explained(Linear(noise(3, 3, 4, 4)))
    expected = photos.mean((2, 3))[:, :, None, None].expand(2, 3, 4, 4)
    assert torch.equal(network.mean_colour(photos), expected)
    assert not replace(network, mean=MEAN).mean_colour(photos).any()


ZERO = torch.zeros(2, dtype=torch.long)


class Convolutions(nn.Module):
    """Linear convolutions that add up their window, then the mean."""

    def __init__(self, count: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 3, kernel, stride, padding, bias=False) for _ in range(count))
        )
        for layer in self.layers:
            nn.init.ones_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean((2, 3))


def test_a_stack_of_convolutions_has_a_binomial_field():
    net, pixels = explained(Convolutions(4, 3)), golden.images(2, 3, 15, 15)
    got = receptive_field(net, pixels, ZERO, batch_size=2).maps
    line = np.ones(1)
    for _ in range(4):
        line = np.convolve(line, np.ones(3))  # trinomial coefficients, 9 of them
    field = np.zeros((15, 15))
    field[3:12, 3:12] = np.outer(line, line)
    field /= field.mean()
    torch.testing.assert_close(got, torch.tensor(field, dtype=torch.float32).expand(2, 15, 15))


@pytest.mark.parametrize(("size", "places"), [((12, 12), 3), ((16, 16), 4)])
def test_the_field_of_one_place_lies_in_the_middle_of_the_image(size, places):
    net, pixels = explained(Convolutions(1, 4, stride=4)), golden.images(2, 3, *size)
    got = receptive_field(net, pixels, ZERO, batch_size=2).maps
    middle = size[0] // 2
    field = torch.zeros(size)
    field[middle - 2 : middle + 2, middle - 2 : middle + 2] = 1
    assert net.module.layers(pixels).shape[-1] == places
    torch.testing.assert_close(got, (field / field.mean()).expand(2, *size))


def test_of_a_network_with_nonlinearities_it_is_the_gradient_of_the_middle_place():
    network = small_vmamba(depths=(1, 1))
    net, pixels = explained(network, "vmamba"), golden.images(3, 3, 24, 24)
    before = fingerprint(network)
    got = receptive_field(net, pixels, ZERO, batch_size=2).maps
    leaf = pixels.clone().requires_grad_(True)
    features = network.forward_features(leaf)  # (3, 3, 3, C)
    (gradient,) = torch.autograd.grad(features[:, 1, 1].sum(), leaf)
    expected = gradient.abs().sum(1)
    expected = expected / expected.mean((1, 2), keepdim=True)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    assert_unchanged(network, before)


def test_before_training_it_is_that_of_the_initial_network():
    trained, pixels = Convolutions(2, 3), golden.images(2, 3, 9, 9)
    net = explained(trained, initial=lambda: Convolutions(1, 3))
    before = untrained_receptive_field(net, pixels, ZERO, batch_size=2).maps
    expected = receptive_field(explained(Convolutions(1, 3)), pixels, ZERO, batch_size=2).maps
    torch.testing.assert_close(before, expected)
    with pytest.raises(UsageError, match=r"(?s)cannot build this network again.*`--method erf`"):
        untrained_receptive_field(explained(trained), pixels, ZERO, batch_size=2)


def test_a_photo_without_any_gradient_has_a_field_of_zeros():
    network = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    nn.init.constant_(network[0].bias, -1e6)
    got = receptive_field(explained(network), golden.images(2, 3, 9, 9), ZERO, batch_size=1).maps
    assert torch.equal(got, torch.zeros(2, 9, 9))
