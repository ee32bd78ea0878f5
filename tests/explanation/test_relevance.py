"""Relevance against the rules written out by hand, and its sum against the score."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.adapters.segmenter import foreground_logits
from robustcli.core.errors import UsageError
from robustcli.explanation.relevance import ConservingRules, relevance
from robustcli.models import vmamba
from robustcli.models.mamba import Mamba
from robustcli.models.vmamba import SS2D
from robustcli.models.vmunet import build as build_vmunet
from tests.explanation.networks import (
    assert_unchanged,
    explained,
    fingerprint,
    small_vim,
    small_vmamba,
    without_biases,
)
from tests.models import golden

TARGETS = torch.tensor([0, 2])


def attribution(network: nn.Module, pixels: Tensor, targets: Tensor = TARGETS, **options):
    return relevance(explained(network), pixels, targets, batch_size=options.pop("batch_size", 2))


def gradient_by_rules(module: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
    """Of sum(weights * module(x)) by x."""
    module.requires_grad_(False)
    x = x.clone().requires_grad_(True)
    with ConservingRules(len(x)):
        y = module(x)
    return torch.autograd.grad((weights * y).sum(), x)[0]


def test_a_mamba_block_follows_the_three_rules_written_out_by_hand():
    torch.manual_seed(0)
    block = golden.fill(Mamba(4, d_state=3), golden.strong).double()
    tokens, weights = torch.randn(2, 1, 5, 4, dtype=torch.float64).unbind()
    _, L, _ = tokens.shape
    x, z = (tokens @ block.in_proj.weight.T).chunk(2, -1)  # (1, L, D)
    D = x.shape[-1]
    kernel = block.conv1d.weight[:, 0]  # (D, 4): the last one sees the step itself
    c = block.conv1d.bias + sum(
        kernel[:, 3 - back] * F.pad(x, (0, 0, back, 0))[:, :L] for back in range(4)
    )
    u = c * torch.sigmoid(c)
    low, B, C = (u @ block.x_proj.weight.T).split((1, 3, 3), -1)
    dt = F.softplus(low @ block.dt_proj.weight.T + block.dt_proj.bias)  # (1, L, D)
    A = -torch.exp(block.A_log)
    alpha = torch.zeros(D, L, L, dtype=torch.float64)
    for i in range(L):
        for j in range(i + 1):
            decay = torch.exp(A * dt[0, j + 1 : i + 1].sum(0)[:, None])  # (D, 3)
            alpha[:, i, j] = (C[0, i] * decay * B[0, j]).sum(-1) * dt[0, j]
    y = torch.einsum("dij,bjd->bid", alpha, u) + block.D * u
    # Backwards: halves at the gate, alpha and the slopes of silu constant.
    g = weights @ block.out_proj.weight
    g_y, g_z = g * z * torch.sigmoid(z) / 2, g * y / 2 * torch.sigmoid(z)
    g_u = torch.einsum("dij,bid->bjd", alpha, g_y) + block.D * g_y
    g_c = g_u * torch.sigmoid(c)
    g_x = sum(kernel[:, 3 - back] * F.pad(g_c, (0, 0, 0, back))[:, back:] for back in range(4))
    by_hand = torch.cat((g_x, g_z), -1) @ block.in_proj.weight
    torch.testing.assert_close(gradient_by_rules(block, tokens, weights), by_hand)


def test_classes_against_the_background_share_the_score_by_their_softmax():
    """The score of a segmenter of two classes: the logsumexp of both minus the background."""
    torch.manual_seed(0)
    network, photos = nn.Conv2d(3, 3, 1, bias=False), 4 * torch.randn(2, 3, 5, 5)
    shown = explained(network, task="seg", forward=lambda net, x: foreground_logits(net(x)))
    mask = torch.ones(2, 5, 5, dtype=torch.bool)
    made = relevance(shown, photos, mask, batch_size=2)
    scores = network(photos)
    shares = scores[:, 1:].softmax(1)
    expected = ((shares * scores[:, 1:]).sum(1) - scores[:, 0]) / 25
    torch.testing.assert_close(made.maps, expected)
    assert made.checks["conservation_error"].max() < 1e-5
    entropy = -(shares * shares.log()).sum(1).mean((1, 2))  # what the constant weights leave out
    torch.testing.assert_close(made.checks["bias_relevance"], entropy)


class DetachedSS2D(SS2D):
    """The rules written into the forward pass: what autograd then gives is the oracle."""

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.in_proj(x).chunk(2, -1)
        c = self.conv2d(x.permute(0, 3, 1, 2))
        u = c * torch.sigmoid(c).detach()
        y = self._scan_of(u, u.detach()).permute(0, 2, 3, 1)
        y = y - y.mean(-1, keepdim=True)
        y = y / (y.square().mean(-1, keepdim=True) + self.out_norm.eps).sqrt().detach()
        y = y * self.out_norm.weight + self.out_norm.bias
        gate = z * torch.sigmoid(z).detach()
        return self.out_proj((y * gate + (y * gate).detach()) / 2)

    def _scan_of(self, u: Tensor, maker: Tensor) -> Tensor:
        """The scan of `u` with the step sizes, B and C that `maker` makes."""
        scan = vmamba.ss2d_scan
        try:
            vmamba.ss2d_scan = lambda x, *rest, **options: scan(u, *rest, **options)
            return self._scan(maker)
        finally:
            vmamba.ss2d_scan = scan


def test_the_scan_over_an_image_its_norm_and_gate_follow_the_rules():
    torch.manual_seed(0)
    options = {"d_state": 2, "ratio": 1.5, "gate": True, "conv_bias": True}
    block = golden.fill(SS2D(8, **options), golden.strong).double()
    oracle = DetachedSS2D(8, **options).double()
    oracle.load_state_dict(block.state_dict())
    x, weights = torch.randn(2, 2, 3, 4, 8, dtype=torch.float64).unbind()
    leaf = x.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad((weights * oracle(leaf)).sum(), leaf)
    torch.testing.assert_close(gradient_by_rules(block, x, weights), expected)
    plain = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((weights * block(plain)).sum(), plain)
    assert (gradient - expected).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("forward_type", ["v05_noz", "v0", "v051d_onnone_nozact"])
def test_without_biases_the_pixels_sum_up_to_the_logit(forward_type):
    network = without_biases(small_vmamba(forward_type, d_state=2))
    pixels = golden.images(2, 3, 32, 32)
    got = attribution(network, pixels)
    scores = network(pixels)[[0, 1], TARGETS]
    torch.testing.assert_close(got.maps.sum((1, 2)), scores, rtol=1e-4, atol=1e-5)
    assert float(got.checks["bias_relevance"].abs().max()) == 0


def test_without_biases_and_class_token_the_pixels_of_vim_sum_up_to_the_logit():
    network = without_biases(small_vim())
    network.forward_head = lambda tokens: network.head(tokens.mean(1))
    pixels = golden.images(2, 3, 16, 16)
    sums = attribution(network, pixels).maps.sum((1, 2))
    torch.testing.assert_close(sums, network(pixels)[[0, 1], TARGETS], rtol=1e-4, atol=1e-5)


TIMM = {
    "resnet10t": {},
    "mobilenetv3_small_050": {},  # hard sigmoids and swishes, squeeze-and-excitation
    "convnextv2_atto": {"depths": (1, 1, 1, 1)},  # global response norm
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 4,
        "depths": (2, 1),
        "num_heads": (2, 4),
        "embed_dim": 16,
    },
}


@pytest.mark.parametrize("name", [*TIMM, "vmamba", "vim"])
def test_pixels_and_biases_sum_up_to_the_logit(name):
    if name in TIMM:
        network = timm.create_model(name, num_classes=3, **TIMM[name])
        network, pixels = golden.fill(network, golden.strong), golden.images(2, 3, 64, 64)
    elif name == "vim":
        network, pixels = small_vim(), golden.images(2, 3, 16, 16)
    else:
        network, pixels = small_vmamba(), golden.images(2, 3, 32, 32)
    before = fingerprint(network.requires_grad_(False))
    got = attribution(network, pixels)
    assert got.maps.shape == (2, *pixels.shape[2:])
    assert got.maps.dtype == torch.float32
    assert not got.maps.requires_grad
    total = got.maps.sum((1, 2)) + got.checks["bias_relevance"]
    torch.testing.assert_close(total, network(pixels)[[0, 1], TARGETS], rtol=1e-3, atol=1e-4)
    assert float(got.checks["conservation_error"].max()) < 1e-3
    assert_unchanged(network, before)


class Linear(nn.Module):
    """Three scores linear in the pixels, and constants of every kind on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 4), nn.Linear(4, 3)
        self.position, self.token = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = 2 - (self.first(x.flatten(1)) + self.position)
        x = torch.cat((x[:, :3], self.token.expand(len(x), 1)), 1) / 2 - 0.25
        return self.second(x)


