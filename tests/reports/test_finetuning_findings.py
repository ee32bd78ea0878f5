""""""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.reports.finetuning_findings import read_finetuning
from tests.reports.finetune_runs import HELD, TENSORS, TOTAL, FinetunePlan, build_finetuning


def test_everything_that_a_run_leaves_is_read(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path, FinetunePlan(sweep=True)))
    assert [run.mode for run in found.modes] == ["scratch", "full", "freeze"]
    assert found.decisions is not None
    assert found.decisions["frozen"].tolist() == [False, False, True, True, False, False, False]
    assert found.profile is not None
    assert len(found.profile) == 10 * len(TENSORS)
    assert found.sweep is not None
    assert len(found.sweep) == 4
    assert not found.is_partial


def test_steady_iterations_are_those_after_the_freeze(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path))
    freeze, full = found.of("freeze"), found.of("full")
    assert freeze is not None
    assert full is not None
    assert set(freeze.steady["trainable"]) == {TOTAL - HELD}
    assert (len(freeze.steady), freeze.frozen_at) == (50, 10)
    assert freeze.seconds_per_iteration == pytest.approx(0.24, rel=0.02), "not the 0.48 before it"
    assert (len(full.steady), full.frozen_at) == (60, None)


def test_a_run_that_only_profiles_has_no_modes(tmp_path: Path) -> None:
    found = read_finetuning(build_finetuning(tmp_path, FinetunePlan(modes=())))
    assert found.modes == ()
    assert found.training is None
    assert found.decisions is not None


def test_a_run_is_read_as_far_as_it_has_come(tmp_path: Path) -> None:
    plan = FinetunePlan(unmeasured=("full",), waiting=("freeze",), profiled=0, decided=False)
    found = read_finetuning(build_finetuning(tmp_path, plan))
    assert [run.mode for run in found.modes] == ["scratch", "full"]
    full = found.of("full")
    assert full is not None
    assert (full.costs, full.seconds_per_iteration, full.frozen_at) == (None, None, None)
    assert found.of("freeze") is None
    assert (found.decisions, found.profile, found.sweep) == (None, None, None)
    assert found.is_partial
    assert found.training is not None
    assert found.training.test is not None, "the one that is measured"


def test_a_folder_without_a_fine_tuning_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run"):
        read_finetuning(tmp_path)
