"""The forecast of a fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from robustcli.core.errors import UsageError
from robustcli.finetuning.dry_run import forecast_finetuning
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.finetuning.record import read_finetune_record
from robustcli.finetuning.rules import FreezeRule
from robustcli.finetuning.starts import Segmenters
from tests.finetuning.tunings import tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("given")
    return write_pairs(folder / "data", 14), write_pretrained(folder / "weights.safetensors")


def test_without_a_profile_it_says_that_one_decides(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    told = forecast_finetuning(tuning(given[0], tmp_path / "run", given[1]), Heard())
    assert (told.decisions, told.saving, told.profile_iterations) == (None, None, 2)
    assert told.training.steps == 9
    text = told.as_text()
    assert "Modes:      scratch, full, freeze; the time is for each of 3" in text
    assert "decided by a profile of the first 2 steps" in text
    assert "Sweep:" not in text
    assert not (tmp_path / "run").exists()


def test_a_sweep_says_how_much_more_it_is(given: tuple[Path, Path], tmp_path: Path) -> None:
    told = forecast_finetuning(tuning(given[0], tmp_path / "run", given[1], sweep=True), Heard())
    assert (
        f"Sweep:      up to {len(Segmenters.rules)} further rules, each as long" in told.as_text()
    )


def test_names_say_exactly_what_the_run_then_freezes(
    given: tuple[Path, Path], tmp_path: Path
) -> None:
    rule = FreezeRule(pattern="encoder.*")
    config = tuning(given[0], tmp_path / "run", given[1], mode="freeze", rule=rule, epochs=1)
    told = forecast_finetuning(config, Heard())
    assert told.decisions is not None
    assert told.saving is not None
    run_finetuning(config)
    assert read_finetune_record(tmp_path / "run").saving is not None
    found = read_finetune_record(tmp_path / "run").saving
    assert found is not None
    assert found.model_dump() == vars(told.saving)
    frozen = [d.count for d in told.decisions if d.frozen]
    assert told.saving.frozen == sum(frozen)
    text = told.as_text()
    assert f"Frozen:     {sum(frozen):,} of {told.saving.parameters:,} (" in text
    assert text.count("frozen: fits `encoder.*`") == len(frozen)
    assert forecast_finetuning(config, Heard()).training.started


def test_nothing_is_frozen_in_other_modes(given: tuple[Path, Path], tmp_path: Path) -> None:
    told = forecast_finetuning(tuning(given[0], tmp_path / "run", given[1], mode="full"), Heard())
    assert told.profile_iterations == 0
    assert "Freezing:   none in these modes" in told.as_text()
    profile = tuning(given[0], tmp_path / "run", given[1], profile_only=True)
    assert "none: the profile only" in forecast_finetuning(profile, Heard()).as_text()


def test_it_is_json_too(given: tuple[Path, Path], tmp_path: Path) -> None:
    rule = FreezeRule(pattern="encoder.*")
    told = forecast_finetuning(tuning(given[0], tmp_path / "r", given[1], rule=rule), Heard())
    parsed = json.loads(told.as_json())
    assert parsed["modes"] == ["scratch", "full", "freeze"]
    assert {d["frozen"] for d in parsed["decisions"]} == {True, False}


def test_what_would_be_refused_is_refused_now(given: tuple[Path, Path], tmp_path: Path) -> None:
    rule = FreezeRule(pattern="nothing")
    with pytest.raises(UsageError, match="`--freeze nothing` fits no parameter"):
        forecast_finetuning(tuning(given[0], tmp_path / "r", given[1], rule=rule), Heard())
