"""Trainings end to end: files, resuming, and errors that stop them."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split

from robustcli.adapters.training_run import read_header
from robustcli.core.errors import RunError, UsageError
from robustcli.evaluation.cell_table import table
from robustcli.evaluation.config import EvalConfig
from robustcli.evaluation.evaluate import IncompleteRun, run_evaluation
from robustcli.evaluation.record import EVALUATION, read_record
from robustcli.evaluation.store import Store
from robustcli.reports.training_findings import paper_scores
from robustcli.training import engine, trainer
from robustcli.training.config import TrainConfig
from robustcli.training.engine import chosen_weights, run_training
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.procedures import procedure_of
from robustcli.training.recipes import NAMED_RECIPES, SCHEDULES, recipe_for
from robustcli.training.record import AVERAGED, VALIDATIONS, read_train_record
from robustcli.training.train_plan import plan_training
from robustcli.training.trainer import DurableCheckpoints, default_workers, is_trained
from robustcli.training.training_task import hash_ids
from robustcli.transforms.base import Cell
from tests.training.images import write_pairs
from tests.training.runs import (
    RECIPE,
    SMALL_UNET,
    Interrupting,
    Recorder,
    Run,
    kill_when_stopped,
    killed_after_one_epoch,
    last_weights,
    recorded_training,
    same_state,
    tiny_classifier,
    tiny_umamba,
    tiny_unet,
    weights_of,
)


def test_peak_memory_grows_with_allocations() -> None:
    before = engine.peak_bytes()
    allocated = np.ones(60_000_000, np.uint8)
    assert engine.peak_bytes() >= before
    assert engine.peak_bytes() > allocated.nbytes


def test_windows_has_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert engine.peak_bytes() == 123


@pytest.fixture(scope="module")
def finished_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns the run and the listener of an uninterrupted training."""
    return recorded_training(tiny_unet(data, tmp_path_factory.mktemp("whole") / "run"))


def test_a_training_writes_the_documented_files(finished_run: Run) -> None:
    run, _ = finished_run
    file_names = {path.name for path in run.iterdir() if path.name[0] != "."}
    assert file_names == {
        "run.json", "splits.csv", "metrics.csv", "checkpoints", "weights.safetensors", "test",
        "baseline", "tensorboard",
    }  # fmt: skip
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


def test_the_record_says_what_was_done(finished_run: Run) -> None:
    record = read_train_record(finished_run[0])
    assert (record.status, record.protocol, record.model) == ("complete", "patient", "unet")
    assert (record.recipe.epochs, record.recipe.window, record.recipe.lr) == (3, 16, 0.01)
    assert {k: (s.images, s.groups, s.empty) for k, s in record.splits.items()} == {
        "train": (12, 12, 0), "val": (1, 1, 0), "test": (1, 1, 0),
    }  # fmt: skip
    assert record.faults == []
    assert record.arguments == SMALL_UNET
    assert record.decision == "probability >= 0.5"
    assert record.peak_memory_bytes > 1 << 26
    assert (record.initial_weights, record.scan_backend) == ("none: initialised with seed 0", None)


def test_metrics_have_a_line_per_epoch_and_the_best_is_chosen(finished_run: Run) -> None:
    run, listener = finished_run
    metrics = pd.read_csv(run / "metrics.csv")
    assert tuple(metrics.columns) == VALIDATIONS["seg"].metrics
    assert metrics["epoch"].tolist() == [1, 2, 3]
    assert metrics["step"].tolist() == [3, 6, 9]
    assert metrics["train_loss"].is_monotonic_decreasing
    assert metrics["waiting_share"].between(0, 1).all()
    assert not metrics.isna().any(axis=None)
    record = read_train_record(run)
    factor = SCHEDULES[record.recipe.schedule]  # as a function of the finished steps
    rates = [record.recipe.lr * factor(step - 1, 9) for step in metrics["step"]]
    assert metrics["lr"].tolist() == pytest.approx(rates)
    assert record.chosen_epoch == 1 + int(metrics["val_dice"].to_numpy().argmax())
    assert "best dice on the validation images" in str(record.chosen_why)
    assert (listener.total, listener.done) == (36, 36)
    assert any(line.startswith("Epoch 3 of 3: training loss") for line in listener.lines)


