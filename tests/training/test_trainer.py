"""Callbacks and checkpoints of the Trainer; lost loader processes, and memory that ran out."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.accelerators import CUDAAccelerator

from robustcli.core import watchdog
from robustcli.core.errors import RunError
from robustcli.training import mask_samples
from robustcli.training.engine import run_training
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.record import ADDED, AVERAGED, VALIDATIONS, read_train_record
from robustcli.training.trainer import (
    DurableCheckpoints,
    KeepLastAndBest,
    MetricsLog,
    SeededSteps,
    TrainProgress,
    WaitingTime,
    _ending_by_interrupt,
    described_checkpoint,
    without_chatter,
)
from tests.training.runs import Recorder, last_weights, same_state, tiny_unet


def test_only_fetching_counts_and_taking_starts_anew() -> None:
    clock = WaitingTime()
    with clock.profile("[_TrainingEpochLoop].train_dataloader_next"):
        time.sleep(0.02)
    with clock.profile("run_training_epoch"):
        time.sleep(0.02)
    assert clock.take() == pytest.approx(0.02, abs=0.015)
    assert clock.take() == 0
    assert clock.summary() == ""


MODULE: Any = None


def trainer(epoch: int = 0, **overrides: Any) -> Any:
    defaults = {
        "current_epoch": epoch, "global_step": 5, "global_rank": 0, "world_size": 1,
        "is_global_zero": True, "max_epochs": 4, "callback_metrics": {},
    }  # fmt: skip
    return SimpleNamespace(**(defaults | overrides))


def optimizer(lr: float) -> Any:
    return SimpleNamespace(param_groups=[{"lr": lr}])


def test_the_best_is_kept_and_of_equals_the_first(tmp_path: Path) -> None:
    checkpoints = KeepLastAndBest(tmp_path, best=True, monitor="val_dice")
    for epoch, dice in enumerate([0.5, 0.7, 0.7, 0.6]):
        saved_names: list[str] = []
        checkpoints.on_train_epoch_end(
            trainer(
                epoch,
                callback_metrics={"val_dice": torch.tensor(dice)},
                save_checkpoint=lambda path, saved_names=saved_names: saved_names.append(path.name),
            ),
            MODULE,
        )
        assert saved_names == [*(["best.ckpt"] if epoch < 2 else []), "last.ckpt"]
    assert checkpoints.best_epoch == 2
    restored = KeepLastAndBest(tmp_path, best=True, monitor="val_dice")
    restored.load_state_dict(checkpoints.state_dict())
    assert (restored.best_value, restored.best_epoch) == (checkpoints.best_value, 2)


def test_nan_is_best_only_if_all_values_are_nan(tmp_path: Path) -> None:
    checkpoints = KeepLastAndBest(tmp_path, best=True, monitor=AVERAGED)
    best = []
    for epoch, value in enumerate([math.nan, 0.2, math.nan, 0.3]):
        saved_names: list[str] = []
        checkpoints.on_train_epoch_end(
            trainer(
                epoch,
                callback_metrics={AVERAGED: torch.tensor(value), "val_dice": torch.tensor(1.0)},
                save_checkpoint=lambda path, saved_names=saved_names: saved_names.append(path.name),
            ),
            MODULE,
        )
        best.append("best.ckpt" in saved_names)
    assert best == [True, True, False, True]
    assert checkpoints.state_dict()["monitor"] == AVERAGED


def test_the_log_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    logged = {"train_loss": 0.5, "grad_norm": 2.0, "val_loss": 0.4, "val_dice": 0.8, "val_iou": 0.7}
    log = MetricsLog(tmp_path, WaitingTime(), Recorder(), VALIDATIONS["seg"])
    log.on_train_start(trainer(), MODULE)
    log.on_before_optimizer_step(trainer(), MODULE, optimizer(0.25))
    log.on_train_epoch_end(trainer(0, callback_metrics=logged), MODULE)
    state = log.state_dict()
    log.on_train_epoch_end(trainer(1, callback_metrics=logged), MODULE)
    restored_log = MetricsLog(tmp_path, WaitingTime(), Recorder(), VALIDATIONS["seg"])
    restored_log.load_state_dict(state)
    restored_log.on_before_optimizer_step(trainer(), MODULE, optimizer(0.125))
    restored_log.on_train_epoch_end(trainer(1, callback_metrics=logged | {"val_dice": 0.9}), MODULE)
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert tuple(metrics.columns) == VALIDATIONS["seg"].metrics
    assert metrics["epoch"].tolist() == [1, 2]
    assert metrics["val_dice"].tolist() == [0.8, 0.9]
    assert metrics["lr"].tolist() == [0.25, 0.125]


def test_epochs_of_an_older_version_lack_its_columns_alone(tmp_path: Path) -> None:
    logged = {"train_loss": 0.5, "grad_norm": 2.0, "val_loss": 0.4, "val_top1": 0.8}
    log = MetricsLog(tmp_path, WaitingTime(), Recorder(), VALIDATIONS["cls"])
    log.on_train_epoch_end(trainer(0, callback_metrics=logged), MODULE)
    older_rows = [
        {k: v for k, v in row.items() if k not in ADDED} for row in log.state_dict()["rows"]
    ]
    restored_log = MetricsLog(tmp_path, WaitingTime(), Recorder(), VALIDATIONS["cls"])
    restored_log.load_state_dict({"rows": older_rows})
    restored_log.on_train_epoch_end(trainer(1, callback_metrics=logged | {"val_f1": 0.7}), MODULE)
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics["val_f1"].isna().tolist() == [True, False]
    assert metrics["val_f1"].iloc[1] == 0.7
    assert metrics["val_seconds"].isna().tolist() == [True, False]
    assert metrics["val_top1"].tolist() == [0.8, 0.8]


def test_the_seconds_of_an_epoch_are_steps_and_validation(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, WaitingTime(), Recorder(), VALIDATIONS["seg"])
    log.on_train_start(trainer(), MODULE)
    time.sleep(0.03)
    log.on_validation_start(trainer(), MODULE)
    time.sleep(0.01)
    log.on_train_epoch_end(trainer(), MODULE)
    (row,) = log.state_dict()["rows"]
    assert row["val_seconds"] >= 0.01
    assert row["seconds"] - row["val_seconds"] >= 0.03


def test_a_step_that_the_loss_scaler_skipped_has_no_norm(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, WaitingTime(), Recorder(), VALIDATIONS["seg"])
    log.on_train_epoch_end(trainer(callback_metrics={"train_loss": 1.0}), MODULE)
    assert pd.read_csv(tmp_path / "metrics.csv")["grad_norm"].isna().all()


def test_progress_counts_the_images_of_all_processes_and_no_more() -> None:
    listener = Recorder()
    bar = TrainProgress(listener, per_epoch=10)
    two_processes = trainer(epoch=1, world_size=2)
    bar.on_train_start(two_processes, MODULE)
    assert (listener.total, listener.done) == (40, 10)
    # Two processes with two images each: the last step contains a repeated image.
    for _ in range(3):
        bar.on_train_batch_end(two_processes, MODULE, None, SimpleNamespace(ids=["a", "b"]), 0)
    assert listener.done == 20
    bar.on_train_epoch_end(two_processes, MODULE)
    bar.on_train_batch_end(two_processes, MODULE, None, SimpleNamespace(ids=["a", "b"]), 0)
    assert listener.done == 24


@pytest.mark.parametrize("changes", [{"epoch": 1}, {"global_rank": 1}, {"step": 1}, {"seed": 1}])
def test_random_numbers_depend_on_step_epoch_seed_and_rank(changes: dict[str, int]) -> None:
    def draw(seed: int = 0, step: int = 0, epoch: int = 0, global_rank: int = 0) -> torch.Tensor:
        torch.rand(3)
        SeededSteps(seed).on_train_batch_start(
            trainer(epoch, global_rank=global_rank), MODULE, None, step
        )
        return torch.rand(4)

    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(**changes))


IO = DurableCheckpoints()


class Code:
    """An object that is neither a tensor nor a plain value."""


def test_a_written_checkpoint_is_read_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "checkpoints" / "last.ckpt"
    IO.save_checkpoint({"state_dict": {"w": torch.arange(3.0)}, "epoch": 4}, file)
    restored = IO.load_checkpoint(str(file))
    assert restored["epoch"] == 4
    assert restored["state_dict"]["w"].tolist() == [0, 1, 2]
    assert [path.name for path in file.parent.iterdir()] == ["last.ckpt"]
    IO.remove_checkpoint(file)
    IO.remove_checkpoint(file)
    assert not file.exists()


def test_the_checkpoint_that_processes_must_share_is_described(tmp_path: Path) -> None:
    assert described_checkpoint(tmp_path) == f"no `{tmp_path / 'checkpoints' / 'last.ckpt'}`"
    IO.save_checkpoint({"epoch": 4}, tmp_path / "checkpoints" / "last.ckpt")
    assert described_checkpoint(tmp_path) == "the checkpoint of epoch 5"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.ckpt"
    IO.save_checkpoint({"epoch": 1}, file)
    original_open = Path.open

    def fail_write(path: Path, *arguments: object, **keywords: object) -> object:
        return original_open(
            Path("/dev/full") if path.name[0] == "." else path, *arguments, **keywords
        )  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", fail_write)
    with pytest.raises(RunError, match="No space left on device"):
        IO.save_checkpoint({"epoch": 2, "w": torch.zeros(100_000)}, file)
    monkeypatch.undo()
    assert IO.load_checkpoint(file) == {"epoch": 1}


def test_code_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    torch.save({"epoch": Code()}, file)
    with pytest.raises(RunError, match="cannot be read"):
        IO.load_checkpoint(file, weights_only=False)
    key: tuple[object, ...] = ()
    for _ in range(600):  # a million end the process
        key = (key, key)
    torch.save({"epoch": [key]}, file)
    with pytest.raises(RunError, match="it could crash the program"):
        IO.load_checkpoint(file)


def test_a_damaged_checkpoint_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "last.ckpt"
    IO.save_checkpoint({"epoch": 1, "w": torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(RunError, match="cannot be read"):
        IO.load_checkpoint(file)


def test_machines_of_a_slurm_cluster_get_no_advice_to_use_srun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning asks at the start of each training whether SLURM runs it."""
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.warns(PossibleUserWarning, match="srun"):
        SLURMEnvironment.detect()
    with without_chatter():
        SLURMEnvironment.detect()


