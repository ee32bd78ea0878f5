"""Swin-UMamba against the official code.

Full networks as files of their project are in `tests/adapters/test_networks.py`.
"""

import pytest
import torch
from torch import nn

from robustcli.core.errors import UsageError
from robustcli.models import vmamba
from robustcli.models.scan import reference
from robustcli.models.swin_umamba import SwinUMambaD, build, encoder_weights
from tests.models import golden
from tests.models.golden import fast_loop

SMALL = {"depths": (1, 2, 1, 1), "dim": 16, "num_classes": 3, "deep_supervision": True}
TINY = {"depths": (1, 1), "dim": 8}
NAMES = ("swin-umamba", "swin-umamba-d")
# The official float32 outputs differ by up to 3e-5 from the same computation in float64.
CASES = (("swin-umamba", "swin_umamba_small", 3), ("swin-umamba-d", "swin_umamba_d_small", 1))
both = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(params=CASES, ids=NAMES)
def small(request):
    """A small network filled by rule, an image for it, and the stored results."""
    name, stored, channels = request.param
    network = golden.fill(build(name, **SMALL, in_channels=channels), golden.strong)
    expected = golden.arrays(f"{stored}.strong.npz")
    return network, golden.images(1, channels, 64, 96), expected


def test_agrees_with_the_official_outputs_at_every_resolution(small):
    network, x, expected = small
    with torch.no_grad():
        outputs = network(x)
    assert [list(o.shape) for o in outputs] == [list(expected[f"out{i}_shape"]) for i in range(4)]
    for i, output in enumerate(outputs):
        step = int(expected[f"out{i}_stride"])
        assert golden.distance(output[:, :, ::step, ::step], expected[f"out{i}"]) <= 1e-4


def test_agrees_with_the_official_gradients(small, monkeypatch):
    """The norm of every parameter's gradient, in float64."""
    monkeypatch.setattr(reference, "_loop", fast_loop)
    network, x, expected = small
    sum(output.square().mean() for output in network.double()(x.double())).backward()
    norms = {key: float(p.grad.norm()) for key, p in network.named_parameters()}
    official = dict(zip(expected["grad_names"], expected["grad_norms"], strict=True))
    assert norms.keys() == official.keys()
    # Both are float64; sums in another order move them by rounding only.
    assert norms == pytest.approx(official, rel=1e-6, abs=1e-9 * max(official.values()))


@both
def test_names_and_shapes_are_the_official_ones(name):
    assert golden.shapes(golden.published(name)) == golden.layout(name.replace("-", "_"))


# Counted on the official classes, with the channels and classes of the paper's data sets:
# AbdomenMRI, Endoscopy, Microscopy.
@pytest.mark.parametrize(
    ("channels", "classes", "conv", "mamba"),
    [
        (1, 14, 59_889_368, 27_497_720),
        (3, 8, 59_890_688, 27_496_160),
        (3, 3, 59_887_068, 27_492_300),
    ],
)
def test_sizes_are_those_that_the_paper_prints(channels, classes, conv, mamba):
    with torch.device("meta"):
        networks = [build(n, in_channels=channels, num_classes=classes) for n in NAMES]
    assert [golden.parameters(network) for network in networks] == [conv, mamba]
    assert [round(count / 1e6, 1) for count in (conv, mamba)] == [59.9, 27.5]


@both
def test_drop_path_rises_in_the_encoder_and_falls_in_the_decoder(name):
    network = golden.published(name)
    rates = [m.drop_prob for m in network.vssm_encoder.modules() if hasattr(m, "drop_prob")]
    assert rates == pytest.approx([0.2 * i / 14 for i in range(15)])
    if isinstance(network, SwinUMambaD):
        rates = [m.drop_prob for m in network.decoder.modules() if hasattr(m, "drop_prob")]
        assert rates == pytest.approx([0.2 * i / 5 for i in range(5, -1, -1)])


@both
def test_the_encoder_starts_as_vmamba_does_and_the_decoder_as_upstream(name):
    torch.manual_seed(0)
    network = build(name, dim=32, depths=(1, 1))
    projection = network.vssm_encoder.layers[0].blocks[0].self_attention.in_proj
    assert float(projection.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    if isinstance(network, SwinUMambaD):
        assert all(bool((m.bias == 0).all()) for m in convolutions)
        merge = network.decoder.concat_back_dim[0]  # as torch initialises it
        assert float(merge.weight.detach().abs().max()) == pytest.approx(64**-0.5, rel=0.01)
    else:
        assert all(bool((m.bias != 0).any()) for m in convolutions if m.bias is not None)


@both
def test_outputs_of_lower_resolution_are_given_on_request(name):
    network = golden.fill(build(name, **TINY), golden.strong)
    x = golden.images(1, 3, 16, 24)
    with torch.no_grad():
        alone = network(x)
        network.supervise_deeply()
        first, *others = network(x)
    assert torch.equal(first, alone)
    assert alone.shape == (1, 2, 16, 24)
    assert [tuple(o.shape[2:]) for o in others] == [(8, 12) if name == "swin-umamba" else (4, 6)]


@torch.no_grad()
def test_the_encoder_computes_what_its_classifier_computes():
    classifier = golden.fill(vmamba.build("vmamba-t-v0", depths=(1, 2), dim=8), golden.strong)
    network = build("swin-umamba-d", depths=(1, 2), dim=8).eval()
    weights = encoder_weights(network, classifier.state_dict())
    network.vssm_encoder.load_state_dict(weights)
    x = golden.images(1, 3, 16, 24)
    assert torch.equal(network.vssm_encoder(x)[-1], classifier.forward_features(x))


def test_the_patch_embedding_is_taken_over_where_upstream_does():
    state = vmamba.build("vmamba-t-v0", **TINY).state_dict()

    def taken(name, **options):
        weights = encoder_weights(build(name, **TINY, **options), state)
        return {key for key in weights if key.startswith("patch_embed.")}

    whole = {
        f"patch_embed.{part}.{kind}" for part in ("proj", "norm") for kind in ("weight", "bias")
    }
    assert taken("swin-umamba-d") == whole
    assert taken("swin-umamba-d", in_channels=1) == set()
    assert taken("swin-umamba") == {"patch_embed.norm.bias"}


def test_what_cannot_be_built_or_taken_is_refused():
    with pytest.raises(UsageError, match=r"(?s)48 x 72 pixels, which the network.*of 32"):
        build("swin-umamba-d", depths=(1, 1, 1, 1), dim=8)(golden.images(1, 3, 48, 72))
    with pytest.raises(UsageError, match=r"`decoder=cnn` is unknown.*\n.*`conv`"):
        build("swin-umamba", decoder="cnn")
    with pytest.raises(UsageError, match=r"`depths=\[2\]` with `dim=96`.*\n.*two stages"):
        build("swin-umamba", depths=[2])