def test_the_weights_tell_how_to_use_them(finished_run: Run) -> None:
    run, _ = finished_run
    header, record = read_header(run / "weights.safetensors"), read_train_record(run)
    assert (header.model, header.window, header.channels) == ("unet", 16, "rgb")
    assert (header.threshold, header.protocol) == (0.5, "patient")
    assert header.trained_on == record.dataset.digest


def test_the_held_out_images_are_measured_and_so_is_otsu(finished_run: Run) -> None:
    run, _ = finished_run
    splits = pd.read_csv(run / "splits.csv")
    held_out = int((splits["split"] == "test").sum())
    for folder in ("test", "baseline"):
        cell_table = table(run / folder)
        assert cell_table["n"].tolist() == [held_out]
        assert cell_table["dice"].between(0, 1).all()


def test_a_finished_run_is_not_trained_again(finished_run: Run, data: Path) -> None:
    run, listener = finished_run[0], Recorder()
    before = (run / "weights.safetensors").stat().st_mtime_ns
    assert run_training(tiny_unet(data, run), listener) == run
    assert listener.lines[-1] == f"`{run}` is already finished."
    assert (run / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"lr": 0.02}, "`--lr` was 0.01, now it is 0.02"),
        ({"limit": 12}, "images differ: 14 of `data`, now 12"),
        ({"epochs": 5}, "`warmup-cosine` depends on the total number of epochs"),
        ({"model_args": {"features": [4, 4]}}, "`--model-arg` was"),
    ],
)
def test_other_settings_are_refused_by_name(
    finished_run: Run, data: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match="contains a training with other settings") as caught:
        run_training(tiny_unet(data, finished_run[0], **overrides))
    assert re.search(message, caught.value.why)
    assert "`--fresh`" in caught.value.todo


def test_a_training_whose_test_is_partial_is_not_complete(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_unet(data, tmp_path / "run", epochs=1)

    def partial(evaluation: EvalConfig) -> None:
        run = run_evaluation(evaluation)
        EVALUATION.update(run, status="partial")
        raise IncompleteRun(run, "9 of 10 predictions are missing.", "", "")

    with monkeypatch.context() as patched:
        patched.setattr("robustcli.training.training_task.run_evaluation", partial)
        with pytest.raises(IncompleteRun, match="9 of 10 predictions are missing"):
            run_training(config)
    assert read_train_record(tmp_path / "run").status == "failed"
    monkeypatch.setattr("robustcli.training.engine.fit_run", None)  # an error if it trained again
    run_training(config)
    assert read_train_record(tmp_path / "run").status == "complete"
    assert read_record(tmp_path / "run" / "test").status == "complete"


@pytest.mark.usefixtures("unscored")
def test_fresh_discards(finished_run: Run, data: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished_run[0], tmp_path / "run"))
    (run / "mine.txt").write_text("not the run's")
    run_training(tiny_unet(data, run, fresh=True, epochs=1, lr=0.5))
    assert read_train_record(run).recipe.lr == 0.5
    assert pd.read_csv(run / "metrics.csv")["step"].tolist() == [3]
    assert (run / "mine.txt").is_file()


@pytest.mark.slow  # tests/training/test_lit_module.py interrupts trainings in one process
def test_a_killed_run_ends_with_the_same_weights(
    finished_run: Run, data: Path, tmp_path: Path
) -> None:
    """A real process is killed in the middle of its second epoch."""
    run = tmp_path / "run"
    kill_when_stopped(_CHILD, data, run)
    assert not (run / "weights.safetensors").exists()
    listener = Recorder()
    run_training(tiny_unet(data, run), listener)
    assert same_state(weights_of(run), weights_of(finished_run[0]))
    assert not any("Epoch 1 of" in line for line in listener.lines)
    expected_metrics, resumed = (pd.read_csv(r / "metrics.csv") for r in (finished_run[0], run))
    timed = ["seconds", "waiting_share", "val_seconds"]
    pd.testing.assert_frame_equal(expected_metrics.drop(columns=timed), resumed.drop(columns=timed))
    assert not list(run.rglob("*.tmp"))


