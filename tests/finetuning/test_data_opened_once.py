"""A data set is opened once by a command, however many trainings and measurements it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustcli.data import sources
from robustcli.finetuning.dry_run import forecast_finetuning
from robustcli.finetuning.mode_trainings import run_finetuning
from robustcli.training.engine import run_training
from robustcli.training.train_plan import forecast_training
from tests.finetuning.tunings import tuning, write_pretrained
from tests.training.pairs import write_pairs
from tests.training.photos import write_photos
from tests.training.runs import Heard, small


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened so far; every way to open a data set ends in one of these two functions."""
    seen: list[str] = []
    for name in ("_with_classes", "_with_masks"):
        opening = getattr(sources, name)

        def counted(*arguments: object, _opening: object = opening) -> object:
            seen.append(str(arguments[0]))
            return _opening(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(sources, name, counted)
    return seen


@pytest.mark.parametrize("iterations", [{"iterations": 4}, {}])
def test_a_fine_tuning_of_three_modes(
    openings: list[str], tmp_path: Path, iterations: dict[str, int]
) -> None:
    data = write_pairs(tmp_path / "data", 14)
    weights = write_pretrained(tmp_path / "weights.safetensors")
    config = tuning(data, tmp_path / "run", weights, **(iterations or {"epochs": 2}))
    forecast_finetuning(config, Heard())
    assert openings == [str(data)]
    run = run_finetuning(config)
    assert openings == [str(data)] * 2
    assert all((run / mode / "test" / "run.json").is_file() for mode in config.modes)
    run_finetuning(config)
    assert openings == [str(data)] * 3


def test_a_training_with_its_measurements(openings: list[str], tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 14)
    config = small(data, tmp_path / "run", epochs=1)
    forecast_training(config, Heard())
    assert openings == [str(data)]
    run = run_training(config)
    assert openings == [str(data)] * 2
    assert all((run / part / "run.json").is_file() for part in ("test", "baseline"))


def test_a_training_of_a_classifier(openings: list[str], tmp_path: Path) -> None:
    data = write_photos(tmp_path / "photos", 6)
    config = small(
        data, tmp_path / "run", model="resnet18", model_args={}, window=32, epochs=1, lr=None
    )
    run = run_training(config)
    assert openings == [str(data)]
    assert (run / "test" / "run.json").is_file()