def test_notes_are_silenced_inside_the_context_only(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("lightning.pytorch")
    before = logger.level
    with without_chatter():
        logging.getLogger("lightning.pytorch.utilities.rank_zero").info("GPU available: no")
        logger.error("this matters")
    assert [record.message for record in caplog.records] == ["this matters"]
    assert logger.level == before


def test_training_on_the_cpu_of_a_machine_with_a_gpu_warns_of_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: True))
    with without_chatter():
        pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)


def test_steps_that_the_loss_scaler_skips_first_warn_of_nothing() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with without_chatter():
        schedule.step()


def test_known_warnings_pass_and_others_do_not() -> None:
    with without_chatter():
        warnings.warn("The 'x' does not have many workers which may be a bottleneck.", stacklevel=1)
        with pytest.raises(UserWarning, match="something else"):
            warnings.warn("something else", stacklevel=1)


@pytest.mark.parametrize(
    ("sigterm_received", "kind"), [(True, KeyboardInterrupt), (False, RuntimeError)]
)
def test_loader_processes_that_sigterm_ended_are_an_interruption(
    sigterm_received: bool, kind: type[BaseException]
) -> None:
    """Lightning has caught SIGTERM, but torch raises an error about the ended processes first."""
    fake: Any = SimpleNamespace(received_sigterm=sigterm_received)
    with pytest.raises(kind), _ending_by_interrupt(fake):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated. ")


