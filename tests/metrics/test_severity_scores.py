"""Where a model breaks, and the corruption errors of ImageNet-C."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from robustcli.evaluation.cell_table import table
from robustcli.evaluation.record import read_record
from robustcli.metrics.severity_scores import (
    ALEXNET_ERROR,
    BreakingPoint,
    CorruptionError,
    benchmark_name,
    breaking_points,
    corruption_errors,
)
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model


def cells(transform: str, retention: dict[int, float | None], model: str = "a") -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": model,
            "transform": transform,
            "severity": list(retention),
            "retention": pd.Series(list(retention.values()), dtype=float),
        }
    )


def test_the_lowest_severity_below_one_half_breaks() -> None:
    table = pd.concat(
        [
            cells("identity", {0: 1.0}, model="b"),
            cells("noise", {1: 0.9, 5: 0.6}, model="b"),
            cells("blur", {0: 0.1, 1: 0.9, 3: 0.5, 4: 0.49, 5: 0.3}, model="b"),
            cells("noise", {1: 0.4, 5: 0.1}),
        ]
    )
    assert breaking_points(table) == [
        BreakingPoint("b", "noise", None, 5),
        BreakingPoint("b", "blur", 4, 5),
        BreakingPoint("a", "noise", 1, 5),
    ]


def test_one_severity_is_no_scale_and_an_unmeasured_one_does_not_count() -> None:
    table = pd.concat([cells("blur", {0: 1.0, 3: 0.2}), cells("noise", {1: 0.4, 2: None})])
    assert breaking_points(table) == []


# Corruption errors of ResNet-50 in percent as printed by Hendrycks and Dietterich (2019), table 1;
# its mCE is 76.7 and its mean top-1 on ImageNet-C 39.2.
RESNET50 = {
    "gaussian_noise": 80, "shot_noise": 82, "impulse_noise": 83, "defocus_blur": 75,
    "glass_blur": 89, "motion_blur": 78, "zoom_blur": 80, "snow": 78, "frost": 75, "fog": 66,
    "brightness": 57, "contrast": 71, "elastic_transform": 85, "pixelate": 77,
    "jpeg_compression": 77,
}  # fmt: skip


def errors_of(
    numbers: pd.DataFrame, run: Path, label_space: str | None = None
) -> list[CorruptionError]:
    record = read_record(run)
    space = label_space or record.dataset.label_space
    families = {t.name: t.family for t in record.transforms}
    return corruption_errors(numbers, label_space=space, families=families)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = (model("vmamba-b"), model("swin-b"))
    cells = (IDENTITY, *imagenet_c()[:80])  # the 15 of the benchmark and another one
    plan = RunPlan(models=models, transforms=cells, images=4, samples=False)
    return build_run(tmp_path_factory.mktemp("severities"), plan)


@pytest.fixture(scope="module")
def measured(run: Path) -> pd.DataFrame:
    return table(run)


@pytest.fixture
def numbers(measured: pd.DataFrame) -> pd.DataFrame:
    return measured.copy()


def test_the_errors_of_alexnet_are_those_of_the_authors_code() -> None:
    assert list(ALEXNET_ERROR.values()) == [
        0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572,
        0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500,
    ]  # fmt: skip
    assert list(ALEXNET_ERROR)[:4] == [
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur",
    ]  # fmt: skip
    assert list(ALEXNET_ERROR)[4:10] == [
        "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "fog",
    ]  # fmt: skip


def test_the_table_of_alexnet_turns_published_corruption_errors_into_published_accuracy() -> None:
    errors = [RESNET50[name] / 100 * alexnet for name, alexnet in ALEXNET_ERROR.items()]
    assert 100 * (1 - sum(errors) / len(errors)) == pytest.approx(39.2, abs=0.4)


def test_mce_of_resnet50_is_the_published_one(run: Path, numbers: pd.DataFrame) -> None:
    for name, error in RESNET50.items():
        top1 = 1 - error / 100 * ALEXNET_ERROR[name]
        steps = numbers["transform"] == f"c_{name}"
        numbers.loc[steps, "top1"] = top1 + 0.01 * (numbers.loc[steps, "severity"] - 3)
    first, second = errors_of(numbers, run)
    assert (first.model, second.model) == ("vmamba-b", "swin-b")
    assert (first.family, second.family) == ("imagenet-c", "imagenet-c")
    assert 100 * first.mce == pytest.approx(76.7, abs=0.4)
    assert 100 * first.by_corruption["glass_blur"] == pytest.approx(89)


def test_relative_mce_by_hand(run: Path, numbers: pd.DataFrame) -> None:
    numbers["top1"] = 0.5
    numbers.loc[numbers["transform"] == "identity", "top1"] = 0.75
    expected = sum(0.25 / (error - 0.4348) for error in ALEXNET_ERROR.values()) / 15
    assert errors_of(numbers, run)[0].relative_mce == pytest.approx(expected)


@pytest.mark.parametrize("column", ["n", "paired_n"])
def test_a_model_with_an_unfinished_cell_has_none(
    run: Path, numbers: pd.DataFrame, column: str
) -> None:
    numbers.loc[5, column] -= 1
    assert [error.model for error in errors_of(numbers, run)] == ["swin-b"]


def test_a_model_without_clean_images_has_none(run: Path, numbers: pd.DataFrame) -> None:
    clean = (numbers["transform"] == "identity") & (numbers["model"] == "vmamba-b")
    assert [error.model for error in errors_of(numbers[~clean], run)] == ["swin-b"]
    numbers.loc[numbers["model"] == "vmamba-b", ["n", "paired_n"]] = 0
    assert [error.model for error in errors_of(numbers, run)] == ["swin-b"]


def test_other_classes_and_fewer_severities_give_none(run: Path, numbers: pd.DataFrame) -> None:
    assert len(errors_of(numbers, run)) == 2
    assert errors_of(numbers, run, "cifar10") == []
    assert errors_of(numbers[numbers["severity"] < 5], run) == []


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        ("gaussian_noise", "gaussian_noise"),
        ("c_gaussian_noise", "gaussian_noise"),
        ("imagenet-c-jpeg-compression", "jpeg_compression"),
        ("c_speckle_noise", None),
        ("snowfall", None),
    ],
)
def test_a_corruption_is_known_with_or_without_a_prefix(transform: str, name: str | None) -> None:
    assert benchmark_name(transform) == name
