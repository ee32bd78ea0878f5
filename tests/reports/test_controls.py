"""Mamba networks and their controls: pairs of trainings, and the numbers of a pair."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from robustcli.metrics.verdicts import holm
from robustcli.reports.comparison import comparison_page, comparison_text, read_comparison
from robustcli.reports.controls import control_pairs, median_step_seconds
from robustcli.reports.training_findings import TrainingFindings, read_training
from robustcli.reports.training_page import training_results
from robustcli.reports.zoo_findings import Zoo
from robustcli.reports.zoo_page import zoo_text
from robustcli.training.record import TRAINING
from tests.reports.mask_runs import UNUSUAL_MASKS
from tests.reports.page_parts import line_of
from tests.reports.train_runs import TrainPlan, build_class_training, build_training

SCANLESS = {"arguments": {"ablate": "scan"}}


def build_findings(
    folder: Path, name: str, base: float = 0.85, **changes: object
) -> TrainingFindings:
    plan = TrainPlan(base=base, **changes)
    return read_training(build_training(folder / name, plan))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingFindings]:
    folder = tmp_path_factory.mktemp("pair")
    control = {"parameters": 685_389, "record": SCANLESS}
    return [build_findings(folder, "scan"), build_findings(folder, "no-scan", 0.8, **control)]


def dice_by_group(rows: pd.DataFrame) -> pd.Series:
    sums = rows.groupby("group")[["tp", "fp", "fn"]].sum()
    return 2 * sums.tp / (2 * sums.tp + sums.fp + sums.fn)


def test_difference_and_p_are_those_of_the_groups(pair):
    (result,) = control_pairs(pair[::-1])
    assert result.names == ("ulvm_v5", "ulvm_v5 without scan")
    differences = dice_by_group(pair[0].test.rows) - dice_by_group(pair[1].test.rows)
    assert result.difference.value == pytest.approx(differences.mean())
    assert (result.difference.groups, result.unit) == (8, "patient")
    signs = np.array(list(itertools.product((-1, 1), repeat=8)))
    means = np.abs((signs * differences.to_numpy()).mean(axis=1))
    expected_p = (means >= abs(differences.mean()) - 1e-12).mean()
    assert result.difference.p == pytest.approx(expected_p)
    assert result.adjusted_p == result.difference.p
    assert result.difference.low < result.difference.value < result.difference.high
    assert result.parameters_apart == 18_496
    assert result.time_ratio == 1.0
    assert median_step_seconds(pair[0]) == pytest.approx(4.0 / 10)
    assert result.verdict == "ulvm_v5 ahead"
    assert result.unlike == []


def test_the_sentence_names_both_scores_the_difference_and_the_verdict(pair):
    (result,) = control_pairs(pair)
    scores = [f"{training.test.numbers['dice']:.3f}" for training in pair]
    text = result.sentence
    assert text.startswith(f"`ulvm_v5` has dice {scores[0]}, `ulvm_v5 without scan` {scores[1]}")
    assert f"difference +{result.difference.value:.3f} (" in text
    assert "8 patients" in text
    assert text.endswith("ulvm_v5 ahead.")


def test_no_difference_is_called_so(tmp_path):
    equal_pair = [build_findings(tmp_path, "a"), build_findings(tmp_path, "b", record=SCANLESS)]
    (result,) = control_pairs(equal_pair)
    assert result.difference.value == 0
    assert result.verdict == "no difference shown"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"dataset": {"digest": "ef" * 32}},
        {"dataset": {"contents": "ef" * 32}},
        {"dataset": {"masks": UNUSUAL_MASKS}},
        {"protocol": "paper"},
        {"model": "ulvm_v4"},
        {"arguments": {"ablate": "scan", "branches": 4}},
        {"arguments": {}},
    ],
)
def test_other_images_seeds_networks_and_arguments_are_no_control(pair, change):
    network, control = pair
    assert len(control_pairs(pair)) == 1
    if "dataset" in change:
        change = {"dataset": control.record.dataset.model_copy(update=change["dataset"])}
    changed = replace(control, record=control.record.model_copy(update=change))
    assert control_pairs([network, changed]) == []


def test_a_network_without_mamba_stands_for_the_two_of_u_mamba(tmp_path):
    names = ("umamba", "umamba-enc", "umamba-nomamba", "resenc", "unet")
    trainings = [build_findings(tmp_path, n, 0.8 + 0.01 * i, model=n) for i, n in enumerate(names)]
    pairs = control_pairs(trainings)
    assert [result.names for result in pairs] == [
        ("umamba", "umamba-nomamba"), ("umamba", "resenc"),
        ("umamba-enc", "umamba-nomamba"), ("umamba-enc", "resenc"),
    ]  # fmt: skip
    p_values = [result.difference.p for result in pairs]
    assert [result.adjusted_p for result in pairs] == holm(p_values)
    assert max(p_values) < pairs[0].adjusted_p


def test_modes_of_fine_tunings_are_paired_mode_by_mode(tmp_path):
    trainings = []
    for run, record in (("whole", {}), ("ablated", SCANLESS)):
        build_training(tmp_path / run)  # replaces the record of the fine-tuning
        trainings += [
            build_findings(tmp_path / run, mode, record=record) for mode in ("full", "freeze")
        ]
    pairs = control_pairs(trainings)
    assert [(p.network.run.name, p.control.run.name) for p in pairs] == [
        ("full", "full"), ("freeze", "freeze")
    ]  # fmt: skip


def test_what_else_differs_is_said(tmp_path, pair):
    changed = build_findings(
        tmp_path, "other", record={**SCANLESS, "device": "cuda"}, recipe={"lr": 0.01}, epochs=6
    )
    (result,) = control_pairs([pair[0], changed])
    assert result.unlike[:2] == ["`lr` 0.001 and 0.01", "`epochs` 12 and 6"]
    assert "cuda" in result.unlike[2]


def test_a_pair_that_is_not_measured_is_listed_without_numbers(tmp_path, pair):
    (result,) = control_pairs(
        [pair[0], build_findings(tmp_path, "b", measured=False, record=SCANLESS)]
    )
    assert result.difference is None
    assert result.verdict == "no difference shown"
    assert "not evaluated on the same images" in result.sentence


def test_classifiers_are_tested_image_by_image(tmp_path):
    runs = [build_class_training(tmp_path / name) for name in ("a", "b")]
    TRAINING.update(runs[1], arguments={"ablate": "scan"})
    path = next((runs[1] / "test" / "predictions").rglob("*.parquet"))
    rows = pd.read_parquet(path, partitioning=None)
    hits = rows.index[rows["prediction"] == rows["target"]][:3]
    rows.loc[hits, "prediction"] = 9
    rows.to_parquet(path)
    (result,) = control_pairs([read_training(run) for run in runs])
    assert result.names == ("vim", "vim without scan")
    assert result.difference.value == pytest.approx(3 / result.difference.n)
    assert result.difference.p == pytest.approx(binomtest(3, 3, 0.5).pvalue)
    assert "percentage points" in result.sentence
    assert result.unit == "image"


def test_both_reports_show_the_pair(pair):
    runs = [training.run for training in pair]
    (result,) = control_pairs(pair)
    report = zoo_text(Zoo(pair))
    cells = line_of(report[report.index("## With and without") :], "`ulvm_v5`")
    assert cells[1] == "`ulvm_v5 without scan`"
    assert cells[6:] == ["0.008", "703,885", "685,389", "1.00 x", "ulvm_v5 ahead"]
    comparison = read_comparison(runs)
    assert comparison.labels == ["ulvm_v5", "ulvm_v5 without scan"]
    assert result.sentence.replace("`", "") in comparison_text(comparison)
    assert "## With and without Mamba" in comparison_page(comparison, "robust compare")
    (control,) = json.loads(comparison.as_json())["controls"]
    assert control["sentence"] == result.sentence
    assert control["parameters_apart"] == 18_496


def test_a_control_is_not_set_beside_the_published_dice(pair):
    rows = training_results(pair)
    assert rows["model"].tolist() == ["ulvm_v5", "ulvm_v5 without scan"]
    assert rows["published_dice"].notna().tolist() == [True, False]


def test_reports_without_a_pair_have_no_such_section(tmp_path, pair):
    runs_without_pair = [pair[0].run, build_training(tmp_path / "unet", TrainPlan(model="unet"))]
    assert "without Mamba" not in zoo_text(Zoo([read_training(run) for run in runs_without_pair]))
    assert read_comparison(runs_without_pair).controls == []
