"""The names of normalisations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustcli.core.errors import UsageError
from robustcli.nnunet.normalisation import SCHEMES, Channel, Intensities
from robustcli.nnunet.plan import NnUNetPlan, read_plan, scheme_of_channel, scheme_of_class
from tests.adapters.nnunet_files import PLAN


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
            r"(?s)are the wrong way round\..*nnU-Net 1 did.*`\"labels\": \{\"background\": 0, "
            r"\"tumour\": 1\}`",
        ),
        (
            settings(),
            {"labels": {"background": "0", "tumour": "1"}},
            r"(?s)are no names with numbers\..*`background` is '0'.*\"tumour\": 1\}`",
        ),
        (settings(), {"labels": {"background": 0, "a": None}}, r"`a` is None, which is no number"),
        (settings(), {"labels": {}}, r"`dataset\.json` has no `labels`"),
        (settings(), {"channel_names": {"0": "R"}}, r"(?s)do not belong together.*3 cha.*has 1"),
        (settings(patch_size=[8, 8, 8]), {}, r"(?s)patch has 3 dimensions.*`2d`"),
        (
            settings(pool_op_kernel_sizes=7),
            {},
            r"is not what nnU-Net writes\.\nReading its configuration `2d`: TypeErr",
        ),
        (
            settings(batch_size="many"),
            {},
            r"`plans\.json` or `dataset\.json` is not what.*\n.*Value",
        ),
        (settings(use_mask_for_norm=None), {}, "is not what nnU-Net writes"),
        (settings(), {"channel_names": {"red": "R"}}, "is not what nnU-Net writes"),
        ({"patch_size": [8, 8]}, {}, r"(?s)not complete.*`conv_kernel_sizes`"),
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
    with pytest.raises(UsageError, match=r"plans\.json` is not what nnU-Net writes"):
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
    assert set(found) == set(SCHEMES)


def test_an_unknown_class() -> None:
    with pytest.raises(UsageError, match="No normalisation is called `MyNormalization`"):
        scheme_of_class("MyNormalization")
