"""Trainings with several seeds in one folder: shared parts, resuming, and errors."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustcli.adapters.catalogue import ModelEntry
from robustcli.core.errors import RunError, UsageError, run_of
from robustcli.core.signals import interruptible
from robustcli.data.dataset import Dataset
from robustcli.training import seed_runs
from robustcli.training.config import TrainConfig
from robustcli.training.engine import run_plan, run_training
from robustcli.training.record import SEEDS, TRAINING, read_seeds_record, read_train_record
from robustcli.training.seed_runs import SeedsError, forecast_train_seeds, train_seeds
from robustcli.training.segmenter_training import SegmenterTraining
from robustcli.training.train_plan import plan_training
from robustcli.training.training_task import TrainPlan
from tests.training.images import write_pairs
from tests.training.runs import Interrupting, Recorder, same_state, tiny_unet, weights_of
from tests.training.test_processes import run_script

SETTINGS: dict[str, Any] = {"epochs": 2, "workers": 0, "limit": 10, "batch_size": 4}


def seed_config(data: Path, out: Path | None, **overrides: Any) -> TrainConfig:
    return replace(tiny_unet(data, Path(), **{**SETTINGS, "seeds": 2, **overrides}), out=out)


@pytest.fixture(scope="module")
def opened_configs() -> list[TrainConfig]:
    """Returns the settings with which the data set was opened for `pair`."""
    return []


@pytest.fixture(scope="module")
def pair(
    data: Path, tmp_path_factory: pytest.TempPathFactory, opened_configs: list[TrainConfig]
) -> Path:
    """Returns a run with two seeds, trained without interruption."""
    original_open = SegmenterTraining.open

    def counting_open(self: SegmenterTraining, config: TrainConfig, entry: ModelEntry) -> Dataset:
        opened_configs.append(config)
        return original_open(self, config, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SegmenterTraining, "open", counting_open)
        return train_seeds(seed_config(data, tmp_path_factory.mktemp("seeds") / "run"))


@pytest.fixture
def copy(pair: Path, tmp_path: Path) -> Path:
    """Returns a copy of `pair` that a test may change."""
    return Path(shutil.copytree(pair, tmp_path / "run"))


def test_each_seed_is_an_ordinary_run_on_the_images_of_the_first(
    pair: Path, data: Path, tmp_path: Path
) -> None:
    single = run_training(seed_config(data, tmp_path / "single", seeds=None, seed=1, split_seed=0))
    assert same_state(weights_of(pair / "seed-1"), weights_of(single))
    records = [read_train_record(pair / f"seed-{seed}") for seed in (0, 1)]
    assert [(r.seed, r.split_seed, r.status) for r in records] == [
        (0, None, "complete"), (1, 0, "complete"),
    ]  # fmt: skip
    assert records[0].initial_weights_sha256 != records[1].initial_weights_sha256
    splits = [pd.read_csv(pair / f"seed-{seed}" / "splits.csv") for seed in (0, 1)]
    pd.testing.assert_frame_equal(splits[0], splits[1])
    plan = plan_training(seed_config(data, tmp_path / "other", seeds=None, seed=1), Recorder())
    held_out = {sample.image_id for sample in plan.splits.test.samples}
    assert held_out != set(splits[0].loc[splits[0]["split"] == "test", "image_id"])


def test_the_record_names_the_seeds(pair: Path, opened_configs: list[TrainConfig]) -> None:
    record = read_seeds_record(pair)
    assert (record.of, record.task, record.status) == ("train", "seg", "complete")
    assert (record.seeds, record.split_seed, record.failures) == ((0, 1), 0, [])
    assert len(opened_configs) == 1


@pytest.mark.usefixtures("unscored")
def test_more_seeds_go_on_in_the_same_folder_and_fewer_take_none_back(
    copy: Path, data: Path
) -> None:
    before = [(copy / f"seed-{seed}" / "weights.safetensors").stat().st_mtime_ns for seed in (0, 1)]
    listener = Recorder()
    train_seeds(seed_config(data, copy, seeds=3), listener)
    after = [(copy / f"seed-{seed}" / "weights.safetensors").stat().st_mtime_ns for seed in (0, 1)]
    assert before == after
    assert read_seeds_record(copy).seeds == (0, 1, 2)
    assert read_train_record(copy / "seed-2").status == "complete"
    assert any(line.startswith("seed 2: Epoch 2 of 2") for line in listener.lines)
    train_seeds(seed_config(data, copy, seeds=1), listener)
    assert read_seeds_record(copy).seeds == (0, 1, 2)
    assert any("was started with 3 seeds" in line for line in listener.lines)


def test_the_folder_without_out_does_not_depend_on_the_number_of_seeds(data: Path) -> None:
    folders = {
        plan_training(seed_config(data, None, seeds=seeds), Recorder()).run for seeds in (2, 5)
    }
    (folder,) = folders
    single = plan_training(seed_config(data, None, seeds=None), Recorder()).run
    assert folder.name == f"{single.name}-seeds"
    plan = plan_training(seed_config(data, None, seeds=None, split_seed=0), Recorder()).run
    assert plan == single  # the same images as without the option


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": 0.02}, "`--lr` was 0.01, now it is 0.02"),
        ({"seed": 1, "split_seed": 0}, "`--seed` was 0, now it is 1"),
        ({"limit": 9}, "images differ"),
        ({"split_seed": 4, "limit": None}, "`--split-seed` was 0, now it is 4"),
    ],
)
def test_other_settings_are_refused_by_name(
    pair: Path, data: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match="contains several seeds with other settings") as caught:
        train_seeds(seed_config(data, pair, **overrides))
    assert message in caught.value.why
    assert read_seeds_record(pair).status == "complete"


def test_runs_of_another_kind_are_refused(pair: Path, data: Path) -> None:
    with pytest.raises(UsageError, match="contains a training, not several seeds"):
        train_seeds(seed_config(data, pair / "seed-0"))
    with pytest.raises(UsageError, match="contains several seeds, not a training"):
        run_training(seed_config(data, pair, seeds=None))


def test_a_damaged_record_is_named(copy: Path, data: Path) -> None:
    record = copy / "run.json"
    record.write_text(record.read_text().replace('"count"', '"counts"'))
    with pytest.raises(UsageError, match=r"not the record of several seeds|newer version"):
        train_seeds(seed_config(data, copy))
    record.write_text("{")
    with pytest.raises(UsageError, match="not the record of a training"):
        run_training(seed_config(data, copy, seeds=None))


class InSecondSeed(Interrupting):
    """Sends SIGTERM to this process during the second training."""

    def __init__(self, after: int) -> None:
        super().__init__(after)
        self.begun = 0

    def start(self, total: int, done: int, unit: str | None = None) -> None:
        super().start(total, done, unit)
        self.begun += 1

    def advance(self, count: int) -> None:
        if self.begun == 2 and self.done > self.after:
            os.kill(os.getpid(), signal.SIGTERM)
        Recorder.advance(self, count)


@pytest.mark.usefixtures("unscored")
def test_a_seed_that_sigterm_ended_goes_on_to_the_same_weights(
    pair: Path, data: Path, tmp_path: Path
) -> None:
    run, before = tmp_path / "run", signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interruptible():  # as the command line does
        train_seeds(seed_config(data, run), InSecondSeed(after=9))  # in its second epoch
    assert signal.getsignal(signal.SIGTERM) == before
    assert read_seeds_record(run).status == "running"
    assert read_train_record(run / "seed-0").status == "complete"
    assert (run / "seed-1" / "checkpoints" / "last.ckpt").is_file()
    first = (run / "seed-0" / "weights.safetensors").stat().st_mtime_ns
    train_seeds(seed_config(data, run))
    assert (run / "seed-0" / "weights.safetensors").stat().st_mtime_ns == first
    assert read_seeds_record(run).status == "complete"
    for seed in ("seed-0", "seed-1"):
        assert same_state(weights_of(run / seed), weights_of(pair / seed))


def failing_training(seed: int, error: Exception) -> Callable[..., Path]:
    """Returns a training that raises `error` for one seed, in the folder of its run."""

    def run(plan: TrainPlan, *rest: Any) -> Path:
        if plan.config.seed == seed:
            with TRAINING.held(plan.run):
                raise error
        return run_plan(plan, *rest)

    return run


@pytest.mark.usefixtures("unscored")
def test_a_seed_that_fails_is_told_at_once_and_keeps_no_other_from_being_trained(
    copy: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = list[tuple[int, str, Path | None]]()
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
    config = seed_config(data, copy, seeds=4)
    with monkeypatch.context() as patched:
        patched.setattr(seed_runs, "run_plan", failing_training(2, error))
        with pytest.raises(SeedsError, match="1 of its 4 seeds failed: 2") as caught:
            train_seeds(config, None, lambda s, e: errors.append((s, str(e), run_of(e))))
    assert (caught.value.exit_code, caught.value.run) == (1, copy)
    assert errors == [(2, str(error), copy / "seed-2")]
    assert read_train_record(copy / "seed-3").status == "complete"
    record = read_seeds_record(copy)
    assert (record.status, [(f.seed, f.error) for f in record.failures]) == (
        "failed", [(2, f"OutOfMemoryError {error}")],
    )  # fmt: skip
    train_seeds(config)
    assert (read_seeds_record(copy).status, read_seeds_record(copy).failures) == ("complete", [])


def test_settings_that_no_seed_can_have_stop_at_once(tmp_path: Path) -> None:
    empty_masks = write_pairs(tmp_path / "data", 10, empty=True)
    with pytest.raises(UsageError, match="has any foreground"):
        train_seeds(seed_config(empty_masks, tmp_path / "run"))
    assert read_seeds_record(tmp_path / "run").status == "failed"
    assert not (tmp_path / "run" / "seed-1").exists()


def test_two_processes_do_not_share_the_folder(copy: Path, data: Path) -> None:
    with SEEDS.held(copy), pytest.raises(RunError, match="Another process is working"):
        train_seeds(seed_config(data, copy))


@pytest.mark.usefixtures("unscored")
def test_fresh_discards_what_the_seeds_left_and_nothing_else(copy: Path, data: Path) -> None:
    shutil.copytree(copy / "seed-1", copy / "seed-2")
    SEEDS.update(copy, count=3)
    (copy / "seed-2" / "mine.txt").write_text("not the run's")
    train_seeds(seed_config(data, copy, fresh=True, seeds=1, lr=0.02, epochs=1))
    assert read_seeds_record(copy).seeds == (0,)
    assert read_train_record(copy / "seed-0").recipe.lr == 0.02
    file_names = [
        [p.name for p in (copy / f"seed-{seed}").iterdir() if p.name[0] != "."] for seed in (1, 2)
    ]
    assert file_names == [[], ["mine.txt"]]


def test_a_dry_run_counts_what_is_finished(copy: Path, data: Path) -> None:
    forecast = forecast_train_seeds(seed_config(data, copy, seeds=4), Recorder())
    assert (list(forecast.seeds), list(forecast.finished)) == ([0, 1, 2, 3], [0, 1])
    assert "4 (0, 1, 2, 3)" in forecast.as_text()
    assert read_seeds_record(copy).seeds == (0, 1)
    assert forecast_train_seeds(seed_config(data, copy, fresh=True), Recorder()).finished == []


def test_launchers_end_with_one_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29411",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="cannot be used with torchrun"):
        train_seeds(seed_config(data, tmp_path / "run"))


_SCRIPT = """
import sys
from pathlib import Path
from robustcli.training.seed_runs import train_seeds
from tests.training.test_seed_runs import seed_config

data, out = map(Path, sys.argv[1:])
train_seeds(seed_config(data, out, epochs=1, devices=3, batch_size=6))
print("finished")
"""


@pytest.mark.slow  # as many seeds as devices: test_side_by_side.py
def test_more_processes_than_seeds_share_the_steps_of_each_seed(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_script(_SCRIPT, tmp_path, data, run)
    for seed in (0, 1):
        record = read_train_record(run / f"seed-{seed}")
        assert (record.status, record.devices, record.seed) == ("complete", 3, seed)
