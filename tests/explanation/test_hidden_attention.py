"""Hidden attention against products written out, the scan itself, and explicit matrices."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustcli.core.errors import UsageError
from robustcli.explanation.hidden_attention import (
    HiddenScan,
    class_attention,
    hidden_attention,
    recorded_scans,
    rollout,
)
from robustcli.models.scan import selective_scan, ss2d_scan
from robustcli.models.scan.base import CROSS
from tests.explanation.networks import (
    explained,
    small_vim,
    small_vmamba,
)
from tests.models import golden

TARGETS = torch.tensor([0, 2])


def random_scan(directions=CROSS, states=3, size=(3, 4), channels=2, images=2) -> HiddenScan:
    """A scan of random arguments, in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    K = len(directions)
    return HiddenScan(
        normal(images, K, channels, *size),
        -normal(K * channels, states).abs() - 0.1,
        normal(images, K, states, *size),
        normal(images, K, states, *size),
        normal(K * channels),
        True,
        directions,
    )


def alpha_of(scan: HiddenScan, direction: int) -> Tensor:
    """Signed attention (N, D, L, L) of one direction by the product in the definition."""
    N, K, D, H, W = scan.delta.shape
    order = {
        "row": torch.arange(H * W),
        "column": torch.arange(H * W).view(H, W).T.flatten(),
    }[scan.directions[direction].removesuffix("-reversed")]
    order = order.flip(0) if scan.directions[direction].endswith("reversed") else order
    bias = scan.bias.view(K, D)[direction, :, None]
    dt = F.softplus(scan.delta[:, direction].flatten(2) + bias)[..., order]
    B, C = (t[:, direction].flatten(2)[..., order] for t in (scan.B, scan.C))
    A = scan.A.view(K, D, -1)[direction]
    alpha = torch.zeros(N, D, H * W, H * W, dtype=torch.float64)
    for i, to in enumerate(order):
        for j, source in enumerate(order[: i + 1]):
            decay = torch.ones(N, D, A.shape[1], dtype=torch.float64)
            for k in range(j + 1, i + 1):
                decay = decay * torch.exp(dt[:, :, k, None] * A)
            put_in = dt[:, :, j, None] * B[:, None, :, j]
            alpha[:, :, to, source] = (C[:, None, :, i] * decay * put_in).sum(-1)
    return alpha


def test_attention_times_the_input_is_the_output_of_the_scan():
    scan = random_scan()
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    D = torch.arange(8.0, dtype=torch.float64)
    y = ss2d_scan(x, scan.delta, scan.A, scan.B, scan.C, D, scan.bias)
    y = y - D.view(4, 2).sum(0)[:, None, None] * x
    alphas = [alpha_of(scan, direction) for direction in range(4)]
    attended = torch.einsum("ndij,ndj->ndi", sum(alphas), x.flatten(2))
    torch.testing.assert_close(attended.view_as(y), y)


@pytest.mark.parametrize("states", [1, 3])
def test_a_scan_attends_as_its_matrix_does(states):
    scan = random_scan(states=states)
    values = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = sum(alpha_of(scan, direction).abs() for direction in range(4)).mean(1)
    by_matrix = torch.einsum("nij,nj->ni", matrix, values.flatten(1)).view_as(values)
    attended = scan.attended(values)
    if states == 1:
        torch.testing.assert_close(attended, by_matrix)
    else:
        assert (attended > by_matrix).all()  # each state's absolute value: an upper bound
        each = [
            replace(
                scan, A=scan.A[:, n : n + 1], B=scan.B[:, :, n : n + 1], C=scan.C[:, :, n : n + 1]
            )
            for n in range(states)
        ]
        torch.testing.assert_close(attended, sum(item.attended(values) for item in each))


def absolute(scan: HiddenScan) -> Tensor:
    """The matrix (N, L, L) of absolute values, those of several states one by one."""
    ones = torch.eye(scan.size[0] * scan.size[1]).expand(len(scan.delta), -1, -1)
    columns = [scan.attended(item.view(-1, *scan.size).to(scan.delta)) for item in ones.unbind(1)]
    return torch.stack([column.flatten(1) for column in columns], 2)