def test_relevance_of_a_linear_network_and_its_biases_by_hand():
    torch.manual_seed(0)
    network, pixels = Linear(), torch.randn(2, 3, 2, 2)
    got = attribution(network, pixels)
    weight = network.second.weight[:, :3] @ -network.first.weight[:3] / 2  # (3, 12)
    products = pixels.flatten(1) * weight[TARGETS]
    torch.testing.assert_close(got.maps, products.view(2, 3, 2, 2).sum(1))
    inside = 2 - network.first.bias[:3] - network.position[:3]
    constants = torch.cat((inside, network.token[0])) / 2 - 0.25
    biases = network.second.weight @ constants + network.second.bias
    torch.testing.assert_close(got.checks["bias_relevance"], biases[TARGETS])


class Sharing(nn.Module):
    """A score that is a product of two linear maps of the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 3, bias=False), nn.Linear(12, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x.flatten(1)) * self.second(x.flatten(1))


def test_factors_of_a_product_share_its_relevance_in_halves():
    torch.manual_seed(0)
    network, pixels = Sharing(), torch.randn(2, 3, 2, 2)
    flat = pixels.flatten(1)
    a, b = network.first.weight[TARGETS], network.second.weight[TARGETS]
    first, second = (flat * a).sum(1, keepdim=True), (flat * b).sum(1, keepdim=True)
    by_hand = (flat * a * second + flat * b * first) / 2
    maps = attribution(network, pixels).maps
    torch.testing.assert_close(maps, by_hand.view(2, 3, 2, 2).sum(1))


class Attention(nn.Module):
    """Torch's own attention, tokens before images, with all its biases."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 3)
        nn.init.normal_(self.attention.in_proj_bias)
        nn.init.normal_(self.attention.out_proj.bias)
        self.token_bias = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.token_bias(x.reshape(len(x), 6, -1).permute(2, 0, 1))  # (L, N, 6)
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(0))


