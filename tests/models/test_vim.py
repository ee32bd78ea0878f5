"""Vim against the official code, and its position embedding at other sizes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models.vim import build, fit_positions, resize_positions
from tests.models import golden


def test_resized_positions_keep_the_class_token_and_the_grid():
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(1, 5, 4, 4, generator=generator)
    values = torch.full((1, 1, 5), 7.0)
    patches = grid.flatten(2).transpose(1, 2)
    positions = torch.cat((patches[:, :8], values, patches[:, 8:]), 1)
    resized = resize_positions(positions, (7, 5))
    assert resized.shape == (1, 36, 5)
    assert torch.equal(resized[:, 17:18], values)
    rest = torch.cat((resized[:, :17], resized[:, 18:]), 1)
    expected = F.interpolate(grid, (7, 5), mode="bicubic", align_corners=False)
    assert torch.allclose(rest, expected.flatten(2).transpose(1, 2), atol=1e-6)


def test_a_linear_ramp_stays_a_ramp_across_the_class_token():
    """The release's own helper takes token 0 for the class token and would bend it."""
    ramp = torch.arange(14.0).repeat(14, 1)  # grows to the right
    patches = ramp.reshape(1, -1, 1)
    positions = torch.cat((patches[:, :98], torch.zeros(1, 1, 1), patches[:, 98:]), 1)
    resized = resize_positions(positions, (28, 28))
    grid = torch.cat((resized[:, :392], resized[:, 393:]), 1).view(28, 28)
    assert float(grid.std(0).max()) < 1e-5
    assert torch.allclose(grid[5, 4:24].diff(), torch.tensor(0.5), atol=0.1)  # bicubic ripples


def test_positions_of_no_square_grid_cannot_be_resized():
    with pytest.raises(
        UsageError, match=r"(?s)of 6 patches cannot be resized.*not form a square grid"
    ):
        resize_positions(torch.zeros(1, 7, 2), (4, 4))


def test_weights_are_fitted_to_another_size():
    small, large = build("vim-t", depth=1, img_size=64), build("vim-t", depth=1, img_size=96)
    fitted = fit_positions(small.state_dict(), large.config.grid)
    large.load_state_dict(fitted)
    assert torch.equal(large.pos_embed[:, 18], small.pos_embed[:, 8])
    assert fit_positions(small.state_dict(), small.config.grid).keys() == small.state_dict().keys()
    kept = fit_positions(small.state_dict(), small.config.grid)["pos_embed"]
    assert torch.equal(kept, small.pos_embed)


# Source of the counts: the specification's tables, counted on the official modules.
RELEASES = {
    "vim-t": ("vim_tiny", 7_148_008),
    "vim-t-plus": ("vim_tiny_plus", 7_250_344),
    "vim-s": ("vim_small", 25_796_584),
    "vim-s-plus": ("vim_small_plus", 26_001_256),
    "vim-b": ("vim_base", 97_598_440),
}
CIFAR = [
    ("vim_p4_c10", 4, 10, 1_791_226),
    ("vim_p4_c1000", 4, 1000, 1_958_536),
    ("vim_p8_c1000", 8, 1000, 1_974_664),
]
LAYERS = 8
SMALL = {"depth": 3, "img_size": 64}


@pytest.mark.parametrize(
    "variant",  # the larger ones repeat the tiny ones' blocks; their names and shapes are below
    [n if n.startswith("vim-t") else pytest.param(n, marks=pytest.mark.slow) for n in RELEASES],
)
def test_agrees_with_the_official_logits(variant):
    assert golden.logits_error(RELEASES[variant][0], lambda: build(variant)) <= 2e-5


@pytest.mark.parametrize("variant", RELEASES)
def test_names_shapes_and_order_are_the_official_ones(variant):
    name, parameters = RELEASES[variant]
    network = golden.published(variant)
    assert golden.parameters(network) == parameters
    assert list(golden.shapes(network).items()) == list(golden.layout(name).items())


@pytest.mark.parametrize(("name", "patch", "classes", "parameters"), CIFAR)
def test_the_cifar_network_agrees_with_the_papers_code(name, patch, classes, parameters):
    network = build("vim", patch_size=patch, num_classes=classes)
    assert golden.parameters(network) == parameters
    assert golden.shapes(network) == golden.layout(name)
    for rule, key in ((golden.rule_a, "A_out32"), (golden.rule_b, "B_out32")):
        expected = golden.arrays(f"{name}.npz")[key]
        with torch.no_grad():
            logits = golden.fill(network, rule)(golden.images(2, 3, 32, 32))
        assert golden.distance(logits, expected) <= 1e-4 * abs(expected).max()


