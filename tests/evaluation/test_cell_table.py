"""The table of a run: order, columns, and numbers compared with scikit-learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
from sklearn.metrics import accuracy_score

from robustcli.core.errors import UsageError
from robustcli.evaluation.cell_table import table
from tests.builders import IDENTITY, RunPlan, build_run, imagenet_c, model, paper21

CONTRACT = [
    *("model", "transform", "severity", "n", "correct", "top1", "top1_low", "top1_high", "top5"),
    *("clean_top1", "drop", "retention", "unchanged_share", "psnr_db"),
]
MODELS = (model("vmamba-b"), model("swin-b", view="other"))


def test_rows_are_in_the_order_of_the_run_and_columns_as_promised(tmp_path: Path) -> None:
    cells = (IDENTITY, *paper21()[:2], *imagenet_c()[:2])
    numbers = table(build_run(tmp_path, RunPlan(models=MODELS, transforms=cells)))
    assert list(numbers.columns[: len(CONTRACT)]) == CONTRACT
    expected = [(m.name, t.name, t.severity) for m in MODELS for t in cells]
    assert list(numbers[["model", "transform", "severity"]].itertuples(index=False)) == expected


def test_numbers_agree_with_scikit_learn_on_the_files_themselves(tmp_path: Path) -> None:
    build_run(tmp_path, RunPlan(models=MODELS, transforms=(IDENTITY, *paper21()[:3])))
    files = ds.dataset(tmp_path / "predictions", partitioning="hive").to_table().to_pandas()
    numbers = table(tmp_path).set_index(["model", "transform"])
    for key, rows in files.groupby(["model", "transform"]):
        assert numbers.loc[key, "n"] == len(rows) == 60
        expected = accuracy_score(rows["target"], rows["prediction"])
        assert numbers.loc[key, "top1"] == pytest.approx(expected)
    swin = numbers.loc["swin-b"]
    np.testing.assert_allclose(swin["drop"], swin.loc["identity", "top1"] - swin["top1"])
    assert not np.allclose(swin["drop"], numbers.loc["vmamba-b", "top1"].iloc[0] - swin["top1"])


def test_image_measures_are_those_of_the_models_own_view(tmp_path: Path) -> None:
    build_run(tmp_path, RunPlan(models=MODELS, transforms=(IDENTITY, paper21()[0])))
    for file in tmp_path.glob("inputs/view=other/transform=additive*/*/*.parquet"):
        frame = pd.read_parquet(file, partitioning=None).assign(psnr_db=7.0)
        frame.to_parquet(file, index=False)
    psnr = table(tmp_path).set_index(["model", "transform"])["psnr_db"]
    assert psnr["swin-b", "additive_gaussian_noise"] == 7.0
    assert psnr["vmamba-b", "additive_gaussian_noise"] != 7.0


def test_unfinished_cells_are_kept_with_the_images_they_have(tmp_path: Path) -> None:
    build_run(tmp_path, RunPlan(transforms=(IDENTITY, *paper21()[:2])))
    for file in tmp_path.glob("predictions/*/transform=affine/severity=0/block-000001.parquet"):
        file.unlink()
    for file in tmp_path.glob("predictions/*/transform=additive*/severity=0/*.parquet"):
        file.unlink()
    numbers = table(tmp_path).set_index("transform")
    assert numbers["n"].to_dict() == {"identity": 60, "additive_gaussian_noise": 0, "affine": 32}
    assert numbers.loc["affine", "paired_n"] == 32
    assert numbers.loc["additive_gaussian_noise", ["top1", "drop", "top5"]].isna().all()


def test_without_identity_there_is_no_clean_accuracy(tmp_path: Path) -> None:
    numbers = table(build_run(tmp_path, RunPlan(transforms=paper21()[:1])))
    assert numbers["top1"].notna().all()
    assert numbers[["clean_top1", "drop", "retention", "drop_low"]].isna().all(axis=None)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        table(tmp_path)