_CHILD = """
import sys
from pathlib import Path
from robustcli.training.engine import run_training
from tests.training.runs import Stopping, tiny_unet

run_training(tiny_unet(*map(Path, sys.argv[1:])), Stopping(after=19))  # in epoch 2 of 3
"""


@pytest.mark.usefixtures("unscored")
def test_dropout_is_the_same_after_an_interruption(data: Path, tmp_path: Path) -> None:
    """VM-UNet drops paths at random; the process continues with another random state."""
    overrides: dict[str, Any] = {
        "model": "vmunet", "window": 32, "epochs": 2, "limit": 5, "batch_size": 3,
        "model_args": {"dim": 8, "depths": [1, 1, 1, 1], "depths_decoder": [1, 1, 1, 1],
                       "drop_path": 0.5},
    }  # fmt: skip
    first_run, second_run = tmp_path / "one", tmp_path / "other"
    run_training(tiny_unet(data, first_run, **overrides))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_training(tiny_unet(data, second_run, **overrides), Interrupting(after=3))
    assert signal.getsignal(signal.SIGINT) == handler
    assert (second_run / "checkpoints" / "last.ckpt").is_file()
    torch.manual_seed(12345)
    run_training(tiny_unet(data, second_run, **overrides))
    assert same_state(weights_of(first_run), weights_of(second_run))


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize("make_config", [tiny_classifier, tiny_umamba])
def test_loader_processes_resume_with_the_images_of_the_next_epoch(
    data: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    make_config: Callable[..., TrainConfig],
) -> None:  # fmt: skip
    """Both orders of samples: of images, and of random patches."""
    monkeypatch.setitem(NAMED_RECIPES, "nnunet-light", RECIPE)
    images = photos if make_config is tiny_classifier else data
    whole_run = run_training(make_config(images, tmp_path / "whole", epochs=2))
    resumed_run = tmp_path / "resumed"
    config = make_config(images, resumed_run, epochs=2, workers=2)
    killed_after_one_epoch(monkeypatch, config)
    run_training(config)
    assert same_state(last_weights(resumed_run), last_weights(whole_run))


@pytest.fixture(scope="module")
def paper_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("paper") / "run"
    return run_training(tiny_unet(data, run, protocol="paper", window=24, epochs=2))


