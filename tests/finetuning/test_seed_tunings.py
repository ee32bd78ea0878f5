"""Fine-tunings with several seeds: every mode with every seed, on the same images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robustcli.core.errors import UsageError
from robustcli.finetuning.config import FinetuneConfig
from robustcli.finetuning.dry_run import forecast_finetune_seeds
from robustcli.finetuning.mode_trainings import finetune_seeds, run_finetuning
from robustcli.finetuning.record import read_finetune_record
from robustcli.reports.seeds_findings import read_seeds
from robustcli.training.record import read_seeds_record, read_train_record
from tests.finetuning.tunings import tiny_tuning
from tests.training.runs import Recorder, same_state, weights_of


def seeded(
    data: Path, out: Path, weights: Path, seeds: int | None = 2, **overrides: Any
) -> FinetuneConfig:
    config = tiny_tuning(data, out, weights, epochs=1, limit=10, **{"mode": "full", **overrides})
    return replace(config, training=replace(config.training, seeds=seeds, workers=0))


@pytest.fixture(scope="module")
def run(data: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a run with two seeds of full fine-tuning."""
    return finetune_seeds(seeded(data, tmp_path_factory.mktemp("tuned") / "run", weights))


def test_each_seed_is_an_ordinary_fine_tuning_on_the_same_images(
    run: Path, data: Path, weights: Path, tmp_path: Path
) -> None:
    single = seeded(data, tmp_path / "single", weights, None, seed=1)
    single = replace(single, training=replace(single.training, split_seed=0))
    single_run = run_finetuning(single)
    assert same_state(weights_of(run / "seed-1" / "full"), weights_of(single_run / "full"))
    records = [read_finetune_record(run / f"seed-{seed}") for seed in (0, 1)]
    assert [(r.seed, r.split_seed) for r in records] == [(0, None), (1, 0)]
    splits = [pd.read_csv(run / f"seed-{seed}" / "full" / "splits.csv") for seed in (0, 1)]
    pd.testing.assert_frame_equal(splits[0], splits[1])
    assert read_train_record(run / "seed-1" / "full").split_seed == 0


def test_a_mode_is_added_to_every_seed(run: Path, data: Path, weights: Path) -> None:
    weights_file = run / "seed-1" / "full" / "weights.safetensors"
    before = weights_file.stat().st_mtime_ns
    finetune_seeds(seeded(data, run, weights, mode="scratch"))
    assert weights_file.stat().st_mtime_ns == before
    assert read_seeds_record(run).of == "finetune"
    findings = read_seeds(run)
    assert [(s.mode, len(s.measured)) for s in findings.series] == [("scratch", 2), ("full", 2)]
    assert findings.differences["scratch"].seeds == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": 0.5}, "`--lr` was 0.01, now it is 0.5"),
        ({"seed": 2}, "`--seed` was 0, now it is 2"),
        ({"epochs": 2}, "`--epochs`"),
    ],
)
def test_other_settings_are_refused_by_name(
    run: Path, data: Path, weights: Path, overrides: dict[str, Any], message: str
) -> None:
    config = seeded(data, run, weights)
    config = replace(config, training=replace(config.training, **overrides))
    for start in (finetune_seeds, forecast_finetune_seeds):
        with pytest.raises(UsageError, match="with other settings") as caught:
            start(config, Recorder())
        assert message in caught.value.why


def test_a_dry_run_is_of_one_seed_and_says_how_many(run: Path, data: Path, weights: Path) -> None:
    forecast = forecast_finetune_seeds(seeded(data, run, weights, 4), Recorder())
    assert (list(forecast.seeds), list(forecast.finished)) == ([0, 1, 2, 3], [0, 1])
    assert "Modes:" in forecast.as_text()


def test_a_profile_alone_has_no_score(data: Path, weights: Path, tmp_path: Path) -> None:
    config = replace(seeded(data, tmp_path / "run", weights), profile_only=True)
    with pytest.raises(UsageError, match="`--seeds` and `--profile-only` exclude each other"):
        finetune_seeds(config)