def test_head_reads_the_middle_token():
    network = golden.fill(build("vim-t", **SMALL), golden.strong)
    with torch.no_grad():
        tokens = network.forward_features(golden.images(2, 3, 64, 64))
        assert tokens.shape == (2, 17, 192)
        logits = tokens[:, 8] @ network.head.weight.T + network.head.bias
        assert torch.allclose(network.forward_head(tokens), logits, atol=1e-5)
        assert torch.equal(network.forward_head(tokens, pre_logits=True), tokens[:, 8])


def test_takes_an_oblong_image_when_built_for_it_alone():
    network = build("vim-t", **SMALL)
    with pytest.raises(UsageError, match=r"(?s)64 x 32 pixels; this Vim needs 64 x 64.*img_size"):
        network(golden.images(1, 3, 64, 32))
    network = build("vim-t", depth=1, img_size=[64, 32])
    assert network.pos_embed.shape == (1, 9, 192)
    assert network(golden.images(1, 3, 64, 32)).shape == (1, 1000)


@torch.no_grad()
def test_starts_as_upstream_starts():
    torch.manual_seed(0)
    network = build("vim-t", depth=4)
    mixer = network.layers[1].mixer
    assert float(mixer.dt_proj_b.bias.abs().max()) == 0
    assert float(F.softplus(mixer.dt_proj.bias).max()) <= 0.1 * 1.001
    bound = math.sqrt(1 / 384) / math.sqrt(4)  # kaiming uniform, a = sqrt 5, over sqrt depth
    assert float(mixer.out_proj.weight.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(network.patch_embed.proj.weight.std()) == pytest.approx((3 * 256) ** -0.5, rel=0.1)
    for tensor in (network.head.weight, network.pos_embed, network.cls_token):
        assert float(tensor.std()) == pytest.approx(0.02, rel=0.2)
    assert float(network.head.bias.abs().max()) == 0


@torch.no_grad()
def test_the_cifar_network_starts_as_its_paper_says():
    """Deviations of the draws, of which the smallest has 168 numbers; bounds are exact."""
    torch.manual_seed(0)
    network = build("vim")
    assert len(network.layers) == LAYERS
    assert float(network.patch_embed.proj.weight.std()) == pytest.approx(48**-0.5, rel=0.05)
    assert float(network.patch_embed.proj.bias.abs().max()) == 0
    for tensor in (network.head.weight, network.pos_embed, network.cls_token):
        assert float(tensor.std()) == pytest.approx(0.02, rel=0.2)
    assert float(network.head.bias.abs().max()) == 0
    for layer in network.layers:
        mixer = layer.mixer
        bound = 336**-0.5 / LAYERS**0.5  # kaiming uniform with a = sqrt 5, over sqrt depth
        assert float(mixer.out_proj.weight.abs().max()) == pytest.approx(bound, rel=0.01)
        assert float(mixer.in_proj.weight.abs().max()) == pytest.approx(168**-0.5, rel=0.01)
        for proj in (mixer.dt_proj, mixer.dt_proj_b):
            assert float(proj.weight.abs().max()) == pytest.approx(11**-0.5, rel=0.01)
        steps = F.softplus(mixer.dt_proj.bias)
        assert float(steps.min()) >= 1e-3 * 0.999
        assert float(steps.max()) <= 0.1 * 1.001
        assert float(steps.log().mean()) == pytest.approx(math.log(0.01), abs=0.3)  # log-uniform
        assert float(mixer.dt_proj_b.bias.abs().max()) == 0
        for states in (mixer.A_log, mixer.A_b_log):
            assert torch.equal(states, torch.arange(1.0, 17).log().expand(336, 16))
        assert torch.equal(mixer.D, torch.ones(336))
        assert torch.equal(mixer.D_b, torch.ones(336))


def test_patches_of_8_pixels_with_ten_classes():
    with torch.device("meta"):
        assert golden.parameters(build("vim", patch_size=8)) == 1_807_354


def test_drop_path_begins_at_the_third_block():
    network = build("vim-t", depth=5, drop_path=0.4)
    rates = [layer.drop_path.drop_prob for layer in network.layers]
    assert rates == pytest.approx([0, 0, 0.1, 0.2, 0.3])
    assert network.drop_path.drop_prob == 0.4


@torch.no_grad()
def test_the_residual_stays_float32_in_half_precision():
    network = golden.fill(build("vim-t", **SMALL), golden.strong)
    seen = []
    network.layers[-1].register_forward_hook(lambda _, __, out: seen.append(out[1].dtype))
    x = golden.images(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(x).isfinite().all()
    assert network.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert seen == [torch.float32, torch.float32]
