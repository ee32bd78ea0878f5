"""Patches, stages and batches as nnU-Net's planner finds them."""

from __future__ import annotations

import json

import pytest

from robustcli.core.errors import UsageError
from robustcli.models.umamba import build
from robustcli.nnunet.planner import batch_size, fitted, make_plan, topology
from tests.models import golden


def test_the_plan_of_the_specifications_photos() -> None:
    """512 x 512 RGB: 8 stages up to 512 features, and as many parameters as the official net."""
    plan = make_plan((512, 512), ("R", "G", "B"), images=10**4, labels=("a", "b"))
    assert (plan.patch, plan.batch_size, plan.labels) == ((512, 512), 12, ("background", "a", "b"))
    assert plan.options["features"] == (32, 64, 128, 256, 512, 512, 512, 512)
    network = build("umamba", **plan.options, num_classes=3)
    assert golden.parameters(network) == 64_797_301


def test_channels_decide_the_normalisation() -> None:
    plan = make_plan((64, 64), ("MR", "CT", "rgb_to_0_1", "noNorm"), images=9)
    assert [channel.scheme for channel in plan.channels] == ["zscore", "ct", "rgb_to_0_1", "none"]
    assert plan.labels == ("background", "foreground")


def test_both_files_are_json_and_hold_what_nnunet_asks_for() -> None:
    plan = make_plan((100, 80), ("R", "G", "B"), images=9, name="Dataset001_Roads")
    assert json.loads(json.dumps(plan.plans)) == plan.plans
    assert json.loads(json.dumps(plan.dataset)) == plan.dataset
    asked = {"batch_size", "patch_size", "spacing", "preprocessor_name", "batch_dice",
             "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
             "resampling_fn_seg_kwargs", "resampling_fn_probabilities", "data_identifier",
             "UNet_class_name", "num_pool_per_axis", "median_image_size_in_voxels"}  # fmt: skip
    assert asked <= set(plan.settings)
    assert plan.dataset["labels"] == {"background": 0, "foreground": 1}
    assert {"dataset_name", "image_reader_writer", "transpose_forward"} <= set(plan.plans)


def test_patch_batch_and_width_can_be_limited() -> None:
    plan = make_plan((500, 500), "RGB", images=500, most_patch=128, most_batch=4, features=(8, 64))
    assert (plan.patch, plan.batch_size) == ((128, 128), 4)
    assert plan.options["features"] == (8, 16, 32, 64, 64, 64)


@pytest.mark.parametrize(
    ("shape", "images", "limit", "message"),
    [
        ((7, 7), 9, None, r"(?s)Patches of 7 x 7 pixels are too small.*8 pixels along both"),
        ((64, 64), 9, 4, "Patches of 4 x 4 pixels are too small"),
        ((64, 64), 0, None, r"nothing to plan for\.\nCame 0 images of 64 x 64"),
    ],
)
def test_what_cannot_be_planned(
    shape: tuple[int, int], images: int, limit: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(shape, "RGB", images=images, most_patch=limit)


FEATURES = (32, 512)


# Source: the specification's table of plans simulated with nnU-Net's own planner. The batch depends
# a little on the number of classes, which the table does not give: the abdomen's 14 for 320 x 320.
@pytest.mark.parametrize(
    ("shape", "classes", "patch", "batch", "stages"),
    [
        ((512, 512), 3, (512, 512), 12, 8),
        ((320, 320), 14, (320, 320), 30, 7),
        ((540, 960), 8, (384, 640), 13, 7),
        ((256, 256), 3, (256, 256), 49, 7),
        ((128, 128), 3, (128, 128), 198, 6),
    ],
)
def test_agrees_with_nnunets_planner(
    shape: tuple[int, int], classes: int, patch: tuple[int, int], batch: int, stages: int
) -> None:
    found = fitted(shape, shape, classes=classes, features=FEATURES)
    assert found.patch == patch
    assert len(found.strides) == stages
    assert batch_size(found, shape, 10**6, classes=classes, features=FEATURES) == batch


def test_a_batch_is_at_most_a_twentieth_of_all_pixels_and_at_least_two() -> None:
    found = fitted((128, 128), (128, 128), classes=2, features=FEATURES)
    sizes = [
        batch_size(found, (128, 128), images, classes=2, features=FEATURES)
        for images in (500, 100, 10)
    ]
    assert sizes == [25, 5, 2]  # 25 is the table's, of 500 images


@pytest.mark.parametrize(
    ("size", "patch", "strides"),
    [
        ((8, 8), (8, 8), [(1, 1), (2, 2)]),
        ((7, 7), (7, 7), [(1, 1)]),
        ((9, 8), (10, 8), [(1, 1), (2, 2)]),
        ((7, 11), (7, 11), [(1, 1)]),  # one axis alone needs 12
        ((7, 12), (7, 12), [(1, 1), (1, 2)]),
        ((24, 12), (24, 12), [(1, 1), (2, 2), (2, 1)]),
        ((16, 64), (16, 64), [(1, 1), (2, 2), (2, 2), (1, 2)]),
        ((500, 500), (512, 512), [(1, 1)] + [(2, 2)] * 6 + [(2, 2)]),
    ],
)
def test_edges_are_halved_down_to_four(
    size: tuple[int, int], patch: tuple[int, int], strides: list[tuple[int, int]]
) -> None:
    found = topology(size)
    assert (found.patch, list(found.strides)) == (patch, strides)
    assert found.patch[0] % found.steps[0] == found.patch[1] % found.steps[1] == 0