def test_more_epochs_go_on_where_the_schedule_allows_it(
    paper_run: Path, data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for epochs in (1, 2):
        run_training(tiny_unet(data, run, protocol="paper", window=24, epochs=epochs))
    assert same_state(weights_of(paper_run), weights_of(run))
    pd.testing.assert_frame_equal(table(paper_run / "test"), table(run / "test"))
    assert read_train_record(run).recipe.epochs == 2


def test_the_papers_protocol(paper_run: Path) -> None:
    run = paper_run
    record = read_train_record(run)
    assert (record.protocol, record.chosen_epoch) == ("paper", 2)
    assert any("slices of the same patient" in fault for fault in record.faults)
    assert record.decision == "logit >= 0.5 (probability >= 0.622)"
    assert not (run / "checkpoints" / "best.ckpt").exists()
    rows = pd.read_parquet(run / "paper.parquet")
    splits = pd.read_csv(run / "splits.csv")
    assert sorted(rows["image_id"]) == sorted(splits["image_id"][splits["split"] == "test"])
    _, rest = train_test_split(sorted(splits["image_id"]), train_size=0.8, random_state=37)
    _, drawn = train_test_split(rest, train_size=0.5, random_state=37)
    assert rows["image_id"].tolist() == drawn  # consecutive images are pooled
    assert (rows["intersection"] <= rows["target"]).all()
    assert 0 <= paper_scores(rows, 16).dice <= 1
    header = read_header(run / "weights.safetensors")
    assert (header.channels, round(header.threshold, 7)) == ("bgr", 0.6224593)


def test_a_nan_loss_stops_and_names_the_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SegmenterModule.pixels
    steps = 0

    def nan_pixels(self: SegmenterModule, batch: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return original(self, batch) * (np.nan if steps == 6 else 1)  # in the second epoch

    monkeypatch.setattr(SegmenterModule, "pixels", nan_pixels)
    run = tmp_path / "run"
    with pytest.raises(RunError, match="The loss is nan in epoch 2, step 5") as caught:
        run_training(tiny_unet(data, run))
    assert re.match(r"Images of the batch: \d+.png, ", caught.value.why)
    assert read_train_record(run).status == "failed"
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 0
    assert all(torch.isfinite(t).all() for t in last["state_dict"].values())


@pytest.mark.usefixtures("unscored")
def test_half_precision_accumulation_and_clipping(data: Path, tmp_path: Path) -> None:
    """Of a network with a state-space scan."""
    overrides: dict[str, Any] = {"precision": "bf16", "accumulate": 2, "clip": 0.1, "epochs": 2}
    run = tmp_path / "run"
    run_training(tiny_unet(data, run, model="ulvm", model_args={}, **overrides, window=32))
    metrics = pd.read_csv(run / "metrics.csv")
    assert metrics["step"].tolist() == [2, 4]  # three batches per epoch, two per step
    assert (metrics["grad_norm"] > 0.1).all()  # before clipping
    assert metrics["train_loss"].notna().all()
    assert torch.bfloat16 not in {tensor.dtype for tensor in weights_of(run).values()}


@pytest.mark.usefixtures("unscored")
def test_a_last_step_of_fewer_batches_has_the_mean_gradient_of_its_images(
    data: Path, tmp_path: Path
) -> None:
    norms = []
    for batch_size, accumulate in ((8, 1), (4, 2)):  # of twelve images
        overrides: dict[str, Any] = {
                "loss": "bce", "lr": 1e-9, "epochs": 1, "aug": "none", "model": "ulvm",
                "model_args": {}, "window": 32, "batch_size": batch_size, "accumulate": accumulate,
            }  # fmt: skip
        run = tmp_path / str(accumulate)
        run_training(tiny_unet(data, run, **overrides))
        norms.append(pd.read_csv(run / "metrics.csv")["grad_norm"].item())
    # The order of the sums differs; a shorter step that counts half changes the mean by a quarter.
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.usefixtures("unscored")
def test_patience_ends_a_training_that_does_not_get_better(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    overrides: dict[str, Any] = {"patience": 1, "lr": 1e-12, "epochs": 9, "aug": "none"}
    run_training(tiny_unet(data, run, **overrides))
    assert len(pd.read_csv(run / "metrics.csv")) < 9
    assert read_train_record(run).chosen_epoch == 1


@pytest.mark.parametrize("make_config", [tiny_unet, tiny_classifier])
def test_a_last_step_that_spoils_the_weights_is_no_success(
    data: Path, photos: Path, tmp_path: Path, make_config: Callable[..., TrainConfig]
) -> None:
    images = data if make_config is tiny_unet else photos
    overrides: dict[str, Any] = {"epochs": 1, "batch_size": 64, "lr": 1e30}
    config = make_config(images, tmp_path / "run", **overrides)
    for _ in range(2):  # the same for a training that is only finished
        with pytest.raises(RunError, match=r"The training diverged: .* after epoch 1") as caught:
            run_training(config)
        assert "smaller `--lr`" in caught.value.todo
        assert read_train_record(tmp_path / "run").status == "failed"
        assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_an_epoch_that_spoils_the_weights_is_not_kept(data: Path, tmp_path: Path) -> None:
    """The next step would blame the images of its batch, and `last.ckpt` would be useless."""
    config = tiny_unet(data, tmp_path / "run", epochs=2, batch_size=64, lr=1e30)
    with pytest.raises(RunError, match=r"The training diverged in epoch 1") as caught:
        run_training(config)
    assert "smaller `--lr`" in caught.value.todo
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_masks_without_foreground_are_refused(tmp_path: Path) -> None:
    empty_masks = write_pairs(tmp_path / "data", 5, empty=True)
    with pytest.raises(UsageError, match="None of the 3 training images of `data` has any fore"):
        run_training(tiny_unet(empty_masks, tmp_path / "run"))


def test_sizes_that_do_not_divide_are_padded(data: Path, tmp_path: Path) -> None:
    run = run_training(tiny_unet(data, tmp_path / "run", window=50, epochs=1))
    assert table(run / "test")["dice"].between(0, 1).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": "vmamba-t", "task": "seg"}, "`vmamba-t` is a classifier"),
        ({"model": "otsu", "model_args": {}}, "`otsu` cannot be trained"),
        ({"precision": "fp16"}, "`--precision fp16` needs a CUDA device"),
    ],
)
def test_what_cannot_be_trained(
    data: Path, tmp_path: Path, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        run_training(tiny_unet(data, tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()


def test_pixels_to_ignore_from_masks_to_scores(tmp_path: Path) -> None:
    """Ignored pixels are in no loss, validation or score, and are recorded."""
    folder = write_pairs(tmp_path / "data", 14)
    for file in (folder / "masks").iterdir():
        mask = (np.asarray(Image.open(file)) > 0).astype(np.uint8)
        mask[:, 24:] = 255
        Image.fromarray(mask).save(file)
    with pytest.raises(UsageError, match=r"(?s)is not known.*--ignore 255` excludes that value"):
        run_training(tiny_unet(folder, tmp_path / "run"))
    listener = Recorder()
    run = run_training(tiny_unet(folder, tmp_path / "run", ignore=255, epochs=1), listener)
    assert any("foreground 1, background 0, ignored 255" in line for line in listener.lines)
    for record in (read_train_record(run), read_record(run / "test")):
        assert record.dataset.masks.ignored == ["255"]
    rows = Store(run / "test").rows(
        read_record(run / "test").models[0].name, Cell("identity", 0), "seg"
    )
    assert set(rows[["tp", "fp", "fn", "tn"]].sum(axis=1)) == {32 * 24}
    with pytest.raises(UsageError, match=r"(?s)other settings.*masks were read differently"):
        run_training(tiny_unet(folder, run, foreground=1, epochs=1))
    with pytest.raises(UsageError, match=r"`--ignore 255` cannot be used with `--protocol paper`"):
        run_training(tiny_unet(folder, tmp_path / "paper", ignore=255, protocol="paper"))
    (folder / "labels.json").write_text('{"1": "lesion", "255": "ignore"}')
    with pytest.raises(UsageError, match=r"(?s)255.* cannot be used with `--protocol paper`"):
        run_training(tiny_unet(folder, tmp_path / "paper", protocol="paper"))


def test_images_that_are_ignored_whole_are_in_no_validation_score(tmp_path: Path) -> None:
    """Without a counted pixel, their dice would be 1 in every epoch."""
    folder = write_pairs(tmp_path / "data", 24)
    settings = {"ignore": 128, "foreground": 255, "epochs": 1}
    plan = plan_training(tiny_unet(folder, tmp_path / "run", **settings), Recorder())
    validation = [pair.mask.path for pair in plan.splits.val.samples]
    assert len(validation) == 2
    Image.fromarray(np.full((32, 32), 128, np.uint8)).save(validation[0])
    listener = Recorder()
    run = run_training(tiny_unet(folder, tmp_path / "run", lr=1e-9, **settings), listener)
    assert any("1 of 2 images of the val split has no pixel" in line for line in listener.lines)
    assert read_train_record(run).splits["val"].unscored == 1
    assert pd.read_csv(run / "metrics.csv")["val_dice"].max() < 0.5
    Image.fromarray(np.full((32, 32), 128, np.uint8)).save(validation[1])
    with pytest.raises(UsageError, match="None of the 2 validation images"):
        run_training(tiny_unet(folder, tmp_path / "none", **settings))


def test_the_values_of_masks_are_read_alike_in_training_and_evaluation(
    finished_run: Run, data: Path, tmp_path: Path
) -> None:
    """Masks with values 128 and 255 give the same weights and scores."""
    other = Path(shutil.copytree(data, tmp_path / "other"))
    for file in (other / "masks").iterdir():
        Image.fromarray((np.asarray(Image.open(file)) > 0).astype(np.uint8) * 128).save(file)
    runs = [finished_run[0], run_training(tiny_unet(other, tmp_path / "run"))]
    assert same_state(*map(weights_of, runs))
    tables = [table(run / "test")["dice"].tolist() for run in runs]
    assert tables[0] == tables[1]
    masks = [read_train_record(run).dataset.masks for run in runs]
    assert masks[0] is None
    assert masks[1].foreground == ["128"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for name, epoch in (("best", 3), ("last", 7)):
        content = {
            "epoch": epoch,
            "state_dict": {"network.w": torch.full((2,), float(epoch)), "loss.x": torch.zeros(1)},
            "callbacks": {
                "KeepLastAndBest": {"best_dice": 0.87654, "best_epoch": 4},
                "EarlyStopping{'monitor': 'val_dice'}": {"wait_count": 1, "patience": 2},
            },
        }
        DurableCheckpoints().save_checkpoint(content, tmp_path / "checkpoints" / f"{name}.ckpt")
    return tmp_path


def test_the_protocol_selects_the_best_or_the_last_epoch(run: Path) -> None:
    patient, paper = (
        procedure_of(recipe_for("unet", protocol, "x")) for protocol in ("patient", "paper")
    )
    best, last = chosen_weights(run, patient), chosen_weights(run, paper)
    assert (best.epoch, last.epoch) == (4, 8)
    assert best.why == "the best dice on the validation images, 0.8765"
    assert last.why == "the last epoch, as defined by protocol `paper`"
    assert best.state.keys() == {"w"}
    assert (best.state["w"].tolist(), last.state["w"].tolist()) == ([3, 3], [7, 7])


def test_the_reason_names_the_monitored_metric(run: Path) -> None:
    file = run / "checkpoints" / "best.ckpt"
    content = DurableCheckpoints().load_checkpoint(file)
    content["callbacks"]["KeepLastAndBest"]["monitor"] = AVERAGED
    DurableCheckpoints().save_checkpoint(content, file)
    reason = chosen_weights(run, procedure_of(recipe_for("unet", "patient", "x"))).why
    assert reason == "the best moving average of the dice on validation patches, 0.8765"


@pytest.mark.parametrize(("epochs", "is_done"), [(8, True), (9, False)])
def test_a_training_is_done_after_its_last_epoch(run: Path, epochs: int, is_done: bool) -> None:
    assert is_trained(run, epochs) == is_done


def test_a_training_is_done_after_early_stopping(run: Path) -> None:
    file = run / "checkpoints" / "last.ckpt"
    content = DurableCheckpoints().load_checkpoint(file)
    content["callbacks"]["EarlyStopping{'monitor': 'val_dice'}"]["wait_count"] = 2
    DurableCheckpoints().save_checkpoint(content, file)
    assert is_trained(run, 100)


def test_a_training_without_files_is_not_done(tmp_path: Path) -> None:
    assert not is_trained(tmp_path, 1)


def test_the_ids_are_hashed_a_line_each(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 3)
    train = plan_training(tiny_unet(data, tmp_path / "run"), Recorder()).splits.train
    (pair,) = train.samples
    assert hash_ids(train) == hashlib.sha256(f"{pair.image_id}\n".encode()).hexdigest()


def test_the_cpu_is_not_shared_with_loader_processes() -> None:
    assert default_workers(torch.device("cpu")) == 0
    assert 1 <= default_workers(torch.device("cuda")) <= 8


def test_where_loader_processes_would_copy_the_images_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "start_method", lambda: "spawn")
    assert default_workers(torch.device("cuda")) == 0


@pytest.mark.usefixtures("unscored")
def test_after_an_unreadable_image_is_removed_the_same_folder_can_be_used(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 14)
    for number in range(3):  # one is in the training split
        (data / "images" / f"{number:03d}.png").write_bytes(b"no image")
    config = tiny_unet(data, tmp_path / "run", epochs=1)
    with pytest.raises(RunError, match=r"cannot be read(.|\n)*Repair or remove both files"):
        run_training(config)
    for number in range(3):
        for folder in ("images", "masks"):
            (data / folder / f"{number:03d}.png").unlink()
    record = read_train_record(run_training(config))
    assert record.status == "complete"
    assert sum(part.images for part in record.splits.values()) == 11
    for folder in ("images", "masks"):
        shutil.copy(data / folder / "003.png", data / folder / "000.png")
    with pytest.raises(UsageError, match=r"with other settings(.|\n)*Its images differ"):
        run_training(config)  # results that would be lost exist now


def test_a_folder_called_like_a_model_is_measured(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_training(tiny_unet(data.resolve(), Path("unet"), epochs=1))
    assert [model.name for model in read_record(run / "test").models] == ["unet"]
    assert read_record(run / "test").models[0].pretraining.startswith("trained here")
    assert read_record(run / "test").status == "complete"
