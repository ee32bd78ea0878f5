"""nnU-Net's plans: read from a file, and made by its rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from robustcli.core.errors import UsageError
from robustcli.models.umamba import build
from robustcli.nnunet.normalisation import Channel, Intensities, Scheme
from robustcli.nnunet.plans_json import (
    NnUNetPlan,
    batch_size,
    fitted,
    make_plan,
    read_plan,
    scheme_of_channel,
    scheme_of_class,
    topology,
)
from tests.models import golden
from tests.nnunet.nnunet_files import PLAN


def settings(**changes: Any) -> dict[str, Any]:
    return {**PLAN.settings, **changes}


def plan(configuration: dict[str, Any], **dataset: Any) -> NnUNetPlan:
    plans = {**PLAN.plans, "configurations": {"2d": configuration}}
    return NnUNetPlan(plans, {**PLAN.dataset, **dataset})


def test_a_configuration_inherits_from_another() -> None:
    configurations = {"2d": settings(), "2d_bs7": {"inherits_from": "2d", "batch_size": 7}}
    found = NnUNetPlan({"configurations": configurations}, PLAN.dataset, "2d_bs7")
    assert (found.batch_size, found.patch) == (7, PLAN.patch)
    assert found.name == "nnUNetPlans"


def test_an_inheritance_in_a_circle_ends() -> None:
    configurations = {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}
    with pytest.raises(UsageError, match="No configuration of the plan is called `a`"):
        NnUNetPlan({"configurations": configurations}, PLAN.dataset, "a")


def test_channels_of_old_and_new_files_in_numeric_order() -> None:
    names = {str(n): f"c{n}" for n in (10, 2, 1, 0, 3, 4, 5, 6, 7, 8, 9)}
    eleven = settings(
        normalization_schemes=["CTNormalization"] * 11, use_mask_for_norm=[False] * 11
    )
    found = plan(eleven, channel_names=names)
    assert found.channel_names == tuple(f"c{n}" for n in range(11))
    old = {key: value for key, value in PLAN.dataset.items() if key != "channel_names"}
    one = settings(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[True])
    plans = {"configurations": {"2d": one}}
    old_plan = NnUNetPlan(plans, {**old, "modality": {"0": "MRI"}})
    assert old_plan.channel_names == ("MRI",)
    assert old_plan.channels == (Channel("zscore", inside_only=True),)


def test_intensities_of_ct() -> None:
    numbers = {"mean": 1, "std": 2, "percentile_00_5": 3, "percentile_99_5": 4, "max": 9}
    ct = settings(normalization_schemes=["CTNormalization"], use_mask_for_norm=[False])
    plans = {
        "configurations": {"2d": ct},
        "foreground_intensity_properties_per_channel": {"0": numbers},
    }
    found = NnUNetPlan(plans, {**PLAN.dataset, "channel_names": {"0": "CT"}})
    assert found.channels == (Channel("ct", False, Intensities(1, 2, 3, 4)),)


def test_labels_in_the_order_of_their_values_without_the_ignored() -> None:
    found = plan(settings(), labels={"b": 2, "background": 0, "ignore": 3, "a": 1})
    assert (found.labels, found.ignore_label) == (("background", "a", "b"), 3)
    assert PLAN.ignore_label is None


@pytest.mark.parametrize(
    ("configuration", "dataset", "message"),
    [
        (settings(), {"labels": {"background": 0, "whole": [1, 2]}}, "The labels .* are regions"),
        (
            settings(),
            {"labels": {"0": "background", "1": "tumour"}},
            r"(?s)are in reverse order\..*nnU-Net 1\..*`\"labels\": \{\"background\": 0, "
            r"\"tumour\": 1\}`",
        ),
        (
            settings(),
            {"labels": {"background": "0", "tumour": "1"}},
            r"(?s)are not a mapping of names to numbers\..*`background` is '0'.*\"tumour\": 1\}`",
        ),
        (
            settings(),
            {"labels": {"background": 0, "a": None}},
            r"`a` is None, which is not a number",
        ),
        (settings(), {"labels": {}}, r"`dataset\.json` has no `labels`"),
        (
            settings(),
            {"channel_names": {"0": "R"}},
            r"(?s)belong to different trainings.*3 cha.*has 1",
        ),
        (settings(patch_size=[8, 8, 8]), {}, r"(?s)patch has 3 dimensions.*`2d`"),
        (
            settings(pool_op_kernel_sizes=7),
            {},
            r"does not have the format of nnU-Net\.\nReading its configuration `2d`: TypeErr",
        ),
        (
            settings(batch_size="many"),
            {},
            r"`plans\.json` or `dataset\.json` does not have the format.*\n.*Value",
        ),
        (settings(use_mask_for_norm=None), {}, "does not have the format of nnU-Net"),
        (settings(), {"channel_names": {"red": "R"}}, "does not have the format of nnU-Net"),
        ({"patch_size": [8, 8]}, {}, r"(?s)is incomplete.*`conv_kernel_sizes`"),
        (settings(normalization_schemes=["X"] * 3), {}, "No normalisation is called `X`"),
    ],
)
def test_what_cannot_be_used_says_so(
    configuration: dict[str, Any], dataset: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        plan(configuration, **dataset)


def test_a_configuration_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="No configuration of the plan is called `3d_fullres`"):
        NnUNetPlan(PLAN.plans, PLAN.dataset, "3d_fullres")


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plans\.json` cannot be read"):
        read_plan(tmp_path, "2d")
    (tmp_path / "plans.json").write_text("{")
    with pytest.raises(UsageError, match=r"plans\.json` cannot be read"):
        read_plan(tmp_path, "2d")
    (tmp_path / "plans.json").write_text("[]")
    with pytest.raises(UsageError, match=r"plans\.json` does not have the format of nnU-Net"):
        read_plan(tmp_path, "2d")
    (tmp_path / "plans.json").write_text(json.dumps(PLAN.plans))
    (tmp_path / "dataset.json").write_text(json.dumps(PLAN.dataset))
    assert read_plan(tmp_path, "2d") == PLAN


def test_the_names_that_plans_and_data_sets_use() -> None:
    classes = ["ZScore", "CT", "RescaleTo01", "RGBTo01", "No"]
    found = [scheme_of_class(f"{name}Normalization") for name in classes]
    assert found == ["zscore", "ct", "rescale_0_1", "rgb_to_0_1", "none"]
    names = ["R", "MR", "T2w", "CT", "noNorm", "rgb_to_0_1", "rescale_to_0_1", "zscore"]
    assert [scheme_of_channel(name) for name in names] == [
        *("zscore", "zscore", "zscore", "ct", "none", "rgb_to_0_1", "rescale_0_1", "zscore")
    ]
    assert set(found) == set(get_args(Scheme))


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


def test_the_width_can_be_limited() -> None:
    plan = make_plan((128, 128), "RGB", images=500, features=(8, 64))
    assert plan.options["features"] == (8, 16, 32, 64, 64, 64)


@pytest.mark.parametrize(
    ("shape", "images", "message"),
    [
        ((7, 7), 9, r"(?s)Patches of 7 x 7 pixels are too small.*8 pixels along both"),
        ((64, 64), 0, r"A plan cannot be made for these images\.\nGot 0 images of 64 x 64"),
    ],
)
def test_what_cannot_be_planned(shape: tuple[int, int], images: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_plan(shape, "RGB", images=images)


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
