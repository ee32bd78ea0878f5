"""U-Mamba: its configuration from a plan, its network and the keys of official files."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from robustcli.core.errors import UsageError
from robustcli.models import umamba
from robustcli.models.umamba import (
    MambaLayer,
    UMambaConfig,
    build,
    canonical_key,
    plan_options,
    with_aliases,
    without_aliases,
)
from tests.models import golden

PLAN = {
    "batch_size": 12,
    "patch_size": [384, 640],
    "conv_kernel_sizes": [[3, 3]] * 7,
    "pool_op_kernel_sizes": [[1, 1], *[[2, 2]] * 6],
    "n_conv_per_stage_encoder": [2] * 7,
    "n_conv_per_stage_decoder": [2] * 6,
    "UNet_base_num_features": 32,
    "unet_max_num_features": 512,
}


@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [(8, (2, 2, 2, 2, 1, 1, 1, 1), (2, 2, 2, 2, 1, 1, 1)), (5, (2, 2, 2, 1, 1), (2, 2, 2, 1))],
)
def test_the_deeper_half_has_one_block(stages, encoder, decoder):
    config = UMambaConfig(
        mamba="encoder", features=(8,) * stages, strides=(1, *(2,) * (stages - 1))
    )
    assert config.encoder_blocks == encoder
    assert config.decoder_blocks == decoder


@pytest.mark.parametrize(
    ("patch", "stages", "tokens"),
    [
        (512, 8, {1: (64, False), 3: (256, False), 5: (256, True), 7: (16, True)}),
        (320, 7, {0: (32, False), 2: (128, False), 4: (400, True), 6: (25, True)}),
        ((384, 640), 7, {0: (32, False), 2: (128, False), 4: (512, False), 6: (60, True)}),
        (256, 5, {0: (32, False), 2: (128, False), 4: (256, True)}),
    ],
)
def test_tokens_are_channels_where_the_map_has_no_more_pixels_than_features(patch, stages, tokens):
    config = UMambaConfig(
        mamba="encoder",
        features=tuple(min(32 * 2**s, 512) for s in range(stages)),
        strides=(1, *(2,) * (stages - 1)),
        patch_size=patch,
    )
    assert {stage: config.tokens(stage) for stage in tokens} == tokens


def test_as_many_pixels_as_features_make_channels_the_tokens_but_of_the_bottleneck():
    options = {"features": (4, 8, 16), "strides": (1, 2, 2)}
    assert UMambaConfig(mamba="encoder", patch_size=16, **options).tokens(2) == (16, True)
    assert UMambaConfig(mamba="encoder", patch_size=(16, 20), **options).tokens(2) == (16, False)
    assert UMambaConfig(mamba="bottleneck").tokens(4) == (512, False)


def test_a_plan_gives_the_published_network():
    with torch.device("meta"):
        network = build("umamba-enc", num_classes=3, **plan_options(PLAN))
    assert golden.parameters(network) == 47_673_042


def test_incomplete_plans_and_those_of_three_dimensions_are_refused():
    plan = {key: value for key, value in PLAN.items() if key != "patch_size"}
    with pytest.raises(UsageError, match=r"(?s)incomplete.*lacks `patch_size`.*`plans.json`"):
        plan_options(plan)
    with pytest.raises(UsageError, match=r"(?s)has 3 dimensions.*`2d`"):
        plan_options({**PLAN, "patch_size": [16, 64, 64]})


@pytest.mark.parametrize(
    ("name", "length"), [("strides", 5), ("kernels", 5), ("n_conv", 5), ("n_conv_decoder", 4)]
)
def test_options_of_another_length_are_refused(name, length):
    with pytest.raises(UsageError, match=rf"(?s)`{name}` has 2 entries.*{length} are expected"):
        UMambaConfig(mamba="encoder", **{name: (1, 2)})


OFFICIAL = [("UMambaBot_2d", "umamba"), ("UMambaEnc_2d", "umamba-enc")]


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_writes_every_official_name_of_the_plans_network(name, variant):
    full = with_aliases(golden.published(variant).state_dict())
    assert {key: tuple(tensor.shape) for key, tensor in full.items()} == golden.layout(name)


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_each_official_alias_is_the_tensor_that_upstream_says(name, variant):
    aliases = golden.facts(f"{name}.meta.json")["aliases"]
    assert {key: canonical_key(key) for key in aliases} == aliases


@pytest.mark.parametrize("variant", ["umambabot", "umambabot_pp"])
def test_writes_every_name_of_the_papers_network(variant):
    aliases = golden.facts(f"{variant}.aliases.json")
    unique = golden.published(variant).state_dict()
    assert set(with_aliases(unique)) == set(unique) | set(aliases)
    assert {key: canonical_key(key) for key in aliases} == aliases


def test_either_copy_alone_is_accepted():
    network = umamba.build("umamba", features=[4, 8, 16], strides=[1, 2, 2])
    state = network.state_dict()
    full = with_aliases(state)
    first = {k: v for k, v in full.items() if "all_modules" not in k and "decoder.enc" not in k}
    second = {k: v for k, v in full.items() if k not in state}
    second |= {k: v for k, v in state.items() if k not in set(map(canonical_key, second))}
    for copies in (full, first, second):
        again = without_aliases(copies)
        assert again.keys() == state.keys()
        assert all(again[key] is state[key] for key in state)


def test_copies_need_not_share_memory_but_must_not_differ():
    state = {"encoder.stem.0.conv1.weight": torch.ones(2)}
    full = {key: tensor.clone() for key, tensor in with_aliases(state).items()}
    assert len(full) == 2
    assert list(without_aliases(full)) == list(state)
    state = {"conv1.conv.weight": torch.ones(2), "conv1.all_modules.0.weight": torch.zeros(2)}
    with pytest.raises(UsageError, match=r"(?s)two versions of `conv1.conv.weight`.*all_modules"):
        without_aliases(state)


def test_norms_outside_the_blocks_have_one_name():
    for key in ("mamba_layer.norm.weight", "encoder.mamba_layers.0.norm.bias"):
        assert "all_modules" not in " ".join(with_aliases({key: torch.zeros(1)}))
    assert list(with_aliases({"decoder.upsample_layers.0.conv.weight": torch.zeros(1)})) == [
        "decoder.upsample_layers.0.conv.weight"
    ]


SMALL = {"features": (4, 8, 16), "strides": (1, 2, 2), "patch_size": 32}
# Source: the specification's table of plans; counts taken on the official modules.
WIDE = (32, 64, 128, 256, 512, 512, 512, 512)
PLANS = [
    (512, 8, 64_797_301, 64_014_261),
    (320, 7, 47_517_042, 46_999_568),
    ((384, 640), 7, 47_517_042, 47_673_042),
    (256, 7, 47_517_042, 46_389_682),
    (256, 5, 11_258_092, 10_127_340),
]


@pytest.mark.parametrize(
    ("name", "variant", "tolerance"),
    [("UMambaBot_2d", "umamba", 1e-4), ("UMambaEnc_2d", "umamba-enc", 1e-3)],
)
def test_agrees_with_the_official_outputs_at_every_depth(name, variant, tolerance):
    expected = golden.arrays(f"{name}.strong.npz")
    network = golden.fill(build(variant, deep_supervision=True), golden.strong)
    with torch.no_grad():
        outputs = network(golden.images(1, 3, 256, 256))
    assert len(outputs) == 4
    for i, output in enumerate(outputs):
        step = int(expected[f"out{i}_stride"])
        assert golden.distance(output[:, :, ::step, ::step], expected[f"out{i}"]) <= tolerance


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_each_tensor_has_its_first_official_name(name, variant):
    layout = {k: shape for k, shape in golden.layout(name).items() if canonical_key(k) == k}
    assert list(golden.shapes(golden.published(variant)).items()) == list(layout.items())


@pytest.mark.parametrize(("patch", "stages", "bottleneck", "encoder"), PLANS)
def test_has_as_many_parameters_as_the_official_network_of_each_plan(
    patch, stages, bottleneck, encoder
):
    options = {"features": WIDE[:stages], "strides": (1, *(2,) * (stages - 1)), "num_classes": 3}
    with torch.device("meta"):
        counts = [
            golden.parameters(build(variant, patch_size=patch, **options))
            for variant in ("umamba", "umamba-enc")
        ]
    assert counts == [bottleneck, encoder]


def test_without_deep_supervision_only_the_largest_output_comes():
    network = golden.fill(build("umamba", deep_supervision=True, **SMALL), golden.strong)
    x = golden.images(2, 3, 32, 32)
    with torch.no_grad():
        outputs = network(x)
        network.decoder.deep_supervision = False
        assert [tuple(o.shape) for o in outputs] == [(2, 2, 32, 32), (2, 2, 16, 16)]
        assert torch.equal(network(x), outputs[0])


def test_the_last_decoder_stage_takes_no_skip():
    network = golden.fill(build("umamba", **SMALL), golden.strong)
    x = golden.images(1, 3, 32, 32)
    with torch.no_grad():
        before = network(x)
        maps = network.encoder(x)
        maps[0] = torch.full_like(maps[0], 9.0)
        maps[-1] = network.mamba_layer(maps[-1])
        assert torch.equal(network.decoder(maps), before)


def test_a_mamba_layer_replaces_the_map_pixel_by_pixel_in_row_order():
    torch.manual_seed(0)
    layer, x = MambaLayer(6), torch.randn(2, 6, 3, 5)
    tokens = x.permute(0, 2, 3, 1).reshape(2, 15, 6)
    expected = layer.mamba(F.layer_norm(tokens, (6,)))
    assert torch.allclose(layer(x).permute(0, 2, 3, 1).reshape(2, 15, 6), expected, atol=1e-6)
    # A channels-last one crashes torch 2.15.0 in the strided 1x1 convolution that follows.
    assert layer(x).is_contiguous()


def test_channels_are_the_tokens_where_the_map_is_small():
    torch.manual_seed(0)
    layer, x = MambaLayer(15, channelwise=True), torch.randn(2, 6, 3, 5)
    expected = layer.mamba(F.layer_norm(x.reshape(2, 6, 15), (15,)))
    assert torch.allclose(layer(x).reshape(2, 6, 15), expected, atol=1e-6)


def test_every_second_stage_has_a_layer_and_the_last_always():
    for stages, places in ((8, [1, 3, 5, 7]), (7, [0, 2, 4, 6]), (5, [0, 2, 4])):
        with torch.device("meta"):
            network = build("umamba-enc", features=(8,) * stages, strides=(1, *(2,) * (stages - 1)))
        layers = network.encoder.mamba_layers
        assert [i for i, m in enumerate(layers) if isinstance(m, MambaLayer)] == places


def test_the_encoder_variant_takes_its_plans_patch_only():
    network = build("umamba-enc", **{**SMALL, "patch_size": 16}).eval()
    assert network(golden.images(1, 3, 16, 16)).shape == (1, 2, 16, 16)
    with pytest.raises(UsageError, match=r"(?s)16 x 32 pixels; this UMambaEnc needs 16 x 16"):
        network(golden.images(1, 3, 16, 32))


def test_where_every_token_is_a_pixel_any_multiple_is_taken():
    for variant in ("umamba-enc", "umamba"):
        network = build(variant, **SMALL).eval()
        assert network(golden.images(1, 3, 64, 32)).shape == (1, 2, 64, 32)
    with pytest.raises(UsageError, match=r"(?s)30 x 32 pixels, which the network.*multiples of 4"):
        network(golden.images(1, 3, 30, 32))


def test_strides_and_kernels_may_differ_by_axis():
    network = build(
        "umamba", features=(4, 8, 8), strides=(1, (2, 1), (2, 2)), kernels=((1, 3), 3, 3)
    )
    assert network.eval()(golden.images(1, 3, 16, 16)).shape == (1, 2, 16, 16)
    assert network.encoder.stages[0][0].conv1.weight.shape == (4, 4, 1, 3)


@torch.no_grad()
def test_starts_as_upstream_starts():
    torch.manual_seed(0)
    network = build("umamba")
    weight = network.encoder.stages[3][0].conv1.weight  # fan-in 128 * 9
    gain = math.sqrt(2 / (1 + 0.01**2))
    assert float(weight.std()) == pytest.approx(gain / math.sqrt(128 * 9), rel=0.02)
    assert float(network.encoder.stages[3][0].conv1.bias.abs().max()) == 0
    mixer = network.mamba_layer.mamba
    assert float(F.softplus(mixer.dt_proj.bias).max()) <= 0.1 * 1.001


def test_mamba_runs_in_float32_under_autocast():
    network = build("umamba", **SMALL).eval()
    seen = []
    network.mamba_layer.mamba.register_forward_hook(lambda _, x, y: seen.extend((x[0], y)))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        network(golden.images(1, 3, 32, 32))
    assert [tensor.dtype for tensor in seen] == [torch.float32, torch.float32]
