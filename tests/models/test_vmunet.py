"""VM-UNet against the official code."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.vmunet import PatchExpand, build
from tests.models import golden


def test_agrees_with_the_official_output():
    expected = golden.arrays("vmunet.strong.npz")
    network = golden.fill(build("vmunet"), golden.strong)
    with torch.no_grad():
        output = network(golden.images(1, 3, 256, 256))
    step = int(expected["out0_stride"])
    assert golden.distance(output[:, :, ::step, ::step], expected["out0"]) <= 1e-4


def test_names_and_shapes_are_the_official_ones():
    network = golden.published("vmunet")
    assert golden.parameters(network) == 27_427_561
    assert golden.shapes(network) == golden.layout("vmunet")


def test_one_class_gives_probabilities_and_several_give_logits():
    network = build("vmunet", dim=16, depths=(1, 1), depths_decoder=(1, 1)).eval()
    x = golden.images(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.allclose(network(x), network.vmunet(x).sigmoid())
    several = build("vmunet", dim=16, depths=(1, 1), depths_decoder=(1, 1), num_classes=9).eval()
    with torch.no_grad():
        assert torch.equal(several(x), several.vmunet(x))
        assert several(x).shape == (1, 9, 16, 24)


def test_a_grey_image_is_one_of_three_equal_channels():
    network = build("vmunet", dim=16, depths=(1, 1), depths_decoder=(1, 1)).eval()
    grey = golden.images(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))


def test_expansion_lays_the_first_channels_at_the_top_left():
    expand = PatchExpand(2, scale=2, share=2)
    with torch.no_grad():
        expand.expand.weight.copy_(torch.tensor([[1.0, 0]] * 4))
        expand.expand.weight[2:] *= -1
        expand.norm = torch.nn.Identity()
        larger = expand(torch.tensor([1.0, 5.0]).view(1, 1, 1, 2))
    assert larger.shape == (1, 2, 2, 1)
    assert larger.flatten().tolist() == [1, 1, -1, -1]


def test_drop_path_rises_to_the_bottleneck_and_falls_after_it():
    network = golden.published("vmunet").vmunet
    down = [b.drop_path.drop_prob for stage in network.layers for b in stage.blocks]
    up = [b.drop_path.drop_prob for stage in network.layers_up for b in stage.blocks]
    assert down == pytest.approx([0.2 * i / 7 for i in range(8)])
    assert up == pytest.approx([0.2 * i / 6 for i in range(6, -1, -1)])


@torch.no_grad()
def test_starts_as_upstream_starts():
    torch.manual_seed(0)
    network = build("vmunet", dim=32, depths=(1, 1), depths_decoder=(1, 1)).vmunet
    for linear in (network.layers[0].downsample.reduction, network.final_up.expand):
        assert float(linear.weight.std()) == pytest.approx(0.02, rel=0.1)
        assert float(linear.weight.abs().max()) > 0.05  # normal, not uniform


def test_an_odd_size_is_refused():
    with pytest.raises(
        UsageError, match=r"(?s)224 x 230 pixels, which the network.*multiples of 32"
    ):
        golden.published("vmunet")(golden.images(1, 3, 224, 230))
