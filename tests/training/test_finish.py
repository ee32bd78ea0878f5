"""Which weights a training ends with."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from robustcli.training import trainer
from robustcli.training.finish import chosen_weights, hash_ids
from robustcli.training.record import AVERAGED
from robustcli.training.train_plan import plan_training
from robustcli.training.trainer import DurableCheckpoints, default_workers, is_trained
from tests.training.pairs import write_pairs
from tests.training.runs import Heard, small


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


def test_the_best_or_the_last(run: Path) -> None:
    best, last = (chosen_weights(run, best=best) for best in (True, False))
    assert (best.epoch, last.epoch) == (4, 8)
    assert best.why == "the best dice on the validation images, 0.8765"
    assert last.why == "the last epoch, as protocol `paper` has it"
    assert best.state.keys() == {"w"}
    assert (best.state["w"].tolist(), last.state["w"].tolist()) == ([3, 3], [7, 7])


def test_the_reason_names_what_was_watched(run: Path) -> None:
    file = run / "checkpoints" / "best.ckpt"
    content = DurableCheckpoints().load_checkpoint(file)
    content["callbacks"]["KeepLastAndBest"]["monitor"] = AVERAGED
    DurableCheckpoints().save_checkpoint(content, file)
    why = chosen_weights(run, best=True).why
    assert why == "the best moving average of the dice on validation patches, 0.8765"


@pytest.mark.parametrize(("epochs", "done"), [(8, True), (9, False)])
def test_a_training_is_done_after_its_last_epoch(run: Path, epochs: int, done: bool) -> None:
    assert is_trained(run, epochs) == done


def test_or_when_it_was_stopped_early(run: Path) -> None:
    file = run / "checkpoints" / "last.ckpt"
    content = DurableCheckpoints().load_checkpoint(file)
    content["callbacks"]["EarlyStopping{'monitor': 'val_dice'}"]["wait_count"] = 2
    DurableCheckpoints().save_checkpoint(content, file)
    assert is_trained(run, 100)


def test_nothing_is_not_done(tmp_path: Path) -> None:
    assert not is_trained(tmp_path, 1)


def test_the_ids_are_hashed_a_line_each(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "data", 3)
    train = plan_training(small(data, tmp_path / "run"), Heard()).splits.train
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
