"""Comparison of folders with several seeds, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from robustcli.core.errors import UsageError
from robustcli.evaluation.record import EVALUATION, read_record
from robustcli.metrics.mask_scores import group_dice
from robustcli.reports.comparison import read_comparison
from robustcli.reports.seeds_comparison import (
    names_seeds_only,
    read_seeds_comparison,
    seeds_comparison_text,
    write_seeds_comparison,
)
from tests.reports.seeded_runs import build_seeds, build_tuned_seeds
from tests.reports.train_runs import TrainPlan


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Returns two folders: three seeds of one network, two of a better one."""
    parent = tmp_path_factory.mktemp("seeds")
    better_plan = TrainPlan(model="unet")
    return build_seeds(parent / "ulvm"), build_seeds(parent / "unet", better_plan, (0.93, 0.94))


def test_every_group_counts_with_its_mean_over_seeds(folders: tuple[Path, Path]) -> None:
    comparison = read_seeds_comparison(folders)
    (pair,) = comparison.pairs
    means = [
        np.mean([group_dice(frame) for frame in model.rows], axis=0) for model in comparison.models
    ]
    assert pair.gap.difference == pytest.approx((means[0] - means[1]).mean())
    assert (comparison.confidence, pair.gap.units) == (0.95, 8)
    assert pair.outcome == "unet ahead"
    assert "unet ahead" in seeds_comparison_text(comparison)
    (row,) = comparison.table().to_dict("records")
    assert (row["first_seeds"], row["second_seeds"], row["outcome"]) == (3, 2, "second ahead")
    assert json.loads(comparison.as_json())["pairs"][0]["difference"] == row["difference"]


def test_the_report_has_a_line_per_pair(folders: tuple[Path, Path], tmp_path: Path) -> None:
    report = write_seeds_comparison(read_seeds_comparison(folders), tmp_path / "out", "robust ...")
    assert "| `ulvm_v5` | `unet`" in report.read_text()
    assert report.with_suffix(".html").is_file()


def test_modes_over_seeds_are_compared_at_a_level_for_all_pairs(tmp_path: Path) -> None:
    run = build_tuned_seeds(tmp_path / "run")
    comparison = read_seeds_comparison([run])
    assert [model.label.split()[-1] for model in comparison.models] == ["scratch", "full", "freeze"]
    assert comparison.confidence == pytest.approx(1 - 0.05 / 3)
    modes = read_seeds_comparison([f"{run}:full", f"{run}:freeze"])
    assert [model.source for model in modes.models] == [f"{run}:full", f"{run}:freeze"]
    with pytest.raises(UsageError, match="No mode of these fine-tunings is called `half`"):
        read_seeds_comparison([f"{run}:half", f"{run}:full"])


def test_one_seed_is_an_ordinary_run_of_a_comparison(folders: tuple[Path, Path]) -> None:
    names = [f"{folders[0]}:seed-1", f"{folders[1]}:seed-0"]
    assert not names_seeds_only(names)
    assert names_seeds_only(folders)
    assert len(read_comparison(names).models) == 2
    assert not names_seeds_only([folders[0], folders[1] / "seed-0"])
    with pytest.raises(UsageError, match="contains 3 seeds") as caught:
        read_comparison([folders[0], folders[1] / "seed-0"])
    assert "ulvm:seed-0" in caught.value.todo
    with pytest.raises(UsageError, match="No seed of this run is called `seed-7`"):
        read_comparison([f"{folders[0]}:seed-7", f"{folders[1]}:seed-0"])


def test_other_images_are_refused_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other_folder = Path(shutil.copytree(folders[1], tmp_path / "other"))
    for test in other_folder.glob("seed-*/test"):
        dataset = read_record(test).dataset.model_copy(update={"digest": "ef" * 32, "images": 23})
        EVALUATION.update(test, dataset=dataset)
    with pytest.raises(UsageError, match="differ in more than their networks") as caught:
        read_seeds_comparison([folders[0], other_folder])
    assert "digest efefefef" in caught.value.why
    forced_comparison = read_seeds_comparison([folders[0], other_folder], force_common=True)
    assert len(forced_comparison.differences) == 1
    with pytest.raises(UsageError, match="only one was found"):
        read_seeds_comparison([folders[0], folders[0]])