Change = Callable[[pytest.MonkeyPatch], None]


def _out_of_memory_in_loss(patch: pytest.MonkeyPatch) -> None:
    def ran_out(self: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has")

    patch.setattr(SegmenterModule, "loss_of", ran_out)


def _out_of_memory_in_backward(patch: pytest.MonkeyPatch) -> None:
    def ran_out(self: Any, *rest: Any, **keywords: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    patch.setattr(SegmenterModule, "backward", ran_out)


def _out_of_memory_of_the_machine(patch: pytest.MonkeyPatch) -> None:
    def ran_out(self: Any, batch: Any) -> Any:
        raise MemoryError

    patch.setattr(SegmenterModule, "loss_of", ran_out)


@pytest.mark.parametrize(
    "change", [_out_of_memory_in_loss, _out_of_memory_in_backward, _out_of_memory_of_the_machine]
)
def test_out_of_memory_names_the_batch_and_what_to_change(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    change(monkeypatch)
    with pytest.raises(RunError, match="Out of memory on cpu in epoch 1, step 1") as caught:
        run_training(tiny_unet(data, tmp_path / "run", batch_size=4, accumulate=2))
    assert "4 images of 16x16 pixels" in caught.value.why
    assert "GPU 0 has" not in caught.value.why, (
        "only the first line of the library's message is shown"
    )
    assert "`--batch-size 2 --accumulate 4`" in caught.value.todo
    assert read_train_record(tmp_path / "run").status != "complete"


def test_a_single_image_that_does_not_fit_is_told_apart(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _out_of_memory_in_loss(monkeypatch)
    with pytest.raises(RunError) as caught:
        run_training(tiny_unet(data, tmp_path / "run", batch_size=1))
    assert "one image of 16x16 pixels" in caught.value.why
    assert "a smaller `--window` than 16" in caught.value.todo
    assert "--batch-size" not in caught.value.todo


@pytest.mark.usefixtures("unscored")
def test_after_out_of_memory_the_same_command_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another program used the memory, all finished epochs are kept."""
    expected_run = run_training(tiny_unet(data, tmp_path / "unbroken", epochs=2))
    steps, compute = [], SegmenterModule.loss_of
    with monkeypatch.context() as patch:

        def failing_step(self: Any, batch: Any) -> Any:
            steps.append(len(batch.ids))
            if len(steps) == 5:  # in the second epoch
                raise torch.OutOfMemoryError("CUDA out of memory")
            return compute(self, batch)

        patch.setattr(SegmenterModule, "loss_of", failing_step)
        with pytest.raises(RunError, match="in epoch 2"):
            run_training(tiny_unet(data, tmp_path / "run", epochs=2))
    run = run_training(tiny_unet(data, tmp_path / "run", epochs=2))
    assert same_state(last_weights(run), last_weights(expected_run))


@pytest.mark.parametrize("fault", ["dies", "hangs"])
def test_a_loader_process_that_is_lost_names_its_image(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    augment = mask_samples.augment

    def faulty_augment(*images: Any, **keywords: Any) -> Any:
        if watchdog._slot is not None and not marker.exists():
            marker.write_bytes(watchdog._slot.task)
            if fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return augment(*images, **keywords)

    marker = tmp_path / "task"
    monkeypatch.setattr(mask_samples, "augment", faulty_augment)
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.05)
    monkeypatch.setenv("ROBUST_IMAGE_SECONDS", "1.0")
    with pytest.raises(RunError, match=r"(it was|while) augmenting") as caught:
        run_training(tiny_unet(data, tmp_path / "run", workers=1, epochs=1))
    names = [line for line in str(caught.value).split("`") if line.endswith(".png")]
    assert names[0] in marker.read_text()
    assert "the same command continues" in caught.value.todo
    assert "memory" in caught.value.why if fault == "dies" else "more than 1" in caught.value.what
