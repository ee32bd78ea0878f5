"""Trainings that run out of memory, or whose loader process hangs or dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustcli.core import watchdog
from robustcli.core.errors import RunError
from robustcli.training import samples
from robustcli.training.engine import run_training
from robustcli.training.lit_module import SegmenterModule
from robustcli.training.record import read_train_record
from tests.training.runs import last_weights, same_state, tiny_unet

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
    augment = samples.augment

    def faulty_augment(*images: Any, **keywords: Any) -> Any:
        if watchdog._slot is not None and not marker.exists():
            marker.write_bytes(watchdog._slot.task)
            if fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return augment(*images, **keywords)

    marker = tmp_path / "task"
    monkeypatch.setattr(samples, "augment", faulty_augment)
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.05)
    monkeypatch.setenv("ROBUST_IMAGE_SECONDS", "1.0")
    with pytest.raises(RunError, match=r"(it was|while) augmenting") as caught:
        run_training(tiny_unet(data, tmp_path / "run", workers=1, epochs=1))
    names = [line for line in str(caught.value).split("`") if line.endswith(".png")]
    assert names[0] in marker.read_text()
    assert "the same command continues" in caught.value.todo
    assert "memory" in caught.value.why if fault == "dies" else "more than 1" in caught.value.what