def by_matrices(scans: list[HiddenScan], received: Tensor) -> Tensor:
    """The rollout by explicit products, (N, L) of the first layer."""
    row, size = received.flatten(1), scans[-1].size
    for scan in reversed(scans):
        if scan.size != size:  # each place of a pooled map stands for the mean of its four
            row = row.view(-1, *size).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1) / 4
            size = scan.size
        alpha = absolute(scan)
        alpha = alpha / alpha.sum(-1, keepdim=True)
        eye = torch.eye(alpha.shape[-1]).to(alpha)
        weights = torch.ones_like(row) if scan.weights is None else scan.weights.flatten(1)
        layer = (eye + weights[..., None] * alpha) / (1 + weights)[..., None]
        row = torch.einsum("ni,nij->nj", row, layer)
    return row


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_rollout_of_vmamba_is_the_product_of_its_layers(targets):
    net, pixels = explained(small_vmamba(), "vmamba"), golden.images(2, 3, 32, 32)
    scans = recorded_scans(net, pixels, targets)
    assert [scan.size for scan in scans] == [(8, 8), (4, 4), (4, 4)]
    received = torch.full((2, 4, 4), 1 / 16)
    expected = by_matrices(scans, received)
    places = rollout(scans, received)
    torch.testing.assert_close(places.flatten(1), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(places.sum((1, 2)), torch.ones(2))
    method = hidden_attention if targets is None else class_attention
    got = method(net, pixels, TARGETS, batch_size=2)
    enlarged = F.interpolate(expected.view(2, 1, 8, 8), (32, 32), mode="bilinear")[:, 0]
    torch.testing.assert_close(got.maps, enlarged, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_rollout_of_vim_is_what_the_class_token_attends_to(targets):
    net, pixels = explained(small_vim(), "vim"), golden.images(2, 3, 16, 16)
    scans = recorded_scans(net, pixels, targets)
    assert [scan.size for scan in scans] == [(1, 17)] * 2
    token = torch.zeros(2, 1, 17)
    token[:, 0, 8] = 1
    expected = by_matrices(scans, token)
    patches = torch.cat((expected[:, :8], expected[:, 9:]), 1).view(2, 1, 4, 4)
    method = hidden_attention if targets is None else class_attention
    got = method(net, pixels, TARGETS, batch_size=2)
    enlarged = F.interpolate(patches, (16, 16), mode="bilinear")[:, 0]
    torch.testing.assert_close(got.maps, enlarged, rtol=1e-4, atol=1e-7)


def test_vims_second_direction_is_laid_back_from_its_order():
    """The attention of both directions times what each scans is the output of its scan."""
    network, pixels, calls = small_vim(depth=1), golden.images(1, 3, 16, 16), []

    class Calls(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            y = func(*args, **(kwargs or {}))
            if func is selective_scan:
                calls.append((args, y))
            return y

    with Calls(), torch.no_grad():
        network(pixels)
    (scan,) = recorded_scans(explained(network, "vim"), pixels)
    (u, *_, D, _, _, _, _), y = calls[0]
    halves = zip(u.chunk(2, 1), (y - D[:, None] * u).chunk(2, 1), strict=True)
    for direction, (scanned, output) in enumerate(halves):
        if direction == 1:
            scanned, output = scanned.flip(-1), output.flip(-1)
        alpha = alpha_of(scan, direction).to(scanned)
        attended = torch.einsum("ndij,ndj->ndi", alpha, scanned)
        torch.testing.assert_close(attended, output, rtol=1e-4, atol=1e-5)


def test_weights_of_rows_are_the_positive_gradient_of_the_score():
    net, pixels = explained(small_vmamba(depths=(1,)), "vmamba"), golden.images(2, 3, 32, 32)
    (scan,) = recorded_scans(net, pixels, TARGETS)
    block, outputs = net.module.layers[0].blocks[0].op, []
    scanned = block._scan
    block._scan = lambda x: outputs.append(scanned(x)) or outputs[-1]
    scores = net.score(pixels.requires_grad_(True), TARGETS)
    (gradient,) = torch.autograd.grad(scores.sum(), outputs)
    positive = gradient.clamp(min=0).mean(1)
    expected = positive / positive.amax((1, 2), keepdim=True)
    torch.testing.assert_close(scan.weights, expected)


def test_a_network_without_scans_is_refused_with_methods_that_fit():
    net = explained(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), "resnet")
    with pytest.raises(UsageError, match=r"(?s)`resnet`.*VMamba and Vim.*relevance"):
        hidden_attention(net, torch.zeros(1, 3, 2, 2), TARGETS[:1], batch_size=1)