def test_biases_are_counted_where_images_are_not_the_first_dimension():
    torch.manual_seed(0)
    network, pixels = Attention(), torch.randn(2, 3, 2, 4)
    got = attribution(network, pixels)
    assert float(got.checks["conservation_error"].max()) < 1e-4
    torch.testing.assert_close(
        got.checks["bias_relevance"],
        attribution(network, pixels, batch_size=1).checks["bias_relevance"],
    )


class Bent(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.tanh(3 * x).exp())


def test_a_network_with_an_operation_without_rule_is_refused_and_left_as_it_was():
    network = Bent().eval().requires_grad_(False)
    before = fingerprint(network)
    with pytest.raises(
        UsageError, match=r"(?s)cannot be used with.*differs from the score by .*`exp`, `tanh`"
    ):
        attribution(network, torch.randn(2, 3, 2, 2))
    assert_unchanged(network, before)
    assert not torch.overrides._get_current_function_mode_stack()


def test_a_network_of_probabilities_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax(1))
    with pytest.raises(UsageError, match=r"(?s)does not depend on the pixels.*integrated"):
        attribution(network, torch.randn(2, 3, 2, 2))


def test_a_segmenter_is_explained_by_the_mean_logit_inside_the_mask():
    small = build_vmunet("vmunet", depths=(1, 1), depths_decoder=(1, 1), dim=16, d_state=2)
    network = golden.fill(small, golden.strong)
    pixels, masks = golden.images(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, 4:20, 8:12] = True
    net = explained(network, task="seg", probabilities=True)
    got = relevance(net, pixels, masks, batch_size=2)
    logits = torch.logit(network(pixels))[:, 0]
    expected = logits[:, 4:20, 8:12].mean((1, 2))
    total = got.maps.sum((1, 2)) + got.checks["bias_relevance"]
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)
