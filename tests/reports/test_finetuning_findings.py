"""A fine-tuning: its modes compared with full, and sentences about costs and savings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustcli.finetuning.record import SWEEPS, RuleRecord
from robustcli.metrics.mask_scores import dice
from robustcli.metrics.paired import PairedDifference, class_difference
from robustcli.reports import finetuning_findings
from robustcli.reports.finetuning_findings import (
    FinetuningFindings,
    against_full,
    finetuning_summary,
    frozen_elements,
    is_within,
    pace,
    pace_before,
    read_finetuning,
    rule_label,
    rule_scope,
    seconds_ratio,
    statistic_name,
    swept_before_freezing,
)
from robustcli.reports.finetuning_page import (
    SEGMENTER_MODE_COLUMNS,
    finetuning_results,
    finetuning_text,
)
from robustcli.reports.pages import to_json
from robustcli.reports.scoring import SCORINGS
from robustcli.training.record import TRAINING
from tests.reports.finetune_runs import HELD, ROADS, TOTAL, FinetunePlan, build_finetuning


def test_an_unfinished_run_can_be_read(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("full",), waiting=("freeze",), profiled=0, decided=False)
    findings = read_finetuning(build_finetuning(tmp_path, plan))
    assert [run.mode for run in findings.modes] == ["scratch", "full"]
    full = findings.of("full")
    assert (full.costs, full.seconds_per_iteration, full.frozen_at) == (None, None, None)
    assert findings.of("freeze") is None
    assert (findings.decisions, findings.profile, findings.sweep) == (None, None, None)
    assert findings.is_partial
    assert findings.training.test is not None, "the measured mode has a score"


def test_weights_from_before_the_freeze_are_not_taken_for_its_effect(tmp_path: Path) -> None:
    run = build_finetuning(tmp_path)
    caution = "which ended before tensors were frozen (after iteration 10)"
    for epoch, is_before in ((2, False), (1, True)):
        TRAINING.update(run / "freeze", chosen_epoch=epoch)
        assert (caution in " ".join(finetuning_summary(read_finetuning(run)))) == is_before


def test_rules_of_a_sweep_are_told_apart_and_their_weights_may_be_from_before_it(
    tmp_path: Path,
) -> None:
    run = build_finetuning(tmp_path, FinetunePlan(sweep=True))
    findings = read_finetuning(run)
    labels = ["nothing frozen", "below 1e-06 of the weight's rms (rms)", "smallest 0.6", "encoder"]
    assert [rule_label(row) for _, row in findings.sweep.iterrows()] == labels
    assert swept_before_freezing(findings) == []
    table = pd.read_csv(run / "sweep.csv")
    table.assign(chosen_epoch=2).to_csv(run / "sweep.csv", index=False)
    findings = read_finetuning(run)
    assert swept_before_freezing(findings) == labels[1:3], "`encoder` was frozen from the start"
    assert "are those of an epoch before the freeze" in finetuning_text(findings)
    older = table.drop(columns=["after_steps", "statistic", "relative", "chosen_epoch"])
    older.to_csv(run / "sweep.csv", index=False)
    findings = read_finetuning(run)
    assert rule_label(findings.sweep.iloc[1]) == "below 1e-06"
    assert swept_before_freezing(findings) == []


def test_a_line_holds_what_a_mode_gave_and_cost(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path))
    table = finetuning_results(findings)
    assert list(table.columns) == list(SEGMENTER_MODE_COLUMNS)
    assert table["mode"].tolist() == ["scratch", "full", "freeze"]
    row, first = table.iloc[2], against_full(findings, "freeze")
    assert (row["n"], row["groups"]) == (8, 8)
    assert (row["trainable"], row["frozen"]) == (TOTAL - HELD, HELD)
    assert (row["optimizer_bytes"], row["iterations_measured"]) == (4 * (TOTAL - HELD), 50)
    assert row["iterations_per_second"] == pytest.approx(1 / row["seconds_per_iteration"])
    assert (row["dice_minus_full"], row["dice_minus_full_p"]) == (first.value, first.p)
    assert (row["dice_minus_full_low"], row["dice_minus_full_high"]) == (first.low, first.high)
    assert row["dice_low"] < row["dice"] < row["dice_high"]
    assert row["baseline_dice"] < row["dice"]
    assert row["training_seconds"] == pytest.approx(6 * 4 * 0.24 / 0.25)


def test_what_is_missing_is_null_and_counts_stay_whole(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("full",), waiting=("freeze",))
    table = finetuning_results(read_finetuning(build_finetuning(tmp_path, plan)))
    first, second = json.loads(to_json(table))
    assert isinstance(first["trainable"], int)
    assert first["dice_minus_full"] is None
    assert (second["dice"], second["trainable"], second["seconds_per_iteration"]) == (None,) * 3
    assert (second["status"], second["epochs"], second["iterations"]) == ("running", 2, 20)


def test_relaxed_numbers_are_of_data_with_a_tolerance(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path, ROADS))
    assert findings.tolerance == 3
    row = finetuning_results(findings).iloc[1]
    assert row["relaxed_precision_low"] < row["relaxed_precision"] < row["relaxed_precision_high"]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> FinetuningFindings:
    return read_finetuning(build_finetuning(tmp_path_factory.mktemp("run")))


def test_freezing_is_compared_with_full_on_the_same_images(findings: FinetuningFindings) -> None:
    first, freeze, full = (
        against_full(findings, "freeze"),
        findings.of("freeze"),
        findings.of("full"),
    )
    gain = dice(freeze.training.test.rows) - dice(full.training.test.rows)
    assert first.value == pytest.approx(gain.mean()), "every image is a group"
    assert first.low < first.value < first.high < 0
    assert against_full(findings, "full") is None
    assert against_full(findings, "lora") is None


def test_the_quartiles_surround_the_median(findings: FinetuningFindings) -> None:
    freeze = findings.of("freeze")
    speed = pace(freeze)
    seconds = freeze.steps["seconds"].to_numpy()[10:]
    earlier_pace = pace_before(freeze)
    assert (speed.iterations, earlier_pace.iterations) == (50, 10)
    assert earlier_pace.median == pytest.approx(np.median(freeze.steps["seconds"].to_numpy()[:10]))
    expected = np.quantile(seconds, [0.25, 0.5, 0.75])
    assert (speed.low, speed.median, speed.high) == pytest.approx(tuple(expected))


def test_an_unfinished_mode_has_no_pace_and_frozen_elements(tmp_path: Path) -> None:
    findings = read_finetuning(build_finetuning(tmp_path, FinetunePlan(unmeasured=("freeze",))))
    freeze = findings.of("freeze")
    assert (pace(freeze), frozen_elements(freeze)) == (None, None)
    assert (seconds_ratio(findings, "freeze"), against_full(findings, "freeze")) == (None, None)


def words_of(findings: FinetuningFindings) -> str:
    return "\n".join(finetuning_summary(findings))


def test_unmeasured_numbers_are_not_reported(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("freeze",), record={"saving": None})
    page = words_of(read_finetuning(build_finetuning(tmp_path, plan)))
    assert "freeze" not in page
    assert "optimizer" not in page


@pytest.mark.parametrize(
    ("low", "high", "p", "text"),
    [
        (-0.009, 0.008, 0.9, "Both are therefore equal to within 0.01 of dice."),
        (
            -0.009,
            -0.001,
            0.01,
            "worse, by more than the variation between images but less than 0.01.",
        ),
        (
            -0.2,
            -0.1,
            0.01,
            "Its score is therefore worse, by more than the variation between images.",
        ),
        (
            0.1,
            0.2,
            0.01,
            "Its score is therefore better, by more than the variation between images.",
        ),
        (
            *(-0.2, -0.1, 0.2),
            "The interval excludes 0, but p is above 0.05. The interval uses resampling and the "
            "test uses sign flips, so they can disagree close to the limit, and with few groups "
            "the interval tends to be too narrow: it is undecided whether a difference exists.",
        ),
        (-0.2, 0.001, 0.04, "The interval includes 0, but p is at most 0.05. The interval"),
        (
            *(-0.002, 0.008, 0.03),
            "undecided whether a difference exists. If a difference exists, it is less than 0.01.",
        ),
        (-0.05, 0.02, 0.4, "a loss of up to 0.050 or a gain of up to 0.020 is possible."),
    ],
)
def test_the_conclusion_depends_on_interval_and_test(
    findings: FinetuningFindings,
    monkeypatch: pytest.MonkeyPatch,
    low: float,
    high: float,
    p: float,
    text: str,
) -> None:
    difference = PairedDifference(8, 8, (low + high) / 2, low, high, p, 2 / 2**8)
    monkeypatch.setattr(
        finetuning_findings,
        "against_full",
        lambda _, mode: difference if mode == "freeze" else None,
    )
    assert text in words_of(findings)


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (
            PairedDifference(12, 4, -0.1, -0.2, -0.1, 0.125, 0.125),
            "p = 0.12 (4 images cannot give a p below 0.12)). The interval excludes 0, but the "
            "test cannot reach p = 0.05 with so few: it is undecided whether a difference "
            "exists.",
        ),
        (
            PairedDifference(12, 1, -0.1, None, None, None, 1.0),
            "-0.100. A single image does not show the variation between images.",
        ),
        (
            PairedDifference(12, 2, -0.1, None, None, None, 0.5),
            "-0.100. 2 images do not show the variation between images.",
        ),
    ],
)
def test_too_few_groups_for_a_small_p_are_named(
    findings: FinetuningFindings, monkeypatch: pytest.MonkeyPatch,
    difference: PairedDifference, text: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(finetuning_findings, "against_full", lambda _, __: difference)
    assert text in words_of(findings)


def test_the_reason_names_the_interval_and_test_of_classifiers() -> None:
    """Seven images against one: Newcombe's interval excludes 0, McNemar's p is 0.07."""
    reference = pd.DataFrame(
        {"image_id": range(40), "target": 1, "prediction": [1] * 21 + [0] * 19}
    )
    frozen = reference.assign(prediction=[0] + [1] * 27 + [0] * 12)
    gap = class_difference(reference, frozen)
    assert gap.low > 0
    assert gap.p == pytest.approx(0.0703125)
    text = finetuning_findings._conclusion(
        gap.value, (gap.low, gap.high), gap.p, gap.smallest_p, SCORINGS["cls"]
    )
    assert text == (
        "The interval excludes 0, but p is above 0.05. The interval is an approximation and "
        "McNemar's exact test is conservative, so they can disagree close to the limit: it is "
        "undecided whether a difference exists."
    )


@pytest.mark.parametrize(("factor", "noise"), [(1.0, False), (0.25 / 0.2402, True)])
def test_a_difference_within_the_spread_is_called_noise(
    findings: FinetuningFindings, factor: float, noise: bool
) -> None:
    runs = [
        replace(run, steps=run.steps.assign(seconds=run.steps["seconds"] * factor))
        if run.mode == "freeze"
        else run
        for run in findings.modes
    ]
    page = words_of(replace(findings, modes=tuple(runs)))
    assert ("may be noise of the machine" in page) is noise


def test_a_slower_iteration_is_called_slower(findings: FinetuningFindings) -> None:
    runs = [
        replace(run, steps=run.steps.assign(seconds=0.5)) if run.mode == "freeze" else run
        for run in findings.modes
    ]
    assert "2.00 times as long (99.7 % more) as in full" in words_of(
        replace(findings, modes=tuple(runs))
    )


def test_where_nothing_was_frozen_time_and_memory_are_no_merit(
    findings: FinetuningFindings,
) -> None:
    full = findings.of("full")
    saving = findings.record.saving
    no_saving = saving.model_copy(update={"frozen": 0})
    modes = tuple(
        replace(run, steps=full.steps, costs=full.costs) if run.mode == "freeze" else run
        for run in findings.modes
    )
    record = findings.record.model_copy(update={"saving": no_saving})
    page = words_of(replace(findings, modes=modes, record=record))
    assert "No tensor is frozen, so the difference in time between freeze and full is" in page
    assert "After freezing" not in page
    assert "By count" not in page
    assert "optimizer" not in page


def test_of_roads_the_relaxed_numbers_of_each_measured_mode_are_told(
    tmp_path: Path, findings: FinetuningFindings
) -> None:
    roads = read_finetuning(build_finetuning(tmp_path, replace(ROADS, unmeasured=("scratch",))))
    full = roads.of("full")
    line = full.training.test.numbers
    prefix = "Relaxed precision and recall (3 pixels, pixels of all images pooled): full "
    text = next(single for single in words_of(roads).splitlines() if single.startswith(prefix))
    assert text.startswith(f"{prefix}{line['relaxed_precision']:.3f} (")
    assert f" and {line['relaxed_recall']:.3f} (" in text
    assert ", freeze 0." in text
    assert "Relaxed" not in words_of(findings)


RULE = RuleRecord(
    threshold=1e-6, quantile=None, pattern=None, kind="mean_abs", relative=False, scope="mamba"
)


def changed_rule(**changes: object) -> RuleRecord:
    return RULE.model_copy(update={"threshold": None, **changes})


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (RULE, "tensors of state-space blocks whose mean of |g| over a tensor's elements is "
               "below 1e-06"),
        (changed_rule(quantile=0.3, scope="all", kind="rms", relative=True),
         "the 30 % of the tensors of the complete network with the smallest root mean square of g "
         "over a tensor's elements, relative to the weight's rms"),
        (changed_rule(pattern="encoder.*"), "tensors called `encoder.*`"),
    ],
)  # fmt: skip
def test_a_rule_in_words(findings: FinetuningFindings, rule: RuleRecord, text: str) -> None:
    record = findings.record.model_copy(update={"rule": rule})
    assert f"- Frozen by: {text}.\n" in finetuning_text(replace(findings, record=record))


def test_every_statistic_has_a_name_of_its_own() -> None:
    kinds = ("mean_abs", "rms", "max_abs", "abs_mean")
    assert len({statistic_name(changed_rule(kind=kind)) for kind in kinds}) == 4


@pytest.mark.parametrize(
    ("rule", "mamba", "expected"),
    [
        (RULE, [True, False], [True, False]),
        (RULE, [False, False], [True, True]),
        (changed_rule(threshold=1.0, scope="all"), [True, False], [True, True]),
        (changed_rule(pattern="x"), [True, False], [True, True]),
    ],
)
def test_a_rule_applies_to_the_tensors_of_its_scope(
    rule: RuleRecord, mamba: list[bool], expected: list[bool]
) -> None:
    assert is_within(rule, pd.Series(mamba)).tolist() == expected


@pytest.mark.parametrize(
    ("line", "label", "scope"),
    [
        (("mamba", 1e-6, None, None, None, 0.0), "nothing frozen", "state-space blocks"),
        (("mamba", 1e-6, None, None, None, 0.1), "below 1e-06", "state-space blocks"),
        (("all", None, 0.3, None, None, 0.1), "smallest 0.3", "all tensors"),
        (("all", None, None, None, "encoder.*", 0.1), "encoder.*", "by name"),
        (("all", None, None, 0.5, None, 0.1), "change below 0.5 of the early one", "all tensors"),
    ],
)
def test_a_line_of_a_sweep_has_a_short_name(
    line: tuple[object, ...], label: str, scope: str
) -> None:
    row = pd.DataFrame([line], columns=list(SWEEPS["seg"][:6])).iloc[0]
    assert (rule_label(row), rule_scope(row)) == (label, scope)
