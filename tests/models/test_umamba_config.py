"""What follows from an nnU-Net plan."""

import pytest
import torch

from robustcli.core.errors import UsageError
from robustcli.models.umamba import build
from robustcli.models.umamba_config import UMambaConfig, plan_options
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
    [
        (8, (2, 2, 2, 2, 1, 1, 1, 1), (2, 2, 2, 2, 1, 1, 1)),
        (7, (2, 2, 2, 2, 1, 1, 1), (2, 2, 2, 2, 1, 1)),
        (5, (2, 2, 2, 1, 1), (2, 2, 2, 1)),
    ],
)
def test_the_deeper_half_has_one_block(stages, encoder, decoder):
    config = UMambaConfig("encoder", features=(8,) * stages, strides=(1, *(2,) * (stages - 1)))
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
        "encoder",
        features=tuple(min(32 * 2**s, 512) for s in range(stages)),
        strides=(1, *(2,) * (stages - 1)),
        patch_size=patch,
    )
    assert {stage: config.tokens(stage) for stage in tokens} == tokens


def test_as_many_pixels_as_features_make_channels_the_tokens():
    options = {"features": (4, 8, 16), "strides": (1, 2, 2)}
    assert UMambaConfig("encoder", patch_size=16, **options).tokens(2) == (16, True)
    assert UMambaConfig("encoder", patch_size=(16, 20), **options).tokens(2) == (16, False)


def test_the_bottleneck_variant_never_reads_channels_as_tokens():
    assert UMambaConfig("bottleneck").tokens(4) == (512, False)


def test_a_plan_gives_the_published_network():
    with torch.device("meta"):
        network = build("umamba-enc", num_classes=3, **plan_options(PLAN))
    assert golden.parameters(network) == 47_673_042


def test_an_incomplete_plan_is_refused():
    plan = {key: value for key, value in PLAN.items() if key != "patch_size"}
    with pytest.raises(UsageError, match=r"(?s)not complete.*lacks `patch_size`.*`plans.json`"):
        plan_options(plan)


def test_a_plan_of_three_dimensions_is_refused():
    with pytest.raises(UsageError, match=r"(?s)has 3 dimensions.*`2d`"):
        plan_options({**PLAN, "patch_size": [16, 64, 64]})


@pytest.mark.parametrize("name", ["strides", "kernels", "n_conv"])
def test_options_of_another_length_are_refused(name):
    with pytest.raises(UsageError, match=rf"(?s)`{name}` has 2 entries.*5 are expected"):
        UMambaConfig("encoder", **{name: (1, 2)})


def test_decoder_blocks_are_one_less():
    with pytest.raises(UsageError, match=r"(?s)`n_conv_decoder` has 5 entries.*4 are expected"):
        UMambaConfig("encoder", n_conv_decoder=(2,) * 5)
